"""The tables of `quality.py`: one a score, and the summary for the README."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from _methods import DATASETS, METHODS
from _report import markdown

from scdeepclust.model._systems import SYSTEMS

SCVI = "scvi+leiden-k"
OURS = tuple(system.key for system in SYSTEMS)

# What the labels of a model are, where its name does not say it.
LABELS_ARE = {"idc": "about 5 % of the genes open in a cell", "mfcvae": "main facet", "somvae": "merged nodes"}

# Rows of the summary, by the names a reader of the README knows.
SUMMARY = {
    "pca+kmeans": "PCA + k-means",
    "pca+leiden-k": "PCA + Leiden",
    "scvi+kmeans": "scVI + k-means",
    "scvi+leiden-k": "scVI + Leiden",
} | {
    system.key: f"`{system.name}`" + (f" ({LABELS_ARE[system.key]})" if system.key in LABELS_ARE else "")
    for system in SYSTEMS
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
