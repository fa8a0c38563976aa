"""Start labels of a clustering phase: merged k-means, k-means, Gaussian mixture, Leiden, or labels given by the user.

All functions take points (cells x dimensions) and return integer labels 0..K-1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from ._threads import one_thread

Initialiser = Literal["merge", "kmeans", "gmm", "leiden"]

# Micro-clusters per cluster before merging, and merged partitions to choose from.
N_MICRO = 4
N_CANDIDATES = 8

# Resolution of Leiden where the number of clusters is to be found. In denoised expression communities are tight, and
# the customary 1 finds twice as many as there are cell types.
RESOLUTION = 0.2

# Restarts cost time in proportion to the number of points, and beyond this number more points hardly move the centres.
MAX_POINTS = 20_000


def initial_labels(
    points: np.ndarray,
    method: Initialiser | Sequence,
    n_clusters: int | None,
    *,
    n_init: int = 3,
    seed: int = 0,
) -> np.ndarray:
    """Labels by the given method.

    Parameters
    ----------
    points
        Cells x dimensions.
    method
        ``"merge"`` (:func:`merged_labels`), ``"kmeans"``, ``"gmm"`` (Gaussian mixture with one shared covariance),
        ``"leiden"``, or one label per cell.
    n_clusters
        Number of clusters; None takes the number of communities that Leiden finds.
    n_init
        Number of restarts of k-means.
    seed
        Seed of the restarts.

    Returns
    -------
    Labels 0..K-1, (n,) int64.

    Raises
    ------
    ValueError
        If given labels do not fit the points or ``n_clusters``, or the method is unknown.
    """
    if not isinstance(method, str):
        return given_labels(method, len(points), n_clusters)
    if n_clusters is None:
        n_clusters = n_communities(points, seed=seed)
    if method == "leiden":
        return leiden_labels(points, n_clusters=n_clusters, seed=seed)
    if method == "merge":
        return merged_labels(points, n_clusters, n_init=n_init, seed=seed)
    if method == "kmeans":
        return kmeans_labels(points, n_clusters, n_init=n_init, seed=seed)
    if method == "gmm":
        return gmm_labels(points, n_clusters, n_init=n_init, seed=seed)
    raise ValueError(f"`init` must be 'merge', 'kmeans', 'gmm', 'leiden' or one label per cell, found {method!r}.")


def given_labels(labels: Sequence, n_obs: int, n_clusters: int | None) -> np.ndarray:
    """Codes of labels that the user gave, by first appearance in sorted order."""
    codes, names = pd.factorize(np.asarray(labels), sort=True)
    if len(codes) != n_obs:
        raise ValueError(f"`init` has {len(codes)} labels for {n_obs} cells. Give one label per cell.")
    if (codes < 0).any():
        raise ValueError(f"`init` has {(codes < 0).sum()} missing labels. Give one label per cell.")
    if n_clusters is not None and len(names) != n_clusters:
        raise ValueError(f"`init` has {len(names)} different labels, but `n_clusters` is {n_clusters}.")
    return codes.astype(np.int64)


def merged_labels(points: np.ndarray, n_clusters: int, *, n_init: int = 3, seed: int = 0) -> np.ndarray:
    """The most typical of several partitions, each of merged micro-clusters.

    k-means alone likes clusters of equal size: it rather splits a large cell type than keep a small one apart, and
    which of the two it does is a matter of luck. Here k-means finds micro-clusters, which are merged pair by pair
    (:func:`merge_centers`); k-means steps follow. This is repeated with other seeds, and the partition that agrees
    best with all others (largest mean adjusted Rand index) is taken.

    Parameters
    ----------
    points
        Cells x dimensions.
    n_clusters
        Number of clusters.
    n_init
        Restarts of each k-means into micro-clusters.
    seed
        Seed of the restarts.

    Returns
    -------
    Labels 0..K-1, (n,) int64.
    """
    from sklearn.metrics import adjusted_rand_score

    sample = sample_points(points, seed)
    centers = [
        _merged_centers(sample, n_clusters, n_init=n_init, seed=N_CANDIDATES * seed + i) for i in range(N_CANDIDATES)
    ]
    candidates = [nearest(sample, c) for c in centers]
    agreement = [np.mean([adjusted_rand_score(a, b) for b in candidates]) for a in candidates]
    return nearest(points, centers[int(np.argmax(agreement))])


def _merged_centers(points: np.ndarray, n_clusters: int, *, n_init: int, seed: int) -> np.ndarray:
    """Centres of merged micro-clusters after k-means steps."""
    micro = kmeans_labels(points, min(N_MICRO * n_clusters, len(points)), n_init=n_init, seed=seed)
    centers = merge_centers(*means_and_sizes(points, micro), n_clusters)
    for _ in range(20):
        moved = means_and_sizes(points, nearest(points, centers))[0]
        if len(moved) < n_clusters or np.allclose(moved, centers):
            break
        centers = moved
    return centers


def means_and_sizes(points: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means (k, D) and sizes (k,) of the labels that have points."""
    sizes = np.bincount(labels)
    sums = np.stack([np.bincount(labels, weights=column) for column in points.T], axis=1)
    used = sizes > 0
    return sums[used] / sizes[used, None], sizes[used].astype(float)


