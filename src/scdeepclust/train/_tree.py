"""A tree over clusters by how far apart they are in counts that did not make them, and a test of its splits.

A direction that tells two groups of cells apart is learnt on one half of the counts of each cell, and the cells are put
on a side by that half; how far apart the sides are is measured on the other half. Halves of a cell that say the same
make this 2.65 for a Gaussian population that is cut at its mean, and 3.46, the root of 12, for a uniform one; halves
that do not make it less, and few cells, among which a cut finds what chance has set apart, make it more. How much that
is for the cells at hand is measured on cells that are drawn as one population.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Cells that are drawn as one population are uniform along the split, which is as far apart as sides get without a gap
# between them. Real populations are curved, and the networks were trained on the same cells: the sides of a split have
# to be this many times as far apart, and the middle between them at most this many times as full. On labelled sets
# other values change the labels little, on single populations they decide.
FURTHER, EMPTIER = 1.2, 0.6

# Draws of one population, and the cells of each at most.
N_DRAWS, MAX_DRAWN = 10, 3000

# Spread of the separation of one population, at least: ten draws may lie closer by chance.
LEAST_SPREAD = 0.08

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


class Gap(NamedTuple):
    """What lies between two sides, by counts that did not say who is where."""

    separation: float  # distance of the sides in units of their spread
    middle: float  # share of the cells in the middle third between the means of the sides


def gap(measured: np.ndarray, judged: np.ndarray, side: np.ndarray) -> Gap:
    """Separation of two groups of cells, and what is between them, with direction and groups from other counts.

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
    The separation is the difference of the means over the root of the mean of the two variances, so that a tail cut off
    a population does not look as far away as from the spread of the rest. 0 and 1 if one side holds next to no cells.
    """
    if min(side.sum(), (~side).sum()) < MIN_CELLS:
        return Gap(0.0, 1.0)
    direction, border = _discriminant(measured, side)
    above = measured @ direction > border
    if min(above.sum(), (~above).sum()) < MIN_CELLS:
        return Gap(0.0, 1.0)
    along = judged @ direction
    low, high = along[~above], along[above]
    apart = float(high.mean() - low.mean())
    place = (along - low.mean()) / (apart or 1e-30)
    middle = float(((place > 1 / 3) & (place < 2 / 3)).mean())
    return Gap(apart / float(np.sqrt(max((low.var() + high.var()) / 2, 1e-30))), middle)


def mean_gap(halves: Halves, cells: np.ndarray, side: np.ndarray) -> Gap:
    """What lies between two sides (m,) of some cells (n,), bool: mean over the halvings, each half in both roles."""
    roles = [(x[cells], y[cells]) for pair in halves for x, y in (pair, pair[::-1])]
    return Gap(*np.mean([gap(x, y, side) for x, y in roles], axis=0).tolist())


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
                    apart[a, b] = mean_gap(halves, cells, node[cells] == b).separation
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


def cut(linkage: np.ndarray, undone: np.ndarray) -> np.ndarray:
    """Group of each cluster (K,), 0, 1, ..., when some splits (K - 1,), and all that is below them, are undone."""
    group = np.arange(len(linkage) + 1)
    for is_undone, below in zip(undone, members(linkage)[len(linkage) + 1 :], strict=True):
        if is_undone:
            group[below] = below.min()
    return np.unique(group, return_inverse=True)[1]


def least_p_below(linkage: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Least p of each split (K - 1,) and those below it: a split stands if one below it does."""
    n_clusters, least = len(linkage) + 1, p.copy()
    for row, pair in enumerate(linkage[:, :2].astype(int)):
        least[row] = min([least[row], *(least[node - n_clusters] for node in pair if node >= n_clusters)])
    return least


