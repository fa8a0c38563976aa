"""How often one population is split, and how often two are found -> one CSV, then one Markdown page.

Counts are negative binomial. One population has independent genes, or up to five continuous factors, each on 15 % of
the genes, normal or uniform in the cells, so that cells are a cloud, a ridge or a sheet, but never two groups. Two
populations differ in some genes beside that. Each set has its own number of cells, batches and counts a cell. Models
are left to find the number of clusters; PCA with Leiden at its default is beside them. Real single populations are cell
lines, sorted cells and the largest types of labelled sets.

    python benchmarks/one_population.py                     # everything that is missing
    python benchmarks/one_population.py --kinds one --sets 0-99 --models gmvae
    python benchmarks/one_population.py --table             # only write the page
"""

from __future__ import annotations

from _methods import components, fit_model, leiden_default, load  # first: it sets the number of threads

# isort: split
import numpy as np
import pandas as pd
import scanpy as sc
from _charts import GREY, MODEL_COLORS, Lead, bars, panels
from _report import Report, markdown, number_list
from anndata import AnnData
from scipy.sparse import csr_matrix

from scdeepclust.model._systems import SYSTEMS

REPORT = Report(__file__, ("kind", "set", "model"), packages=("scanpy",))

NAMES = {system.key: system.name for system in SYSTEMS}
KINDS = ("one", "two", "rare", "real")
N_GENES = 1500
EFFECTS = (0.25, 0.5, 1.0, 1.5, 2.0)  # natural log fold changes
N_MARKERS = 30
RARE = 0.01

# Single populations of real sets: cell lines, sorted cells, and the largest types of sets not labelled by Leiden.
REAL = {
    "sc_mixology_cellines": 5,
    "zheng_sorted_500": 3,
    "kang_muscat": 3,
    "baron_mouse": 3,
    "onek1k_4types": 3,
}


def simulated(kind: str, number: int, max_factors: int = 5) -> tuple[AnnData, dict[str, object]]:
    """Counts, with what they were drawn from; the same for the same number."""
    rng = np.random.default_rng([KINDS.index(kind), number])
    n = int(rng.choice([100, 200, 300, 600, 1200, 2500, 5000] if kind == "one" else [600, 1200, 2500]))
    factors, batches = int(rng.integers(0, max_factors + 1)), int(rng.integers(1, 5))
    depth, uniform = float(rng.choice([300, 1500, 5000])), bool(rng.integers(2))
    effect = 0.0 if kind == "one" else EFFECTS[number % len(EFFECTS)]
    log_mean = rng.normal(0, 1.2, N_GENES)
    weights = np.where(rng.random((factors, N_GENES)) < 0.15, rng.normal(0, 0.5, (factors, N_GENES)), 0.0)
    z = rng.uniform(-(3**0.5), 3**0.5, (n, factors)) if uniform else rng.normal(size=(n, factors))
    batch = rng.integers(0, batches, n)
    of_batch = rng.normal(0, 0.3, (batches, N_GENES)) if batches > 1 else np.zeros((1, N_GENES))
    second = rng.random(n) < (RARE if kind == "rare" else 0.5 if kind == "two" else 0.0)
    if kind == "rare":
        second[: max(10 - int(second.sum()), 0)] = True
    markers = np.zeros(N_GENES)
    markers[rng.choice(N_GENES, N_MARKERS, replace=False)] = effect
    rates = np.exp(log_mean + z @ weights + of_batch[batch] + second[:, None] * markers)
    rates *= depth / rates.sum(axis=1, keepdims=True) * np.exp(rng.normal(0, 0.3, (n, 1)))
    counts = rng.poisson(rng.gamma(2.0, rates / 2.0)).astype(np.float32)
    counts = counts[:, counts.sum(axis=0) > 0]
    adata = AnnData(csr_matrix(counts), layers={"counts": csr_matrix(counts)})
    adata.obs["batch"], adata.obs["cell_type"] = batch.astype(str), second.astype(int).astype(str)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    made = {"cells": n, "factors": factors, "batches": batches, "depth": depth, "uniform": uniform, "effect": effect}
    return adata, made


def real(number: int) -> tuple[AnnData, dict[str, object]] | None:
    """One of the real populations; None if its file is missing."""
    populations = [(data, place) for data, n in REAL.items() for place in range(n)]
    data, place = populations[number]
    if (adata := load(data)) is None:
        return None
    name = adata.obs["cell_type"].value_counts().index[place]
    adata = adata[adata.obs["cell_type"] == name].copy()
    batches = adata.obs["batch"].nunique() if "batch" in adata.obs else 1
    return adata, {"cells": adata.n_obs, "batches": batches, "name": f"{data}: {name}"}


def measure(adata: AnnData, model: str) -> dict[str, object]:
    from sklearn.metrics import adjusted_rand_score

    if model == "pca+leiden":
        labels = leiden_default(components(adata, 0), 0, 0)
    else:
        # the number is found before the clustering phase, which is left out
        labels = fit_model(NAMES[model], adata, None, 0, train={"max_epochs": 0})[0].predict()
    truth = adata.obs["cell_type"].astype(str)
    return {"n_clusters": len(np.unique(labels)), "ari": round(float(adjusted_rand_score(truth, labels)), 4)}


