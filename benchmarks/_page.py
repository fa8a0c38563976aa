"""The Markdown page of `quality.py`: one table a score, computed from the rows of its CSV."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from _methods import DATASETS, METHODS, N_NEIGHBORS, N_PCS, N_RESTARTS, N_TOP_GENES

SCVI = "scvi+leiden-k"
OURS = ("scdeepcluster", "gmvae", "idc", "mfcvae", "somvae")

# Rows of the summary, by the names a reader of the README knows.
SUMMARY = {
    "pca+kmeans": "PCA + k-means",
    "pca+leiden-k": "PCA + Leiden",
    "scvi+kmeans": "scVI + k-means",
    "scvi+leiden-k": "scVI + Leiden",
    "scdeepcluster": "`SCDeepCluster`",
    "gmvae": "`GMVAE`",
    "idc": "`IDC` (about 5 % of the genes open in a cell)",
    "mfcvae": "`MFCVAE` (main facet)",
    "somvae": "`SOMVAE` (merged nodes)",
}
SUMMARY_START, SUMMARY_END = "<!-- written by benchmarks/quality.py -->", "<!-- end -->"


def pivot(rows: pd.DataFrame, value: str, how: str) -> pd.DataFrame:
    table = rows.pivot_table(index="method", columns="data", values=value, aggfunc=how)
    return table.reindex(
        index=[m for m in METHODS if m in table.index], columns=[d for d in DATASETS if d in table.columns]
    )


def score_table(rows: pd.DataFrame, value: str) -> str:
    mean, sd, count = (pivot(rows, value, how) for how in ("mean", "std", "count"))
    sd = sd.reindex(index=mean.index, columns=mean.columns)  # pandas drops what has one seed only
    k_is = rows.groupby("method").k.first()
    best = mean.max()
    lines = [["method", "K", "seeds", *mean.columns, "mean", "median sd"]]
    for method in mean.index:
        cells = []
        for data in mean.columns:
            if np.isnan(mean.loc[method, data]):
                cells.append("-")
                continue
            text = f"{mean.loc[method, data]:.3f}"
            text = f"**{text}**" if mean.loc[method, data] >= best[data] - 5e-4 else text
            cells.append(text if np.isnan(sd.loc[method, data]) else f"{text} ± {sd.loc[method, data]:.3f}")
        seen = count.loc[method].dropna()
        seeds = f"{seen.min():.0f}" if seen.min() == seen.max() else f"{seen.min():.0f}-{seen.max():.0f}"
        average, mark = mean.loc[method], ""
        pca = method.replace("harmony", "pca")
        if pca != method and pca in mean.index:  # without batches Harmony returns the components it was given
            average, mark = average.fillna(mean.loc[pca]), "*"
        # a mean over other data sets than the rest's would not compare
        average = "-" if average.isna().any() else f"{average.mean():.3f}{mark}"
        spread = sd.loc[method].dropna()
        lines.append([method, k_is[method], seeds, *cells, average, f"{spread.median():.3f}" if len(spread) else "-"])
    return markdown(lines)


def cpu_seconds(rows: pd.DataFrame) -> pd.DataFrame:
    """Fit and clustering of the first seed: only there were scVI and the models measured in one run."""
    rows = rows[rows.seed == rows.seed.min()]
    return pivot(rows.assign(cpu=rows.fit_cpu_s + rows.cluster_cpu_s), "cpu", "mean")


def seconds_table(rows: pd.DataFrame) -> str:
    mean = cpu_seconds(rows)
    lines = [["method", *mean.columns, "sum"]]
    for method in mean.index:
        complete = mean.loc[method].notna().all()
        cells = ["-" if np.isnan(value) else f"{value:.1f}" for value in mean.loc[method]]
        lines.append([method, *cells, f"{mean.loc[method].sum():.0f}" if complete else "-"])
    return markdown(lines)


def ratio_table(rows: pd.DataFrame) -> str:
    """How many times the CPU seconds of a method scVI + Leiden takes."""
    cpu = cpu_seconds(rows)
    if SCVI not in cpu.index:
        return "scVI was not measured."
    ratio = (cpu.loc[SCVI] / cpu).loc[[method for method in OURS if method in cpu.index]]
    lines = [["method", *ratio.columns, "least"]]
    for method in ratio.index:
        cells = ["-" if np.isnan(value) else f"{value:.1f}" for value in ratio.loc[method]]
        lines.append([method, *cells, f"{ratio.loc[method].min():.1f}"])
    return markdown(lines)


def summary_table(rows: pd.DataFrame) -> str:
    """One row a method that has all data sets: means over them."""
    cpu = cpu_seconds(rows)
    k_is = rows.groupby("method").k.first()
    seeds = pivot(rows, "ari", "count")
    ari, nmi, sd = pivot(rows, "ari", "mean"), pivot(rows, "nmi", "mean"), pivot(rows, "ari", "std")
    lines = [["method", "number of clusters", "mean ARI", "mean NMI", "median sd of ARI", "seeds", "CPU s, all sets"]]
    for method in ari.index:
        if method not in SUMMARY or ari.loc[method].isna().any():
            continue
        spread = sd.loc[method].median() if method in sd.index else np.nan
        lines.append(
            [
                SUMMARY[method],
                k_is[method],
                f"{ari.loc[method].mean():.3f}",
                f"{nmi.loc[method].mean():.3f}",
                "-" if np.isnan(spread) else f"{spread:.3f}",
                f"{seeds.loc[method].min():.0f}",
                f"{cpu.loc[method].sum():.0f}",
            ]
        )
    return markdown(lines)


def write_summary(path: Path, rows: pd.DataFrame) -> None:
    """Put the summary between its two marks in the README."""
    text = path.read_text()
    before, _, rest = text.partition(SUMMARY_START)
    _, _, after = rest.partition(SUMMARY_END)
    path.write_text(f"{before}{SUMMARY_START}\n{summary_table(rows)}\n{SUMMARY_END}{after}")
    print(f"wrote {path}")


def clusters_table(rows: pd.DataFrame) -> str:
    mean = pivot(rows, "n_clusters", "mean")
    types = rows.groupby("data").n_types.first()
    lines = [["method", *mean.columns], ["*types in the labels*", *(f"{types[data]}" for data in mean.columns)]]
    for method in mean.index:
        lines.append([method, *("-" if np.isnan(value) else f"{value:.1f}" for value in mean.loc[method])])
    return markdown(lines)


def markdown(lines: list[list[str]]) -> str:
    head, *body = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *body])


def write_page(path: Path, rows: pd.DataFrame) -> None:
    rows = rows[rows.method.isin(METHODS) & rows.data.isin(DATASETS)]
    if rows.empty:
        print("no rows yet, no page written")
        return
    used = sorted({word for text in rows.versions for word in text.split() if not word.startswith("scdeepclust")})
    page = f"""# Label quality