def split_p_values(labels: np.ndarray, linkage: np.ndarray, halves: Halves, seed: int = 0) -> np.ndarray:
    """How well one population explains each split of a tree, (K - 1,), corrected for the number of splits.

    Parameters
    ----------
    labels, halves
        As in :func:`separation_linkage`.
    linkage
        Its result.
    seed
        Seed of the populations that are drawn.

    Returns
    -------
    The larger of two p-values: that the sides are no further apart, and that the middle between them is no emptier,
    than a population may be.
    """
    from scipy.stats import norm

    rng = np.random.default_rng(seed)
    below, p = members(linkage), np.ones(len(linkage))
    for row, (a, b) in enumerate(linkage[:, :2].astype(int)):
        inside = np.isin(labels, np.concatenate([below[a], below[b]]))
        side = np.isin(labels[inside], below[b])
        found, (first, second) = mean_gap(halves, inside, side), halves[0]
        drawn = one_population(first[inside], second[inside], side, rng)
        apart, middle = (np.array(values) for values in zip(*drawn, strict=True))
        excess = (found.separation - FURTHER * apart.mean()) / max(float(apart.std(ddof=1)), LEAST_SPREAD)
        share = max(found.middle, 1 / inside.sum())
        left = (found.middle - EMPTIER * middle.mean()) / np.sqrt(share * (1 - share) / inside.sum())
        p[row] = max(norm.sf(excess), norm.cdf(left))
    return np.minimum(p * len(p), 1.0)


def one_population(first: np.ndarray, second: np.ndarray, side: np.ndarray, rng: np.random.Generator) -> list[Gap]:
    """Gaps, one a draw, in cells that are like these but of one population, cut where it is most apart.

    What the two halves of the counts have in common is drawn from a Gaussian with its covariance, but uniformly in the
    direction that tells the sides apart; what they have not is added to each half on its own.

    Parameters
    ----------
    first, second
        Points (n, P) of the two halves of the counts.
    side
        Which side each cell is on (n,), bool.
    rng
        Random generator.
    """
    if min(side.sum(), (~side).sum()) < MIN_CELLS:
        return [Gap(0.0, 0.0)] * N_DRAWS
    if len(first) > MAX_DRAWN:
        rows = rng.choice(len(first), MAX_DRAWN, replace=False)
        first, second, side = first[rows], second[rows], side[rows]
    n, size = first.shape
    direction, _ = _discriminant((first + second) / 2, side)
    x, y = first - first.mean(axis=0), second - second.mean(axis=0)
    common = (x.T @ y + y.T @ x) / (2 * n)
    to_common, to_own = _root(common), _root((x.T @ x + y.T @ y) / (2 * n) - common)
    along = to_common.T @ direction
    along /= max(float(np.linalg.norm(along)), 1e-30)
    gaps = []
    for _ in range(N_DRAWS):
        normal = rng.normal(size=(n, size))
        uniform = rng.uniform(-(3**0.5), 3**0.5, size=n)
        cells = (normal + np.outer(uniform - normal @ along, along)) @ to_common.T
        pair = tuple(cells + rng.normal(size=(n, size)) @ to_own.T for _ in range(2))
        cut_at = _best_sides((pair[0] + pair[1]) / 2, direction, side.mean())
        gaps.append(mean_gap([pair], np.ones(n, dtype=bool), cut_at))
    return gaps


def _best_sides(points: np.ndarray, direction: np.ndarray, share: float, n_steps: int = 8) -> np.ndarray:
    """Sides (n,) of points, from a cut of this share along a direction to the discriminant that agrees with itself."""
    along = points @ direction
    side = along > np.quantile(along, 1 - share)
    for _ in range(n_steps):
        if min(side.sum(), (~side).sum()) < MIN_CELLS:
            break
        before, side = side, sides(points, side)
        if (side == before).all():
            break
    return side


def _root(covariance: np.ndarray) -> np.ndarray:
    """A matrix whose product with its transpose is the covariance, without what is negative in it."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return vectors * np.sqrt(np.maximum(values, 0))
