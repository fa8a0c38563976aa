"""A tree over clusters by how far apart they are in counts that did not make them.

A direction that tells two groups of cells apart is learnt on one half of the counts of each cell, and the cells are put
on a side by that half; how far apart the sides are is measured on the other half. Halves of a cell that say the same
make this 2.65 for a Gaussian population that is cut at its mean, and 3.46, the root of 12, for a uniform one; halves
that do not make it less. So what is further apart than that is no single population cut in two.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Groups less apart than this are joined where the number of clusters is to be found: just above a uniform population.
FLOOR = 3.5

# A side with fewer cells than this has no spread to speak of.
MIN_CELLS = 3

Halves = Sequence[tuple[np.ndarray, np.ndarray]]


def sides(points: np.ndarray, side: np.ndarray) -> np.ndarray:
    """The side of each point (n,), bool, by the linear discriminant of the sides that it was said to be on."""
    direction, border = _discriminant(points, side)
    return points @ direction > border


def _discriminant(points: np.ndarray, side: np.ndarray) -> tuple[np.ndarray, float]:
    """Direction (P,) that tells two sides apart, and the border between them along it."""
    means = points[~side].mean(axis=0), points[side].mean(axis=0)
    within = points - np.where(side[:, None], means[1], means[0])
    covariance = within.T @ within / len(within)
    # where there are few cells the direction leans to the difference of the means
    covariance += 1e-3 * max(np.trace(covariance), 1e-30) / len(covariance) * np.eye(len(covariance))
    direction = np.linalg.solve(covariance, means[1] - means[0])
    return direction, float((means[0] + means[1]) @ direction / 2)


def separation(measured: np.ndarray, judged: np.ndarray, side: np.ndarray) -> float:
    """Distance of two groups of cells in units of their spread, with direction and groups from other counts.

    Parameters
    ----------
    measured
        Points (n, P) of one half of the counts: the direction (linear discriminant of the sides) and the side of each
        cell come from these.
    judged
        Points (n, P) of the other half.
    side
        Which side each cell is on (n,), bool.

    Returns
    -------
    Difference of the means over the root of the mean of the two variances, so that a tail cut off a population does
    not look as far away as from the spread of the rest; 0 if one side holds next to no cells.
    """
    if min(side.sum(), (~side).sum()) < MIN_CELLS:
        return 0.0
    direction, border = _discriminant(measured, side)
    above = measured @ direction > border
    if min(above.sum(), (~above).sum()) < MIN_CELLS:
        return 0.0
    low, high = judged[~above] @ direction, judged[above] @ direction
    return float((high.mean() - low.mean()) / np.sqrt(max((low.var() + high.var()) / 2, 1e-30)))


def mean_separation(halves: Halves, cells: np.ndarray, side: np.ndarray) -> float:
    """Separation of two sides (m,) of some cells (n,), bool: mean over the halvings, each half in both roles."""
    roles = [(x[cells], y[cells]) for pair in halves for x, y in (pair, pair[::-1])]
    return float(np.mean([separation(x, y, side) for x, y in roles]))


def separation_linkage(labels: np.ndarray, halves: Halves) -> np.ndarray:
    """Tree of clusters, as :func:`scipy.cluster.hierarchy.linkage` gives it for points.

    The two groups that are least apart are joined first. The cheapest ones by size and distance would not do: the ends
    of a gradient can be joined before its middle, and are far apart.

    Parameters
    ----------
    labels
        Cluster of each cell (n,), 0..K-1, every one in use.
    halves
        Points (n, P) of the two halves of the counts, for each way in which they were halved.

    Returns
    -------
    (K - 1, 4) float64: the two nodes that are joined (below K a cluster), the height, which is the separation, or that
    of a split below if it is larger, and the number of clusters.
    """
    n_clusters = int(labels.max()) + 1
    node = labels.copy()
    nodes = list(range(n_clusters))
    n_below = dict.fromkeys(nodes, 1)
    apart: dict[tuple[int, int], float] = {}
    linkage = np.empty((n_clusters - 1, 4))
    height = 0.0
    for row in range(n_clusters - 1):
        for i, a in enumerate(nodes):
            for b in nodes[i + 1 :]:
                if (a, b) not in apart:
                    cells = (node == a) | (node == b)
                    apart[a, b] = mean_separation(halves, cells, node[cells] == b)
        a, b = min(((a, b) for i, a in enumerate(nodes) for b in nodes[i + 1 :]), key=apart.__getitem__)
        height = max(height, apart[a, b])
        joined = n_clusters + row
        node[(node == a) | (node == b)] = joined
        n_below[joined] = n_below[a] + n_below[b]
        linkage[row] = a, b, height, n_below[joined]
        nodes = [*(k for k in nodes if k not in (a, b)), joined]
    return linkage


def members(linkage: np.ndarray) -> list[np.ndarray]:
    """Clusters below each node of a tree: first those of the K clusters themselves, then of the joined ones."""
    below = [np.array([k]) for k in range(len(linkage) + 1)]
    for a, b in linkage[:, :2].astype(int):
        below.append(np.concatenate([below[a], below[b]]))
    return below


def cut(linkage: np.ndarray, floor: float = FLOOR) -> np.ndarray:
    """Group of each cluster (K,), 0, 1, ..., when all that is less apart than ``floor`` is joined."""
    group = np.arange(len(linkage) + 1)
    for (_, _, height, _), below in zip(linkage, members(linkage)[len(linkage) + 1 :], strict=True):
        if height < floor:
            group[below] = below.min()
    return np.unique(group, return_inverse=True)[1]
