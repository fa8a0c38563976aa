"""What the gates of IDC are worth: known markers, faithfulness, global gates, stability over seeds.

    python benchmarks/gates.py --seeds 0-4                 # everything that is missing; one fit a data set and seed
    python benchmarks/gates.py --data pbmc3k_full          # a part of it
    python benchmarks/gates.py --seeds 0 --again           # measure anew, also the labels
    python benchmarks/gates.py --size                      # the published size, and memory of the results
    python benchmarks/gates.py --table                     # only rewrite the page

Each fit also adds its labels to `results/quality.csv` where `quality.py` has not measured them yet, or with `--again`.
"""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

from _methods import DATASETS, FAMILIES, Timer, fit_model, labels_of, load  # first: it sets the number of threads

# isort: split
import numpy as np
import pandas as pd
from _charts import BLUE, GREY, ORANGE, Lead, bars, panels
from _own_process import in_own_process, peak_mib
from _report import HERE, Report, markdown, write_csv
from _threads import one_thread
from anndata import AnnData
from quality import REPORT as QUALITY
from quality import missing, rows_of

REPORT = Report(__file__, ("data", "seed"), seeds="0-4", files="gates*.csv")
STABILITY, SIZE = (REPORT.csv.with_name(f"gates_{what}.csv") for what in ("stability", "size"))
CACHE = HERE / ".cache" / "gates"  # labels and first genes of each fit, from which the stability follows

SIMULATED = "simulated"
N_MARKERS = 40
N_TOP = 20

# Genes that are removed from a cell, or left: shares of those that it expresses, and a number.
REMOVED = (0.05, 0.1, 0.2, 20)

# Ten canonical markers of the types in the labels of pbmc3k_full; two of them are pairs of which one is enough.
CANONICAL = (
    ("B", ("MS4A1",)),
    ("B", ("CD79A",)),
    ("NK", ("NKG7",)),
    ("NK", ("GNLY",)),
    ("CD14+ Mono", ("LYZ",)),
    ("FCGR3A+ Mono", ("FCGR3A",)),
    ("CD14+ Mono", ("CD14", "S100A9")),
    ("Platelet", ("PPBP",)),
    ("CD8 T", ("CD8A",)),
    ("CD4 T", ("IL7R", "CD3D")),
)


# ---- measuring -------------------------------------------------------------------------------------------------------


def data_of(name: str) -> AnnData | None:
    if name != SIMULATED:
        return load(name)
    import scdeepclust as sdc

    return sdc.datasets.simulate_counts(
        2000, 2000, n_clusters=6, n_markers=N_MARKERS, marker_log_fold_change=1.5, depth=600, seed=3
    )


def measure(adata: AnnData, name: str, seed: int, again: bool) -> dict:
    import scdeepclust as sdc

    truth = adata.obs["cell_type"].astype(str).to_numpy()
    k = len(np.unique(truth))
    model, fit = fit_model("IDC", adata, k, seed)
    if name != SIMULATED:
        wanted = missing(FAMILIES["idc"][1], name, seed, again)
        rows = rows_of(truth, name, seed, wanted, labels_of(model, "idc", k, seed, fit, wanted))
        if len(rows):
            QUALITY.append(rows)
    model.write_back(model.adata, confidence="posterior")
    table = sdc.tl.rank_gates(model.adata)
    labels = np.asarray(model.predict())
    row = {"data": name, "seed": seed, "n_genes": adata.n_vars, "n_clusters": k}
    row |= sdc.tl.score_gates(model, seed=seed).drop("seed_jaccard").to_dict()
    n_open = model.adata.obs["idc_n_genes"].groupby(labels).mean()
    row |= {"largest_share_open": n_open.max() / adata.n_vars}
    curves = sdc.tl.gate_curves(model, REMOVED, seed=seed)
    row |= {f"{column}_{n:g}": curves.loc[n, column] for n in curves.index for column in curves}
    row |= linear(adata, table, labels, truth, seed)
    if name == SIMULATED:
        row |= known_markers(table, adata, labels, truth)
    if name == "pbmc3k_full":
        row |= canonical(table, labels, truth)
    CACHE.mkdir(parents=True, exist_ok=True)
    first = table[table["rank"] <= N_TOP].groupby("cluster", observed=True)["gene"].apply(list).to_dict()
    (CACHE / f"{name}-{seed}.json").write_text(json.dumps({"labels": labels.tolist(), "first": first}))
    # the classifier behind the global gates has not seen the cells it is judged on
    model.recluster(k, train_size=0.8, early_stopping=False, check_val_every_n_epoch=1, **QUIET)
    gates = model.get_global_gates().to_numpy()
    row |= {
        "global_share_open": (gates > 0).mean(),
        "global_accuracy": model.history["global_accuracy_validation"].iloc[-1, 0],
    }
    return row


QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def linear(adata: AnnData, table: pd.DataFrame, labels: np.ndarray, truth: np.ndarray, seed: int) -> dict:
    """Accuracy (five folds) of a linear classifier on the first gated genes, and on as many highly variable genes."""
    import scanpy as sc
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    if "counts" in adata.layers and adata.X.max() > 20:  # the simulation: counts in X
        adata = AnnData(adata.layers["counts"].copy(), var=adata.var[[]])
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
    dispersion = sc.pp.highly_variable_genes(adata, n_top_genes=50, inplace=False)["dispersions_norm"].to_numpy()
    by_dispersion = np.argsort(-np.nan_to_num(dispersion, nan=-np.inf), kind="stable")
    result = {}
    for n in (2, 5):
        genes = adata.var_names.get_indexer(table.loc[table["rank"] <= n, "gene"].unique())
        for name, chosen in {"gates": genes, "hvg": by_dispersion[: len(genes)]}.items():
            x = adata.X[:, chosen].toarray()
            for target, y in {"types": truth, "labels": labels}.items():
                model = make_pipeline(StandardScaler(), LinearSVC(C=0.1, random_state=seed))
                result[f"linear_{target}_{name}_{n}"] = cross_val_score(model, x, y, cv=5).mean()
    return result


def known_markers(table: pd.DataFrame, adata: AnnData, labels: np.ndarray, truth: np.ndarray) -> dict:
    """Of the cluster that is mostly one type: precision of as many genes as there are markers, and AUROC."""
    from sklearn.metrics import roc_auc_score

    majority = pd.crosstab(labels, truth).idxmax(axis=1)
    precision, auroc = [], []
    for cluster, rows in table.groupby("cluster", observed=True):
        is_marker = adata.var["marker_of"].loc[rows["gene"]].eq(majority[cluster]).to_numpy()
        precision.append(is_marker[: is_marker.sum()].mean())
        auroc.append(roc_auc_score(is_marker, rows["contribution"]))
    return {"marker_precision": np.mean(precision), "marker_auroc": np.mean(auroc)}


def canonical(table: pd.DataFrame, labels: np.ndarray, truth: np.ndarray) -> dict:
    """How many canonical markers are among the first genes of a cluster that is mostly their type, and why not all."""
    majority = pd.crosstab(labels, truth).idxmax(axis=1)
    first = table[table["rank"] <= N_TOP]
    missing = []
    for cell_type, genes in CANONICAL:
        clusters = majority.index[majority.str.contains(cell_type, regex=False)]
        if not first.loc[first["cluster"].isin(clusters), "gene"].isin(genes).any():
            known = table["gene"].isin(genes).any()
            missing.append("/".join(genes) + ("" if known else " (not a selected gene)"))
    return {"canonical": len(CANONICAL) - len(missing), "canonical_missing": ", ".join(missing)}


def stability(datasets: list[str]) -> None:
    """Jaccard index of the first genes of clusters matched by their cells, over all pairs of seeds."""
    from scipy.optimize import linear_sum_assignment

    rows = []
    for name in datasets:
        fits = [json.loads(path.read_text()) for path in sorted(CACHE.glob(f"{name}-*.json"))]
        values = []
        for a, b in itertools.combinations(fits, 2):
            counts = pd.crosstab(np.array(a["labels"]), np.array(b["labels"]))
            for i, j in zip(*linear_sum_assignment(counts.to_numpy(), maximize=True), strict=True):
                one, two = set(a["first"][counts.index[i]]), set(b["first"][counts.columns[j]])
                values.append(len(one & two) / len(one | two))
        if values:
            rows.append({"data": name, "seeds": len(fits), "pairs": len(values), "median_jaccard": np.median(values)})
    if rows:
        write_csv(STABILITY, pd.DataFrame(rows), float_format="%.4f")


def run(datasets: list[str], seeds: list[int], again: bool) -> None:
    for seed in seeds:
        for name in datasets:
            if REPORT.has(data=name, seed=seed) and not again:
                continue
            adata = data_of(name)
            if adata is None:
                continue
            row = measure(adata, name, seed, again)
            REPORT.append(pd.DataFrame([row]).round(4))
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    stability([SIMULATED, *DATASETS])


# ---- size ------------------------------------------------------------------------------------------------------------


def size() -> None:
    """Seconds an epoch at the published size, and memory for the results of 100,000 cells. Each in a process."""
    rows = [in_own_process(task) for task in (published_size, results_size)]
    print(*rows, sep="\n", flush=True)
    write_csv(SIZE, pd.DataFrame(rows), float_format="%.3f")


