"""The tables of `quality.py`: scores set by set, what is gained over each baseline, and the summary for the README."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from _agreement import MARGIN, N_SPLITS, gained_and_lost, left_out
from _charts import GREY, MODEL_COLORS, Lead, Mark, dots, legend_below, panels, titled
from _methods import DATASETS, METHODS, NEW_DATASETS, OPEN
from _report import between, markdown

from scdeepclust.model._systems import SYSTEMS

SCVI = "scvi+leiden-k"
OURS = tuple(system.key for system in SYSTEMS)

# Methods by what they were told, and what that is for a reader.
GIVEN = ("pca+kmeans", "harmony+kmeans", "scvi+kmeans", *OURS)
SEARCHED = ("pca+leiden-k", "harmony+leiden-k", "scvi+leiden-k")
ESTIMATED = ("pca+leiden", "harmony+leiden", "scvi+leiden", *(f"{key}{OPEN}" for key in OURS))
# What users have comes first: nobody tells them the number.
TOLD = {"found by the method": ESTIMATED, "given": GIVEN, "searched until the true number came out": SEARCHED}

# What the labels of a model are, where its name does not say it.
LABELS_ARE = {"idc": "about 5 % of the genes open in a cell", "mfcvae": "main facet", "somvae": "merged nodes"}

BASELINES = {"pca": "PCA", "harmony": "Harmony", "scvi": "scVI"}
CLUSTERERS = {"kmeans": "k-means", "leiden-k": "Leiden at K", "leiden": "Leiden"}

SUMMARY_START, SUMMARY_END = "<!-- written by benchmarks/quality.py -->", "<!-- end -->"


def name_of(method: str) -> str:
    """A method by the name that a reader knows."""
    stem, _, how = method.partition("+")
    if stem in BASELINES:
        return f"{BASELINES[stem]} + {CLUSTERERS[how]}"
    return next(system.name for system in SYSTEMS if system.key == stem)


def per_set(rows: pd.DataFrame, value: str, how: str = "mean") -> pd.DataFrame:
    """Sets (rows) x methods (columns); Harmony is PCA where there are no batches to correct."""
    table = rows.pivot_table(index="data", columns="method", values=value, aggfunc=how)
    table = table.reindex(
        index=[d for d in (*DATASETS, *NEW_DATASETS) if d in table.index],
        columns=[m for m in METHODS if m in table.columns],
    )
    for method in table.columns:
        if method.startswith("harmony") and (pca := method.replace("harmony", "pca")) in table.columns:
            table[method] = table[method].fillna(table[pca])
    return table


def score_table(rows: pd.DataFrame, value: str, methods: tuple[str, ...]) -> str:
    """A score of each set by these methods, mean over seeds; then means over the sets, and the spread of the seeds."""
    mean, sd = per_set(rows, value), per_set(rows, value, "std")
    methods = tuple(method for method in methods if method in mean.columns)
    lines = [["data", *map(name_of, methods)]]
    for data in mean.index:
        best = mean.loc[data, list(methods)].max()
        texts = ["-" if np.isnan(score) else f"{score:.3f}" for score in mean.loc[data, list(methods)]]
        highest = mean.loc[data, list(methods)] >= best - 5e-4
        lines.append([data, *(f"**{text}**" if top else text for text, top in zip(texts, highest, strict=True))])
    for text, sets in mean_rows(mean):
        lines.append([f"*{text}*", *(average(mean.loc[sets, method]) for method in methods)])
    spreads = [sd[method].median() if method in sd else np.nan for method in methods]
    lines.append(["*median sd over seeds*", *("-" if np.isnan(spread) else f"{spread:.3f}" for spread in spreads)])
    return markdown(lines)


def mean_rows(table: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """The groups of sets over which there are means."""
    old, new = ([d for d in names if d in table.index] for names in (DATASETS, NEW_DATASETS))
    groups = [("mean", old + new), ("sets of the development", old), ("new sets", new)]
    return [(text, sets) for text, sets in groups if sets]


def average(scores: pd.Series) -> str:
    """A mean over other sets than the rest's would not compare."""
    return "-" if scores.isna().any() or scores.empty else f"{scores.mean():.3f}"