def merge_costs(centers: np.ndarray, sizes: np.ndarray, average: float) -> np.ndarray:
    """Cost (k, k) of merging each pair of groups with these means (k, D) and sizes (k,); see :func:`merge_centers`."""
    m = sizes[:, None] * sizes / (sizes[:, None] + sizes)
    return m / (m + average) * np.square(centers[:, None] - centers[None]).sum(axis=2)


def merge_centers(centers: np.ndarray, sizes: np.ndarray, n_clusters: int) -> np.ndarray:
    """Merge the cheapest pair of centres until ``n_clusters`` are left.

    The cost of a pair is ``m / (m + n/K) |c_a - c_b|^2`` with ``m = n_a n_b / (n_a + n_b)``. As long as both groups are
    small against an average cluster (n/K cells) this is Ward's criterion, which merges small groups first; beyond,
    size does not count any more, and two large groups close to each other are merged rather than two small ones far
    apart.

    Parameters
    ----------
    centers
        Centres (k, D).
    sizes
        Points of each centre (k,).
    n_clusters
        Number of centres to keep.

    Returns
    -------
    Centres (n_clusters, D).
    """
    centers, sizes = centers.copy(), sizes.astype(float)
    average = sizes.sum() / n_clusters
    while len(centers) > n_clusters:
        cost = merge_costs(centers, sizes, average)
        np.fill_diagonal(cost, np.inf)
        a, b = np.unravel_index(cost.argmin(), cost.shape)
        total = sizes[a] + sizes[b]
        centers[a] = (sizes[a] * centers[a] + sizes[b] * centers[b]) / total
        sizes[a] = total
        centers, sizes = np.delete(centers, b, axis=0), np.delete(sizes, b)
    return centers


def kmeans_labels(points: np.ndarray, n_clusters: int, *, n_init: int = 10, seed: int = 0) -> np.ndarray:
    """k-means on at most :data:`MAX_POINTS` points, then the nearest centre for all."""
    from sklearn.cluster import KMeans

    with one_thread():
        fit = KMeans(n_clusters, n_init=n_init, random_state=seed).fit(sample_points(points, seed))
        return fit.predict(points).astype(np.int64)


def gmm_labels(points: np.ndarray, n_clusters: int, *, n_init: int = 10, seed: int = 0) -> np.ndarray:
    """Gaussian mixture with one shared covariance, started from k-means."""
    from sklearn.mixture import GaussianMixture

    start = kmeans_labels(points, n_clusters, n_init=n_init, seed=seed)
    means = np.stack([points[start == k].mean(axis=0) for k in range(n_clusters)])
    with one_thread():
        fit = GaussianMixture(n_clusters, covariance_type="tied", means_init=means, random_state=seed)
        return fit.fit(sample_points(points, seed)).predict(points).astype(np.int64)


