"""Start of a map: how large it is, where it lies, and which of its nodes form a cluster."""

from __future__ import annotations

import numpy as np

from scdeepclust.train import merge_costs, nearest, one_thread, sample_points

from ._som import Grid

# Cells per node below which a map is larger than the data can fill, and the largest map that is chosen by itself.
CELLS_PER_NODE = 10
MAX_NODES = 400

# Nodes per cluster, at least: a cluster is a region of the map.
NODES_PER_CLUSTER = 3

# Radius of the neighbourhood in the end, in steps of the grid. Much below this neighbours do not hold each other any
# more, and the map loses its order.
FINAL_RADIUS = 0.6

# Steps in which the radius shrinks; with fewer the map freezes before it has unfolded.
N_STEPS = 100


def choose_grid(points: np.ndarray, n_clusters: int | None) -> tuple[int, int]:
    """Rows and columns of a map for these points (n, P).

    About ``5 sqrt(n)`` nodes, the rule of thumb of the field, but not more than the cells can fill; the sides are to
    each other as the standard deviations of the first two principal components, within 1 to 2.
    """
    n = len(points)
    n_nodes = min(5 * np.sqrt(n), n / CELLS_PER_NODE, MAX_NODES)
    n_nodes = max(n_nodes, NODES_PER_CLUSTER * (n_clusters or 2), 4)
    n_nodes = min(n_nodes, n)
    with one_thread():
        spread = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    ratio = min(spread[0] / max(spread[1], 1e-12), 2.0) if len(spread) > 1 else 2.0
    n_rows = max(1, round(np.sqrt(n_nodes / ratio)))
    return n_rows, max(2, round(n_nodes / n_rows))


def batch_som(points: np.ndarray, grid: Grid, *, final_radius: float = FINAL_RADIUS) -> np.ndarray:
    """Codebook (K, P) of a self-organising map of points (n, P), by the batch algorithm.

    The map starts in the plane of the first two principal components. In each step every node moves to the mean of
    all points, weighted by how close on the grid the points' own nodes are; the radius of that neighbourhood shrinks
    from half of the longer side to ``final_radius``. Nothing is random.
    """
    codebook = _plane(points.astype(np.float64), grid)
    squared = grid.squared_distances().numpy().astype(np.float64)
    first = max(max(grid.n_rows, grid.n_cols) / 2, final_radius)
    for radius in np.geomspace(first, final_radius, N_STEPS):
        sums, sizes = _sums(points, nearest(points, codebook), grid.n_nodes)
        weights = np.exp(-squared / (2 * radius**2))
        mass = weights @ sizes
        moved = mass > 1e-6
        codebook[moved] = (weights @ sums)[moved] / mass[moved, None]
    return codebook


def _plane(points: np.ndarray, grid: Grid) -> np.ndarray:
    """Nodes spread evenly over the plane of the first two components, two standard deviations to each side."""
    mean = points.mean(axis=0)
    with one_thread():
        _, spread, axes = np.linalg.svd(points - mean, full_matrices=False)
    at = grid.coordinates().numpy().astype(np.float64)
    at = 2 * at / np.maximum([grid.n_rows - 1, grid.n_cols - 1], 1) - 1  # -1 to 1
    along = [at[:, 1], at[:, 0]] if grid.n_cols >= grid.n_rows else [at[:, 0], at[:, 1]]  # longer side first
    codebook = np.repeat(mean[None], grid.n_nodes, axis=0)
    for position, sd, axis in zip(along, 2 * spread / np.sqrt(len(points)), axes, strict=False):
        codebook = codebook + position[:, None] * sd * axis
    return codebook