def against_table(rows: pd.DataFrame) -> str:
    """Sets gained and lost by each model against each baseline, where both were told the same."""
    ari = per_set(rows, "ari")
    lines = [["model", "K", "baseline", "sets", "gained", "lost", "mean difference", "worst", "best"]]
    for told, ours in (("given", OURS), ("open", tuple(f"{key}{OPEN}" for key in OURS))):
        baselines = (*GIVEN[:3], *SEARCHED) if told == "given" else ESTIMATED[:3]
        for method in (m for m in ours if m in ari.columns):
            for baseline in (b for b in baselines if b in ari.columns):
                difference = (ari[method] - ari[baseline]).dropna()
                if difference.empty:
                    continue
                gained, lost = gained_and_lost(ari[method], ari[baseline])
                numbers = (f"{v:+.3f}" for v in (difference.mean(), difference.min(), difference.max()))
                lines.append(
                    [name_of(method), told, name_of(baseline), f"{len(difference)}", f"{gained}", f"{lost}", *numbers]
                )
    return f"By more than {MARGIN} of the adjusted Rand index.\n\n{markdown(lines)}"


def distance_table(rows: pd.DataFrame) -> str:
    """How far each model is from the best baseline of the set, with the number of clusters given."""
    ari = per_set(rows, "ari")
    baselines = [m for m in (*GIVEN[:3], *SEARCHED) if m in ari.columns]
    ours = [m for m in OURS if m in ari.columns]
    best = ari[baselines].max(axis=1)
    lines = [["data", "best baseline", "its ARI", *map(name_of, ours)]]
    for data in ari.index:
        differences = [ari.loc[data, method] - best[data] for method in ours]
        cells = ["-" if np.isnan(value) else f"{value:+.3f}" for value in differences]
        lines.append([data, name_of(ari.loc[data, baselines].idxmax()), f"{best[data]:.3f}", *cells])
    return markdown(lines)


def left_out_table(rows: pd.DataFrame) -> str:
    """What choosing among the models by some sets is worth on the others."""
    ari = per_set(rows, "ari")
    lines = [["chosen among", "sets", "best mean", "left-out mean"]]
    for text, methods in (
        ("our models, K given", OURS),
        ("our models, K open", tuple(f"{key}{OPEN}" for key in OURS)),
        ("baselines, K given or searched", (*GIVEN[:3], *SEARCHED)),
        ("baselines, K open", ESTIMATED[:3]),
    ):
        scores = ari[[m for m in methods if m in ari.columns]].dropna(axis=1, how="all").dropna()
        if scores.shape[1] < 2 or len(scores) < 4:
            continue
        mean, sd = left_out(scores)
        lines.append([text, f"{len(scores)}", f"{scores.mean().max():.3f}", f"{mean:.3f} ± {sd:.3f}"])
    return (
        "The best of several by the mean over a random half of the sets, judged on the other half: mean and spread "
        f"over {N_SPLITS} fixed halves.\n\n{markdown(lines)}"
    )


def agreement_table(rows: pd.DataFrame) -> str:
    """Agreement of seeds, mean over the sets that a method was measured on."""
    lines = [["method", "K", "sets", "seeds", "pairwise ARI", "least pair", "unstable cells"]]
    for told, methods in TOLD.items():
        for method in methods:
            found = rows[rows.method == method]
            if len(found):
                lines.append(
                    [
                        name_of(method),
                        told.split()[0],
                        f"{len(found)}",
                        f"{found.n_seeds.min()}",
                        f"{found.pairwise_ari.mean():.3f}",
                        f"{found.least_ari.min():.3f}",
                        f"{found.unstable.mean():.1%}",
                    ]
                )
    return markdown(lines)