def leiden_labels(
    points: np.ndarray,
    *,
    n_clusters: int | None = None,
    resolution: float = RESOLUTION,
    n_neighbors: int = 15,
    seed: int = 0,
) -> np.ndarray:
    """Leiden on the nearest-neighbour graph; with ``n_clusters`` the resolution is searched by bisection.

    Not every number is that of the communities at some resolution: then the communities of the next larger number
    found are joined by Ward's criterion.

    On more than :data:`MAX_POINTS` points the graph is built on a sample, and the other points get the label of their
    nearest cluster mean.
    """
    sample = sample_points(points, seed)
    graph = _neighbour_graph(sample, n_neighbors)
    labels = _leiden(graph, resolution, seed)
    low, high, finer = 0.0, None, None
    for _ in range(25 if n_clusters else 0):
        n_found = labels.max() + 1
        if n_found == n_clusters:
            break
        if n_found < n_clusters:
            low, resolution = resolution, resolution * 2 if high is None else (resolution + high) / 2
        else:
            high, resolution, finer = resolution, (low + resolution) / 2, labels
        labels = _leiden(graph, resolution, seed)
    if n_clusters and labels.max() + 1 != n_clusters:
        if finer is None:  # there are no more communities
            return kmeans_labels(points, n_clusters, seed=seed)
        labels = _joined(sample, finer, n_clusters)
    if len(sample) == len(points):
        return labels
    means = np.stack([sample[labels == k].mean(axis=0) for k in range(labels.max() + 1)])
    return nearest(points, means)


def _joined(points: np.ndarray, labels: np.ndarray, n_clusters: int) -> np.ndarray:
    """Join the groups whose means are closest until ``n_clusters`` are left."""
    from scipy.cluster.hierarchy import fcluster, ward

    means, _ = means_and_sizes(points, labels)
    return (fcluster(ward(means), n_clusters, criterion="maxclust") - 1)[labels].astype(np.int64)


def n_communities(points: np.ndarray, *, seed: int = 0) -> int:
    """Number of communities that Leiden finds."""
    return int(leiden_labels(points, seed=seed).max()) + 1


def nearest(points: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Index of the nearest centre of each point."""
    from sklearn.metrics import pairwise_distances_argmin

    with one_thread():
        return pairwise_distances_argmin(points, centers).astype(np.int64)


def _neighbour_graph(points: np.ndarray, n_neighbors: int) -> AnnData:
    """Nearest-neighbour graph with the weights of UMAP, in ``obsp``."""
    import scanpy as sc

    graph = AnnData(obsm={"X": np.ascontiguousarray(points, dtype=np.float32)}, shape=(len(points), 0))
    with one_thread():
        # the exact search of scikit-learn: reproducible, and fast enough for MAX_POINTS points
        sc.pp.neighbors(graph, n_neighbors=min(n_neighbors, len(points) - 1), use_rep="X", transformer="sklearn")
    return graph


def _leiden(graph: AnnData, resolution: float, seed: int) -> np.ndarray:
    """Labels of one Leiden run, largest community first."""
    import scanpy as sc

    sc.tl.leiden(
        graph, resolution=resolution, random_state=seed, flavor="igraph", n_iterations=2, directed=False, key_added="k"
    )
    return graph.obs["k"].astype(int).to_numpy().astype(np.int64)


def sample_points(points: np.ndarray, seed: int) -> np.ndarray:
    """At most :data:`MAX_POINTS` of the points, in their order."""
    if len(points) <= MAX_POINTS:
        return points
    return points[np.sort(np.random.default_rng(seed).choice(len(points), MAX_POINTS, replace=False))]