def _sums(points: np.ndarray, labels: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums (n, P) and numbers (n,) of the points with each label."""
    sums = np.stack([np.bincount(labels, weights=column, minlength=n) for column in points.T], axis=1)
    return sums, np.bincount(labels, minlength=n).astype(float)


def lay_map(points: np.ndarray, labels: np.ndarray, grid: Grid, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Codebook (K, P) of a map of the points (n, P), and the node of each point (n,).

    The map is laid on points to which the mean of their cluster is attached (:func:`with_means`), as a supervised map
    of Kohonen's is on points with their class: two dimensions cannot keep all neighbours together, and those of one
    cluster are then kept before others.

    Parameters
    ----------
    points
        Points (n, P).
    labels
        Cluster of each point (n,), 0..C-1.
    grid
        The grid.
    seed
        Seed of the sample of the points that the map is laid on, if there are very many.
    """
    attached = with_means(points, labels)
    sample = sample_points(attached, seed)
    codebook = fill_dead_nodes(sample, batch_som(sample, grid), grid)
    return codebook[:, : points.shape[1]], nearest(attached, codebook)


def with_means(points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Points (n, P) with the means of their clusters beside them, (n, 2P).

    The attached means are scaled to spread as far as the points do within clusters: where clusters lie far apart they
    change little; where they overlap in the scatter, as images of digits do, they count as much as the point itself.
    """
    sums, sizes = _sums(points, labels, int(labels.max()) + 1)
    means = (sums / np.maximum(sizes, 1)[:, None])[labels] - points.mean(axis=0)  # (n, P)
    between = np.square(means).sum()
    within = np.square(points - points.mean(axis=0)).sum() - between
    return np.hstack([points, means * np.sqrt(max(within, 0) / max(between, 1e-12))])


def fill_dead_nodes(points: np.ndarray, codebook: np.ndarray, grid: Grid, *, n_rounds: int = 10) -> np.ndarray:
    """Codebook in which nodes without points took half of those of the fullest node beside them.

    The neighbour's points are split across their longest axis, and the empty node takes the half that is closer to
    where it lay; so the order of the map stays. Nodes with a single point, or with points that coincide, give none.

    Parameters
    ----------
    points
        Points (n, P).
    codebook
        Nodes (K, P).
    grid
        The grid.
    n_rounds
        Points are given to their nearest nodes again, and nodes that are empty then filled, this often.
    """
    codebook = codebook.copy()
    beside = grid.adjacency(diagonal=True).numpy()
    for _ in range(n_rounds):
        node = nearest(points, codebook)
        sizes = np.bincount(node, minlength=grid.n_nodes)
        dead = np.flatnonzero(sizes == 0)
        if not len(dead):
            break
        for k in dead:
            giver = np.argmax(np.where(beside[k], sizes, 0))
            mine = np.flatnonzero(node == giver)
            halves = _halves(points[mine]) if beside[k, giver] and len(mine) > 1 else None
            if halves is None:
                continue
            means = np.stack([points[mine[half]].mean(axis=0) for half in halves])
            taken = int(np.square(means - codebook[k]).sum(axis=1).argmin())
            codebook[k], codebook[giver] = means[taken], means[1 - taken]
            node[mine[halves[taken]]] = k
            sizes[k], sizes[giver] = len(halves[taken]), len(halves[1 - taken])
    return codebook


def _halves(points: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Rows on either side of the mean along the longest axis of the points; None where all points coincide."""
    centred = points - points.mean(axis=0)
    with one_thread():
        _, spread, axes = np.linalg.svd(centred, full_matrices=False)
    if spread[0] < 1e-9:
        return None
    above = centred @ axes[0] > 0
    return np.flatnonzero(above), np.flatnonzero(~above)


def vote_regions(node: np.ndarray, labels: np.ndarray, codebook: np.ndarray, grid: Grid) -> np.ndarray:
    """Cluster of each node (K,), by the vote of its cells, such that every cluster is one connected region.

    Nodes that touch and voted for the same label form a part. Two parts that touch are merged, the cheapest pair first
    by the cost of :func:`merge_centers`, until there are as many as labels. So of a label whose nodes lie apart, a
    small part joins what is around it, and a large one stays a cluster if two others are closer to each other. Clusters
    have the numbers of the labels that they share the most cells with.

    Parameters
    ----------
    node
        Node of each cell (n,).
    labels
        Label of each cell (n,), 0..C-1.
    codebook
        Nodes (K, P).
    grid
        The grid. Nodes touch along a side or at a corner: all eight around a node are its neighbours.
    """
    from scipy.optimize import linear_sum_assignment

    votes = np.zeros((grid.n_nodes, labels.max() + 1))
    np.add.at(votes, (node, labels), 1)
    cells = votes.sum(axis=1)
    # a node without cells is a part of its own, so light that the distance alone says where it belongs
    winner = np.where(cells > 0, votes.argmax(axis=1), -1 - np.arange(grid.n_nodes))
    part = _merge_parts(winner, np.maximum(cells, 1e-6), codebook, grid, labels.max() + 1)
    shared = np.zeros((part.max() + 1, labels.max() + 1))
    np.add.at(shared, part, votes)
    _, number = linear_sum_assignment(-shared)
    return number[part]


def _merge_parts(winner: np.ndarray, weights: np.ndarray, codebook: np.ndarray, grid: Grid, n_parts: int) -> np.ndarray:
    """Part of each node (K,), 0..n_parts-1: connected nodes with the same winner, merged with parts they touch."""
    from scipy.sparse.csgraph import connected_components

    touches = grid.adjacency(diagonal=True).numpy()
    part = connected_components(touches & (winner[:, None] == winner), directed=False)[1]
    while part.max() + 1 > n_parts:
        sizes = np.bincount(part, weights=weights)
        sums, _ = _sums(weights[:, None] * codebook, part, len(sizes))
        member = part == np.arange(len(sizes))[:, None]
        beside = member @ touches @ member.T
        np.fill_diagonal(beside, False)
        cost = merge_costs(sums / sizes[:, None], sizes, weights.sum() / n_parts)
        a, b = np.unravel_index(np.where(beside, cost, np.inf).argmin(), cost.shape)
        part = np.where(part == b, a, part)
        part -= part > b
    return part