def cpu_seconds(rows: pd.DataFrame) -> pd.DataFrame:
    """Fit and clustering of the first seed: only there were scVI and the models measured in one run."""
    rows = rows[rows.seed == rows.seed.min()]
    return per_set(rows.assign(cpu=rows.fit_cpu_s + rows.cluster_cpu_s), "cpu")


def seconds_table(rows: pd.DataFrame) -> str:
    cpu = cpu_seconds(rows)
    methods = [m for m in (*GIVEN, SCVI) if m in cpu.columns]
    lines = [["data", *map(name_of, methods)]]
    for data in cpu.index:
        lines.append([data, *("-" if np.isnan(value) else f"{value:.1f}" for value in cpu.loc[data, methods])])
    return markdown(lines)


def ratio_table(rows: pd.DataFrame) -> str:
    """How many times the CPU seconds of a method scVI + Leiden takes."""
    cpu = cpu_seconds(rows)
    if SCVI not in cpu.columns:
        return "scVI was not measured."
    ours = [method for method in OURS if method in cpu.columns]
    ratio = cpu[ours].rdiv(cpu[SCVI], axis=0)[cpu[SCVI].notna()]
    lines = [["data", *map(name_of, ours)]]
    for data in ratio.index:
        lines.append([data, *("-" if np.isnan(value) else f"{value:.1f}" for value in ratio.loc[data])])
    lines.append(["*least*", *(f"{ratio[method].min():.1f}" for method in ours)])
    return markdown(lines)


def clusters_table(rows: pd.DataFrame) -> str:
    found, types = per_set(rows, "n_clusters"), rows.groupby("data").n_types.first()
    methods = [m for m in ESTIMATED if m in found.columns]
    lines = [["data", "types in the labels", *map(name_of, methods)]]
    for data in found.index:
        cells = ["-" if np.isnan(value) else f"{value:.1f}" for value in found.loc[data, methods]]
        lines.append([data, f"{types[data]}", *cells])
    error = (found[methods].sub(types, axis=0).div(types, axis=0)).abs().median()
    lines.append(["*median relative error*", "", *("-" if np.isnan(value) else f"{value:.2f}" for value in error)])
    return markdown(lines)


def summary_table(rows: pd.DataFrame) -> str:
    """One row a method: means over the sets of the development and over the new ones."""
    ari, nmi = per_set(rows, "ari"), per_set(rows, "nmi")
    groups = mean_rows(ari)[1:]
    lines = [["method", "number of clusters", *(f"ARI, {text}" for text, _ in groups), "NMI", "seeds"]]
    seeds = rows.groupby(["method", "data"]).seed.nunique()
    for told, methods in TOLD.items():
        for method in (m for m in methods if m in ari.columns):
            scores = [average(ari.loc[sets, method]) for _, sets in groups]
            if set(scores) == {"-"}:
                continue
            name = name_of(method) + (f" ({LABELS_ARE[method]})" if method in LABELS_ARE else "")
            lines.append([name, told.split()[0], *scores, average(nmi[method]), f"{seeds[method].min()}"])
    return markdown(lines)


MARKS = {
    f"{stem}+{how}": Mark(f"{BASELINES[stem]} + {CLUSTERERS[how]}", GREY, marker, filled=how != "leiden-k")
    for how in ("leiden", "kmeans", "leiden-k")
    for stem, marker in (("pca", "o"), ("harmony", "s"), ("scvi", "^"))
} | {
    f"{system.key}{told}": Mark(system.name, MODEL_COLORS[system.key], "D") for system in SYSTEMS for told in ("", OPEN)
}


