"""How badly the counts of a cell fit its cluster, against cells of the fit.

A cell of a kind that was not there is put into the cluster that is nearest, and gives itself away by genes that nobody
else there has. Networks can hide that, because they were trained to give back what they saw: what they expect of a cell
of the fit is closer to it than what they expect of another one of the same kind. Profiles of clusters have next to
nothing to fit with, and each cell is taken out of the profile that it is compared with.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix

# Genes of a cell that count: those it has most in excess. One alone can be anything.
N_EXCESS = 30

# Largest excess of a gene, in standard deviations.
MAX_EXCESS = 8.0

# Counts of an average cell that each profile starts with, so that no gene is impossible.
PRIOR_COUNTS = 500.0

# Cells of about the same depth that a cell is ranked among.
N_PEERS = 500


class Profiles(NamedTuple):
    """What clusters look like, and how well the cells of the fit look like them."""

    counts: np.ndarray  # sum of the counts of each cluster, (K, G)
    overdispersion: np.ndarray  # of each gene within clusters, (G,)
    depths: np.ndarray  # log of the total count of cells of the fit, ascending (n,)
    misfits: np.ndarray  # and how badly each of them fits the other cells of its cluster (n,)


def cluster_profiles(counts: csr_matrix, labels: np.ndarray, n_clusters: int) -> Profiles:
    """Profiles of labelled cells: counts (n, G), labels (n,)."""
    member = csr_matrix((np.ones(len(labels)), (labels, np.arange(len(labels)))), shape=(n_clusters, len(labels)))
    sums = np.asarray((member @ counts).todense(), dtype=np.float64)
    totals = counts.sum(axis=1).A1
    # moments within clusters: E x^2 = mu + (1 + phi) mu^2, with mu the total of the cell times the share of the gene
    shares = sums / np.maximum(sums.sum(axis=1, keepdims=True), 1)
    squares = np.asarray((member @ counts.multiply(counts)).todense())
    total_squares = member @ np.square(totals)
    expected = np.square(shares) * total_squares[:, None]
    excess, scale = (squares - sums - expected).sum(axis=0), expected.sum(axis=0)
    overdispersion = np.clip(excess / np.maximum(scale, 1e-12), 0.01, 10.0)
    profiles = Profiles(sums, overdispersion, np.empty(0), np.empty(0))
    misfits = misfit(profiles, counts, labels, own=True)
    order = np.argsort(totals, kind="stable")
    return profiles._replace(depths=np.log(np.maximum(totals[order], 1)), misfits=misfits[order])


def misfit(profiles: Profiles, counts: csr_matrix, labels: np.ndarray, *, own: bool) -> np.ndarray:
    """Mean of the squares of the largest excesses of each cell over the profile of its cluster, (n,).

    ``own`` says that the cells are among those of the profiles, and are to be taken out of them.
    """
    counts = csr_matrix(counts)
    row, gene, x = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr)), counts.indices, counts.data
    totals = counts.sum(axis=1).A1
    everywhere, sizes = profiles.counts.sum(axis=0), profiles.counts.sum(axis=1)
    taken, taken_total = (x, totals[row]) if own else (0.0, 0.0)
    average = (everywhere[gene] - taken + 0.5) / (everywhere.sum() - taken_total + 0.5 * len(everywhere))
    in_cluster = profiles.counts[labels[row], gene] - taken + PRIOR_COUNTS * average
    mean = totals[row] * in_cluster / (sizes[labels[row]] - taken_total + PRIOR_COUNTS)
    excess = (x - mean) / np.sqrt(mean + profiles.overdispersion[gene] * np.square(mean))
    squares = np.square(np.clip(excess, 0, MAX_EXCESS))
    # the largest of each cell first
    order = np.lexsort((-squares, row))
    rank = np.arange(len(order)) - counts.indptr[row[order]]
    kept = order[rank < N_EXCESS]
    return np.bincount(row[kept], weights=squares[kept], minlength=counts.shape[0]) / N_EXCESS


def novelty(profiles: Profiles, misfits: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Share of the cells of the fit of about the same depth that fit their cluster better, (n,)."""
    n_peers = min(N_PEERS, len(profiles.depths))
    place = np.searchsorted(profiles.depths, np.log(np.maximum(totals, 1)))
    first = np.clip(place - n_peers // 2, 0, len(profiles.depths) - n_peers)
    novel = np.empty(len(misfits))
    for start in np.unique(first):  # cells of about the same depth have the same peers
        cells = first == start
        peers = np.sort(profiles.misfits[start : start + n_peers])
        novel[cells] = np.searchsorted(peers, misfits[cells]) / (n_peers + 1)
    return novel