def published_size() -> dict:
    import scdeepclust as sdc

    one_thread()
    adata = sdc.datasets.simulate_counts(20_742, 17_126, n_clusters=2, n_markers=100, depth=1500, seed=0)
    del adata.layers["counts"]
    sdc.model.IDC.setup_anndata(adata)
    model = sdc.model.IDC(adata, n_clusters=2)
    with Timer() as timer:
        model.train(pretrain_epochs=2, max_epochs=0, batch_size=256, **QUIET)
    epochs = sum(n for _, n in model.phases_)
    return {
        "what": "20,742 x 17,126, K = 2, batches of 256", "seconds": timer.wall / epochs,
        "peak_gib": peak_mib() / 1024, "gib_above": np.nan,
    }  # fmt: skip


def results_size() -> dict:
    import scdeepclust as sdc

    one_thread()
    adata = sdc.datasets.simulate_counts(100_000, 2000, n_clusters=8, seed=0)
    del adata.layers["counts"]
    sdc.model.IDC.setup_anndata(adata)
    model = sdc.model.IDC(adata, n_clusters=8)
    model.train(pretrain_epochs=1, max_epochs=0, **QUIET)
    before = current_gib()
    start = time.perf_counter()
    reset_peak()
    model.write_back(confidence="posterior")
    return {
        "what": "write_back of 100,000 x 2,000", "seconds": time.perf_counter() - start,
        "peak_gib": status_gib("VmHWM"), "gib_above": status_gib("VmHWM") - before,
    }  # fmt: skip


def status_gib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 2**20


def current_gib() -> float:
    return status_gib("VmRSS")


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


# ---- page ------------------------------------------------------------------------------------------------------------

SCORES = {
    "n_open": "open genes a cell",
    "share_open": "share",
    "largest_share_open": "share in the cluster with most",
    "diversity": "diversity",
    "faithfulness": "faithfulness",
    "uniqueness": "uniqueness",
    "lipschitz": "Lipschitz",
    "generalisability": "generalisability",
    "global_share_open": "global gates open",
    "global_accuracy": "accuracy behind them",
}
MARKERS = {"marker_precision": "precision", "marker_auroc": "AUROC"}
INSERTION = {f"insertion_{name}_0.1": name for name in ("gates", "random", "hvg")}
LINEAR = {
    f"linear_{target}_{name}_{n}": f"{target}, {n} a cluster, {name}"
    for target in ("types", "labels")
    for n in (2, 5)
    for name in ("gates", "hvg")
}


def table(rows: pd.DataFrame, columns: dict[str, str]) -> str:
    """Means over seeds, a line a data set, and the mean of these."""
    return lines_of(rows, mean_rows(rows, list(columns)), list(columns.values()))