def lead(rows: pd.DataFrame) -> Lead:
    """Every set with one mark a method, and what the model that was measured on most sets gains and loses."""
    ari = per_set(rows, "ari")
    ari = ari[[method for method in MARKS if method in ari]]
    text = " ".join([open_text(ari), gain_text(ari), spread_text(ari), loss_text(ari)])
    for how in CLUSTERERS:  # no batches: Harmony would hide PCA, which it is
        if {f"harmony+{how}", f"pca+{how}"} <= set(ari):
            ari[f"harmony+{how}"] = ari[f"harmony+{how}"].mask(ari[f"harmony+{how}"] == ari[f"pca+{how}"])
    figure, axes = panels(2, height=0.24 * len(ari) + 1.7)
    for ax, methods, title in (
        (axes[0], ESTIMATED, "K not told (grey: Leiden at its default)"),
        (axes[1], (*GIVEN, *SEARCHED), "K told (Leiden: searched)"),
    ):
        dots(ax, ari[[m for m in ari if m in methods]], MARKS, "adjusted Rand index")
        titled(ax, title)
        if n_new := sum(data in NEW_DATASETS for data in ari.index):
            ax.axhline(n_new - 0.5, color="#999999", linewidth=0.8, linestyle=":")
    axes[1].set_yticklabels([])
    legend_below(figure, axes[1])  # on the left grey marks have the same shapes, all of Leiden
    alt = "Adjusted Rand index of each data set by each method, one mark a method"
    return Lead(figure, alt, f"{text} The dotted line parts the sets of the development (above) from the new ones.")


def open_text(ari: pd.DataFrame) -> str:
    models = [m for m in ESTIMATED if m.endswith(OPEN) and m in ari and ari[m].notna().all()]
    means = ari[[m for m in ESTIMATED if m in ari and ari[m].notna().all()]].mean()
    if not models:
        return ""
    best = means.drop(models).idxmax()
    parts = []
    for model in models:
        gained, lost = gained_and_lost(ari[model], ari[best])
        parts.append(f"`{name_of(model)}` {means[model]:.3f} (better by over {MARGIN} on {gained}, worse on {lost})")
    return (
        f"Not told the number of clusters, which is what users have, on {len(ari)} sets: {', '.join(parts)}; the best "
        f"baseline at its default, {name_of(str(best))}, {means[best]:.3f}."
    )


def widest(ari: pd.DataFrame) -> str:
    """The model that was measured on most sets."""
    return str(ari[[key for key in OURS if key in ari]].notna().sum().idxmax())


def gain_text(ari: pd.DataFrame) -> str:
    model, baselines = widest(ari), [m for m in (*GIVEN[:3], *SEARCHED) if m in ari]
    measured = ari[ari[model].notna()]
    means = measured[[m for m in baselines if measured[m].notna().all()]].mean()
    gained, lost = gained_and_lost(measured[model], measured[baselines].max(axis=1))
    return (
        f"`{name_of(model)}`, told the number of clusters, has a mean adjusted Rand index of "
        f"{measured[model].mean():.3f} on {len(measured)} sets; the best baseline by its mean, "
        f"{name_of(str(means.idxmax()))}, has {means.max():.3f}. Against the *best* baseline of each set, chosen with "
        f"the labels, it gains more than {MARGIN} on {gained} and loses as much on {lost}."
    )


def spread_text(ari: pd.DataFrame) -> str:
    ours = ari[[key for key in OURS if key in ari]].dropna()
    means = ours.mean()
    return (
        f"On the {len(ours)} sets that all five models were measured on, their means lie between {means.min():.3f} and "
        f"{means.max():.3f}."
    )


def loss_text(ari: pd.DataFrame) -> str:
    model, baselines = widest(ari), [m for m in (*GIVEN[:3], *SEARCHED) if m in ari]
    difference = (ari[model] - ari[baselines].max(axis=1)).dropna().sort_values()
    lost = [f"`{data}` ({value:+.3f})" for data, value in difference[difference < -MARGIN].items()]
    return f"**What is lost:** {', '.join(lost) or 'nothing beyond that margin'}."


def write_summary(path: Path, rows: pd.DataFrame) -> None:
    """Put the summary between its two marks in the README."""
    between(path, SUMMARY_START, SUMMARY_END, summary_table(rows))