def interval(found: int, n: int) -> str:
    """Share with its exact 95 % interval."""
    from scipy.stats import binomtest

    low, high = binomtest(found, n).proportion_ci()
    return f"{found / n:.3f} ({low:.3f} to {high:.3f}), {n} sets"


def lead(rows: pd.DataFrame) -> Lead:
    """How often one population is split, by what it is made of."""
    one = rows[rows.kind == "one"]
    groups = {"all": one} | {f"{value:g} factors": part for value, part in one.groupby("factors")}
    groups |= {f"{value:g} counts a cell": part for value, part in one.groupby("depth")}
    shares = pd.DataFrame({name: part.groupby("model")["split"].mean() for name, part in groups.items()}).T
    shares = shares[list(one.model.unique())]
    figure, (ax,) = panels(height=0.34 * len(shares) + 0.9)
    label = "share of single populations that are split (grey: PCA and Leiden at its default)"
    bars(ax, shares, [MODEL_COLORS.get(model, GREY) for model in shares], label)
    own = one[one.model == "gmvae"]
    by_factors = own.groupby("factors")["split"].mean()
    two = rows[(rows.kind == "two") & (rows.model == "gmvae")]
    strong = two[two.effect == two.effect.max()]
    text = f"""\
`GMVAE` with the number of clusters open splits {own.split.mean():.1%} of {len(own)} simulated single populations, PCA
with Leiden at its default
{shares["pca+leiden"]["all"]:.0%}. The share is highest, {by_factors.max():.1%}, with {by_factors.idxmax():g}
continuous factors. **What is lost:**
power: two populations of equal size, {N_MARKERS} genes apart by a log fold change of {two.effect.max():g}, are found
in {(strong.ari > 0.5).mean():.0%} of {len(strong)} sets."""
    return Lead(figure, "Bars of the share of single populations that are split", text)


def write_page(rows: pd.DataFrame) -> None:
    if rows.empty:
        print("no rows yet, no page written")
        return
    rows = rows.assign(split=rows.n_clusters > 1)
    one, parts = rows[rows.kind == "one"], []
    head = ["", *one.model.unique()]

    def shares(table: pd.DataFrame, name: str) -> list[str]:
        of_model = [table[table.model == model] for model in head[1:]]
        return [name, *(interval(int(part.split.sum()), len(part)) if len(part) else "" for part in of_model)]

    lines = [head, shares(one, "all")]
    for column, what in (
        ("factors", "factors"),
        ("batches", "batches"),
        ("depth", "counts a cell"),
        ("cells", "cells"),
    ):
        lines += [shares(part, f"{value:g} {what}") for value, part in one.groupby(column)]
    lines += [shares(part, "uniform" if value else "normal") for value, part in one[one.factors > 0].groupby("uniform")]
    parts += ["## Share of single populations that are split, simulated", markdown(lines)]
    for kind, title in (("two", "Two populations of equal size"), ("rare", f"A second population of {RARE:.0%}")):
        table = rows[rows.kind == kind]
        if len(table):
            found = table.assign(found=table.ari > 0.5).groupby(["effect", "model"])["found"].mean().unstack()
            number = table.groupby(["effect", "model"])["n_clusters"].mean().unstack()
            body = [
                [f"{effect:g}", *(f"{found.loc[effect, m]:.2f} ({number.loc[effect, m]:.1f})" for m in found)]
                for effect in found.index
            ]
            parts += [
                f"## {title}",
                f"Share of the sets where the labels are those of the populations (adjusted Rand index above .5), and "
                f"the mean number of clusters, by the log fold change in {N_MARKERS} of {N_GENES:,} genes.",
                markdown([["effect", *found], *body]),
            ]
    table = rows[rows.kind == "real"]
    if len(table):
        wide = table.pivot_table(index=["name", "cells", "batches"], columns="model", values="n_clusters")
        body = [
            [*map(str, index), *(f"{v:g}" for v in row)] for index, row in zip(wide.index, wide.to_numpy(), strict=True)
        ]
        parts += ["## Clusters in real single populations", markdown([[*wide.index.names, *wide], *body])]
    REPORT.write("One population", lead(rows), __doc__.split("\n\n")[1], *parts, rows=rows)


def main() -> None:
    models = (*NAMES, "pca+leiden")
    parser = REPORT.parser(__doc__, kinds=KINDS, models=models)
    parser.add_argument("--sets", type=number_list, default="0-99", help="numbers of the simulated sets")
    arguments = REPORT.parse(parser)
    for kind in () if arguments.table else arguments.kinds:
        for number in range(sum(REAL.values())) if kind == "real" else arguments.sets:
            made = None
            for model in arguments.models:
                if REPORT.has(kind=kind, set=number, model=model) and not arguments.again:
                    continue
                made = made or (real(number) if kind == "real" else simulated(kind, number))
                if made is None:
                    break
                row = {"kind": kind, "set": number, "model": model} | made[1] | measure(made[0], model)
                REPORT.append(pd.DataFrame([row]))
                print({key: value for key, value in row.items() if key != "versions"}, flush=True)
    write_page(REPORT.read())


if __name__ == "__main__":
    main()