def mean_rows(rows: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    order = [name for name in (SIMULATED, *DATASETS) if name in set(rows["data"])]
    means = rows.groupby("data")[columns].mean().loc[order]
    means.loc["mean of the real data"] = means.drop(index=SIMULATED, errors="ignore").mean()
    return means


def lines_of(rows: pd.DataFrame, means: pd.DataFrame, titles: list[str]) -> str:
    seeds = rows.groupby("data").size()
    lines = [["data", "seeds", *titles]]
    for name, values in means.iterrows():
        cells = [f"{value:.0f}" if value >= 10 else f"{value:.3f}" for value in values]
        lines.append([name, str(seeds.get(name, "")), *cells])
    return markdown(lines)


def deletion_table(rows: pd.DataFrame) -> str:
    """Labels that change, and how many times as many of them behind gates as at random."""
    # the ratio is that of the mean shares: single shares at random are a few cells of 1000
    means = mean_rows(rows, [f"deletion_{name}_{n:g}" for n in REMOVED for name in ("gates", "random")])
    lines = [["data", *(f"{n:.0%} of its genes" if n < 1 else f"{n} genes" for n in REMOVED)]]
    for name, row in means.iterrows():
        pairs = [(row[f"deletion_gates_{n:g}"], row[f"deletion_random_{n:g}"]) for n in REMOVED]
        # of 1000 cells
        lines.append([str(name), *(f"{gates:.3f} / {r:.3f} = {gates / max(r, 1e-3):.1f}" for gates, r in pairs)])
    return f"By gate, at random, and how many times as many.\n\n{markdown(lines)}"


def lead(rows: pd.DataFrame) -> Lead:
    """How many labels change when a tenth of the genes of a cell is removed: by gates, by variance, at random."""
    names = {"gates": "by gate", "hvg": "by dispersion", "random": "at random"}
    means = mean_rows(rows, [f"deletion_{name}_0.1" for name in names]).set_axis(list(names.values()), axis=1)
    figure, (ax,) = panels(height=0.42 * len(means) + 0.9)
    label = "share of labels that change without a tenth of the genes of the cell (blue: by gate)"
    bars(ax, means, (BLUE, ORANGE, GREY), label)
    real, open_ = means.loc["mean of the real data"], rows[rows["data"] != SIMULATED]
    least = (means["by gate"] / means["at random"].clip(lower=1e-3)).drop("mean of the real data")
    text = f"""\
Labels are read from {open_.share_open.mean():.1%} of the genes of a cell on average. Without the tenth of the genes
that its gates name,
{real["by gate"]:.1%} of the labels change; without as many at random {real["at random"]:.1%}, without those of
highest dispersion (orange) {real["by dispersion"]:.1%}. **What
is lost:** the ratio is only {least.min():.1f} on `{least.idxmin()}`, and which of several genes that say the same is
opened may differ between fits."""
    return Lead(figure, "Bars of the share of labels that change when genes are removed, by data set", text)


def halves(columns: dict[str, str]) -> list[dict[str, str]]:
    """The columns of a table that would be too wide for a page, in two."""
    items = list(columns.items())
    middle = (len(items) + 1) // 2
    return [dict(items[:middle]), dict(items[middle:])]


def write_page() -> None:
    if not REPORT.csv.exists():
        return
    rows = REPORT.read()
    parts = [HEAD, "## Scores of the explanations", *(table(rows, columns) for columns in halves(SCORES))]
    parts += ["## Share of labels that change when genes of a cell are removed", deletion_table(rows)]
    parts += ["## Share of labels that stay when only a tenth of the genes of a cell are left", table(rows, INSERTION)]
    parts += ["## Accuracy of a linear classifier, five folds", table(rows, LINEAR)]
    simulated = rows[rows["data"] == SIMULATED]
    if len(simulated):
        parts += ["## Known markers of simulated clusters", table(simulated, MARKERS).rsplit("\n", 1)[0]]
    pbmc = rows[rows["data"] == "pbmc3k_full"].sort_values("seed")
    if len(pbmc):
        lines = [["seed", "of ten", "missing"]]
        lines += [[str(r.seed), f"{r.canonical:.0f}", str(r.canonical_missing)] for r in pbmc.itertuples()]
        parts += [f"## Canonical markers among the first {N_TOP} genes of their cluster, pbmc3k_full", markdown(lines)]
    if STABILITY.exists():
        found = pd.read_csv(STABILITY)
        lines = [["data", "seeds", "median Jaccard index"]]
        lines += [[r.data, str(r.seeds), f"{r.median_jaccard:.3f}"] for r in found.itertuples()]
        parts += [f"## The first {N_TOP} genes of a cluster over seeds", markdown(lines)]
    if SIZE.exists():
        lines = [["what", "seconds (an epoch of training; the whole call)", "peak GiB", "GiB above the state before"]]
        for r in pd.read_csv(SIZE).itertuples():
            above = "-" if np.isnan(r.gib_above) else f"{r.gib_above:.2f}"
            lines.append([r.what, f"{r.seconds:.1f}", f"{r.peak_gib:.2f}", above])
        parts += ["## Size", markdown(lines)]
    REPORT.write("Gates of IDC", lead(rows), *parts, rows=rows)


HEAD = f"""\
Same data, genes and numbers of clusters as for the [label quality](quality.md), one default configuration; means over
seeds. What the scores mean is said by `tl.score_gates`, what deletion and insertion mean by `tl.gate_curves`. Genes of
a cluster are those of `tl.rank_gates`. "Its genes" are those that a cell expresses: 20 of 22 (worm_neuron) is all of a
cell, 20 of 876 (sc_mixology_cellines) nothing.

Behind the global gates, a linear classifier is trained on 80 % of the cells and judged on the others; it sees every
cell through the gates of every cluster. The other linear classifiers, with a table of their own, get the first 2 or 5
gated genes of each cluster, or as many genes of highest normalised dispersion; they predict the known types or the
labels of the model.

`{SIMULATED}`: 2000 cells x 2000 genes, 6 clusters with {N_MARKERS} markers each, natural-log fold change about 1.5.
Precision is that of the first {N_MARKERS} genes of a cluster."""


def main() -> None:
    parser = REPORT.parser(__doc__, data=(SIMULATED, *DATASETS))
    parser.add_argument("--size", action="store_true", help="measure time and memory instead")
    arguments = REPORT.parse(parser)
    if arguments.size:
        size()
    elif not arguments.table:
        run(arguments.data, arguments.seeds, arguments.again)
    write_page()


if __name__ == "__main__":
    main()
