"""A second clustering, crossed with the first: start of the facets of :class:`~scdeepclust.model.MFCVAE`.

Two clusterings of the same cells are *crossed* if the groups of one are found within the clusters of the other and
look the same everywhere: the mean profile of a cell of cluster c and group s is a_c + b_s. K + L - 1 free vectors then
describe K L combinations. This is what makes a second facet more than a finer first one, and it can be tested: if the
cells fit K + L - 1 ordinary clusters better, there is nothing crossed in them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from scdeepclust.train import kmeans_labels, means_and_sizes, one_thread

# Starts of the search, each from the difference of two micro-clusters; how many of the groups found are tried again,
# with how many other starts of the clusters; and steps of each.
N_STARTS = 300
N_BEST, N_RETRIES = 10, 5
MAX_STEPS = 30

# Numbers of groups that are tried when the number is not given.
GROUP_NUMBERS = (2, 3, 4)

# Penalty for groups that the clusters predict: the error is multiplied by 1 + this * share of what is predicted.
DEPENDENCE_PENALTY = 2.0


class CrossedGroups(NamedTuple):
    """A clustering crossed with the main one.

    Parameters
    ----------
    labels
        Group of each point, (n,) int64.
    ratio
        Error of crossed clusters, penalised for dependence, over that of as many ordinary clusters. Below 1 the
        points really are crossed.
    """

    labels: np.ndarray
    ratio: float


def crossed_groups(points: np.ndarray, n_clusters: int, n_groups: int | None = None, *, seed: int = 0) -> CrossedGroups:
    """Groups of points that are crossed with ``n_clusters`` clusters.

    Micro-clusters are split by the difference of two of them; clusters and groups of the additive model are then
    fitted in turn, as in k-means. Of many such starts the one with the smallest penalised error is taken.

    Parameters
    ----------
    points
        Cells x dimensions.
    n_clusters
        Number of clusters of the main clustering. It need not be exact.
    n_groups
        Number of groups; None takes the number from 2 to 4 with the smallest ratio.
    seed
        Seed of the micro-clusters and of the choice of starts.

    Returns
    -------
    The groups, and how much better they explain the points than ordinary clusters.

    Examples
    --------
    >>> import numpy as np
    >>> from scdeepclust.model.mfcvae._crossed_groups import crossed_groups
    >>> rng = np.random.default_rng(0)
    >>> c, s = rng.integers(4, size=500), rng.integers(2, size=500)
    >>> points = 5 * np.eye(5)[c] + 4 * s[:, None] * np.eye(5)[4] + rng.normal(size=(500, 5))
    >>> found = crossed_groups(points, 4)
    >>> bool(abs(np.corrcoef(found.labels, s)[0, 1]) > 0.9), found.ratio < 1
    (True, True)
    """
    micro = kmeans_labels(points, min(max(60, 4 * n_clusters), len(points)), n_init=3, seed=seed)
    centers, sizes = means_and_sizes(points, micro)
    # the main clustering is the richer one
    numbers = [n for n in GROUP_NUMBERS if n == 2 or n < n_clusters] if n_groups is None else [n_groups]
    found = [_best_crossing(centers, sizes, n_clusters, number, seed) for number in numbers]
    ratio, effects = min(found, key=lambda pair: pair[0])
    return CrossedGroups(_assign(points, *effects)[1], float(ratio))


def _best_crossing(centers, sizes, n_clusters: int, n_groups: int, seed: int):
    """Ratio and effects (a, b) of the best of many starts."""
    rng = np.random.default_rng(seed)
    pairs = np.stack(np.triu_indices(len(centers), 1), axis=1)
    found = []
    with one_thread():
        for i, j in rng.permutation(pairs)[:N_STARTS]:
            along = (centers @ (centers[i] - centers[j]))[:, None]
            groups = _weighted_kmeans(along, sizes, n_groups, seed).labels_
            found.append(_fit_crossing(centers, sizes, groups, n_clusters, n_groups, seed))
        found.sort(key=lambda fit: fit[0])
        # good groups with a poor start of the clusters would lose to worse ones
        different = {round(error / found[0][0], 3): effects for error, effects in found}
        for effects in list(different.values())[:N_BEST]:
            groups = _assign(centers, *effects)[1]
            for retry in range(1, N_RETRIES + 1):
                found.append(_fit_crossing(centers, sizes, groups, n_clusters, n_groups, seed + retry))
        reference = _weighted_kmeans(centers, sizes, n_clusters + n_groups - 1, seed, n_init=10).inertia_
    best = min(found, key=lambda fit: fit[0])
    return best[0] / reference, best[1]


def _fit_crossing(centers, sizes, groups, n_clusters: int, n_groups: int, seed: int):
    """Penalised error and effects of the additive model, fitted in turns from a first grouping."""
    means = np.stack(
        [np.average(centers, axis=0, weights=sizes * (groups == s) + 1e-9 * sizes) for s in range(n_groups)]
    )
    clusters = _weighted_kmeans(centers - means[groups], sizes, n_clusters, seed).labels_
    for _ in range(MAX_STEPS):
        effects = _additive_effects(centers, sizes, clusters, groups, n_clusters, n_groups)
        new_clusters, new_groups, distances = _assign(centers, *effects)
        settled = np.array_equal(new_clusters, clusters) and np.array_equal(new_groups, groups)
        clusters, groups = new_clusters, new_groups
        if settled:
            break
    table = np.zeros((n_clusters, n_groups))
    np.add.at(table, (clusters, groups), sizes)
    return (sizes @ distances) * (1 + DEPENDENCE_PENALTY * shared_information(table)), effects


def _additive_effects(points, weights, clusters, groups, n_clusters: int, n_groups: int):
    """Weighted least squares of a_c + b_s: (n_clusters, P) and (n_groups, P)."""
    design = np.concatenate([np.eye(n_clusters)[clusters], np.eye(n_groups)[groups]], axis=1)
    weighted = (design * weights[:, None]).T
    # the two sums of columns are equal: a little ridge chooses among the equivalent solutions
    ridge = 1e-6 * weights.sum() * np.eye(n_clusters + n_groups)
    effects = np.linalg.solve(weighted @ design + ridge, weighted @ points)
    return effects[:n_clusters], effects[n_clusters:]


def _assign(points, cluster_effects, group_effects):
    """Nearest combination of each point: its cluster, its group, and the squared distance."""
    combined = (cluster_effects[:, None] + group_effects[None]).reshape(-1, points.shape[1])
    distances = np.square(points).sum(axis=1)[:, None] - 2 * points @ combined.T + np.square(combined).sum(axis=1)
    nearest = distances.argmin(axis=1)
    clusters, groups = np.divmod(nearest, len(group_effects))
    return clusters, groups, distances[np.arange(len(points)), nearest].clip(0)


def shared_information(table: np.ndarray) -> float:
    """Mutual information of the two sides of a table of counts over the smaller of their entropies; 0 to 1."""
    from scipy.stats import entropy

    rows, columns = entropy(table.sum(axis=1)), entropy(table.sum(axis=0))
    smaller = min(rows, columns)
    return float((rows + columns - entropy(table.ravel())) / smaller) if smaller > 0 else 1.0


def _weighted_kmeans(points, weights, n_clusters: int, seed: int, n_init: int = 1):
    from sklearn.cluster import KMeans

    return KMeans(n_clusters, n_init=n_init, random_state=seed).fit(points, sample_weight=weights)
