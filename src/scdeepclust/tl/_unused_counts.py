"""What clusters are judged by: a bounded number of cells, and genes in counts that did not say who is where."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

# Cells by which clusters are judged; more would not change a separation.
MAX_CELLS = 20_000


def judging_cells(labels: np.ndarray) -> np.ndarray:
    """At most :data:`MAX_CELLS` rows, of every cluster its share, but no fewer than all of 200."""
    if len(labels) <= MAX_CELLS:
        return np.arange(len(labels))
    rng, chosen = np.random.default_rng(0), []
    for k in range(labels.max() + 1):
        rows = np.flatnonzero(labels == k)
        n = min(len(rows), max(200, MAX_CELLS * len(rows) // len(labels)))
        chosen.append(rng.choice(rows, n, replace=False))
    return np.sort(np.concatenate(chosen))


class GeneTest(NamedTuple):
    """Of each gene: log2 fold change, Welch's t statistic of log-normalised counts, and its p."""

    change: np.ndarray
    score: np.ndarray
    p: np.ndarray


def gene_test(counts: csr_matrix, side: np.ndarray) -> GeneTest:
    """Cells of a side against the others."""
    from scipy.stats import ttest_ind_from_stats

    if min(side.sum(), (~side).sum()) < 2:
        return GeneTest(np.zeros(counts.shape[1]), np.zeros(counts.shape[1]), np.ones(counts.shape[1]))
    totals = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1)
    logged = counts.astype(np.float64)
    logged.data = np.log1p(logged.data * np.repeat(1e4 / totals, np.diff(logged.indptr)))
    moments = []
    for rows in (side, ~side):
        part, n = logged[rows], int(rows.sum())
        mean = np.asarray(part.mean(axis=0)).ravel()
        variance = np.asarray(part.multiply(part).mean(axis=0)).ravel() - mean**2
        moments += [mean, np.sqrt(np.maximum(variance, 0) * n / (n - 1)), n]
    with np.errstate(invalid="ignore", divide="ignore"):
        score, p = ttest_ind_from_stats(*moments, equal_var=False)
    change = np.log2((np.expm1(moments[0]) + 0.1) / (np.expm1(moments[3]) + 0.1))
    return GeneTest(change, np.nan_to_num(score), np.nan_to_num(p, nan=1.0))