Written by `benchmarks/quality.py`; do not edit. Every row is in `benchmarks/results/quality.csv`.

Same cells and genes for all methods: {N_TOP_GENES} highly variable genes (flavour `seurat` on log1p of counts to
10,000 a cell; all genes where there are fewer). PCA and Harmony see each gene standardised (clipped at 10) and
{N_PCS} components, Leiden {N_NEIGHBORS} nearest neighbours; k-means has {N_RESTARTS} restarts; everything else is at
its default. scVI, Harmony and the models of this package are told the batches where the data have some. One thread.
Mean ± standard deviation over the seeds; the best mean of a column is bold.

The column K: *given* - the method was told the true number of types; *searched* - the resolution was searched until the
true number came out; *estimated* - the method chose the number itself. Rows with different K do not compare fairly.
Rows that end in `:start` are the labels from which the clustering phase of a model starts, `gmvae+auto` chooses the
number of clusters, `idc+kmeans` is k-means on the latent codes of `idc`, and `pca+leiden-k` is Leiden at the true
number of clusters. The mean marked * takes PCA + k-means where there are no
batches: Harmony has nothing to correct there.

## Adjusted Rand index

{score_table(rows, "ari")}

## Normalised mutual information

{score_table(rows, "nmi")}

## Accuracy after matching clusters to types one to one

{score_table(rows, "accuracy")}

## CPU seconds of one run (seed 0), fit and clustering

{seconds_table(rows)}

How many times as long scVI with Leiden at the true number of clusters (`{SCVI}`) takes, seed {rows.seed.min()}:

{ratio_table(rows)}

## Number of clusters, mean over seeds

{clusters_table(rows)}

Versions: {", ".join(used)}.
"""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)
    print(f"wrote {path}")
