"""How many clusters: what it costs to merge micro-clusters down to each number, and how stable each number is."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ._init import MAX_POINTS, kmeans_labels, n_communities

# The largest number of clusters that is considered, and micro-clusters per such cluster.
MAX_CLUSTERS = 40
N_MICRO = 3

# Numbers of the shortlist differ from each other by at least this factor.
SHORTLIST_FACTOR = 1.2


def count_table(
    points: np.ndarray, *, max_clusters: int = MAX_CLUSTERS, n_repeats: int = 5, seed: int = 0
) -> pd.DataFrame:
    """Separation and stability of the clusters at each number of them.

    k-means finds micro-clusters, which are merged pair by pair until one is left; always the pair with the least
    ``sqrt(n_a n_b / (n_a + n_b)) |c_a - c_b|^2``.

    Parameters
    ----------
    points
        Cells x dimensions.
    max_clusters
        Largest number considered.
    n_repeats
        Repeats with other micro-clusters, on random halves of the cells.
    seed
        Seed of the repeats.

    Returns
    -------
    Indexed by ``n_clusters``, 2 to ``max_clusters``. ``separation``: how far apart the two closest clusters are, in
    units of the spread of all cells; falls with the number of clusters. ``gap``: log of the ratio of this separation
    to that of one cluster more; large where one cluster more would split something compact. ``stability``: mean
    adjusted Rand index between repeats. ``rank``: 1 for the number of Leiden communities, 2 and 3 for alternatives
    with a large gap, 0 for others.
    """
    from sklearn.metrics import adjusted_rand_score

    rng = np.random.default_rng(seed)
    if len(points) > MAX_POINTS:
        points = points[np.sort(rng.choice(len(points), MAX_POINTS, replace=False))]
    max_clusters = min(max_clusters, len(points) // 4)
    separation, all_labels = merge_path(points, max_clusters, seed=seed)
    repeats = []
    for i in range(n_repeats):
        rows = np.sort(rng.permutation(len(points))[: (len(points) + 1) // 2])
        repeats.append((rows, merge_path(points[rows], max_clusters, seed=seed + i + 1)[1]))
    table = pd.DataFrame({"separation": separation[:-1]}, index=pd.RangeIndex(2, max_clusters + 1, name="n_clusters"))
    table["gap"] = np.log(separation[:-1] / separation[1:])
    table["stability"] = [
        np.mean([adjusted_rand_score(all_labels[i][rows], labels[i]) for rows, labels in repeats])
        for i in range(len(table))
    ]
    table["rank"] = 0
    guess = min(n_communities(points, seed=seed), max_clusters)
    for rank, number in enumerate(shortlist(table["gap"], guess), start=1):
        table.loc[number, "rank"] = rank
    return table


def merge_path(points: np.ndarray, max_clusters: int, *, seed: int = 0) -> tuple[np.ndarray, list[np.ndarray]]:
    """Separation for 2 to ``max_clusters`` + 1 clusters, and the labels (n,) for 2 to ``max_clusters``."""
    n_micro = min(N_MICRO * max_clusters, len(points))
    micro = kmeans_labels(points, n_micro, n_init=3, seed=seed)
    micro = np.unique(micro, return_inverse=True)[1]  # k-means leaves some empty where points coincide
    sizes = np.bincount(micro).astype(float)
    centers = np.stack([np.bincount(micro, weights=column) for column in points.T], axis=1) / sizes[:, None]
    spread = np.square(points - points.mean(axis=0)).sum() / len(points)
    of_micro = np.arange(len(sizes))  # cluster of each micro-cluster
    costs, labels = {}, {}
    while len(centers) > 1:
        cost = np.square(centers[:, None] - centers[None]).sum(axis=2)
        cost *= np.sqrt(sizes[:, None] * sizes / (sizes[:, None] + sizes) / len(points))
        np.fill_diagonal(cost, np.inf)
        a, b = sorted(np.unravel_index(cost.argmin(), cost.shape))
        costs[len(centers)], labels[len(centers)] = cost[a, b] / spread, of_micro[micro]
        centers[a] = (sizes[a] * centers[a] + sizes[b] * centers[b]) / (sizes[a] + sizes[b])
        sizes[a] += sizes[b]
        centers, sizes = np.delete(centers, b, axis=0), np.delete(sizes, b)
        of_micro = np.where(of_micro == b, a, of_micro - (of_micro > b))
    numbers = range(2, max_clusters + 2)
    # a merge can make room for a cheaper one: the separation at K is the least that any larger number has needed
    path = np.array([costs[k] for k in numbers])
    return np.maximum.accumulate(path[::-1])[::-1], [labels[k] for k in numbers[:-1]]


def shortlist(gap: pd.Series, guess: int, n: int = 3) -> list[int]:
    """The best guess, then the numbers with the largest gaps that are not close to one already listed."""
    chosen = [guess]
    near = gap[(gap.index >= guess / 2) & (gap.index <= 2 * guess)]
    for number in near.sort_values(ascending=False, kind="stable").index:
        if len(chosen) == n:
            break
        if all(max(number, other) >= SHORTLIST_FACTOR * min(number, other) for other in chosen):
            chosen.append(int(number))
    return chosen
