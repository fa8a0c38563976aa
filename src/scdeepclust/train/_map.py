"""Start of a map: how large it is, where it lies, and which of its nodes form a cluster."""

from __future__ import annotations

import numpy as np

from scdeepclust.nn import Grid

from ._init import nearest, one_thread

# Cells per node below which a map is larger than the data can fill, and the largest map that is chosen by itself.
CELLS_PER_NODE = 20
MAX_NODES = 400

# Nodes per cluster, at least: a cluster is a region of the map.
NODES_PER_CLUSTER = 3

# Radius of the neighbourhood in the end, in steps of the grid. Much below this neighbours do not hold each other any
# more, and the map loses its order.
FINAL_RADIUS = 0.5


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


def batch_som(points: np.ndarray, grid: Grid, *, n_steps: int = 40, final_radius: float = FINAL_RADIUS) -> np.ndarray:
    """Codebook (K, P) of a self-organising map of points (n, P), by the batch algorithm.

    The map starts in the plane of the first two principal components. In each step every node moves to the mean of
    all points, weighted by how close on the grid the points' own nodes are; the radius of that neighbourhood shrinks
    from half of the longer side to ``final_radius``. Nothing is random.
    """
    codebook = _plane(points.astype(np.float64), grid)
    squared = grid.squared_distances().numpy().astype(np.float64)
    first = max(max(grid.n_rows, grid.n_cols) / 2, final_radius)
    for radius in np.geomspace(first, final_radius, n_steps):
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


def lay_map(points: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Codebook (K, P) of a map of the points (n, P), and the node of each point (n,)."""
    codebook = fill_dead_nodes(points, batch_som(points, grid), grid)
    return codebook, nearest(points, codebook)


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

    Of a cluster whose nodes lie apart the part with the most cells stays; the others, and nodes without cells, join
    the region beside them whose nearest node is most alike.

    Parameters
    ----------
    node
        Node of each cell (n,).
    labels
        Label of each cell (n,), 0..C-1.
    codebook
        Nodes (K, P).
    grid
        The grid. Nodes touch along a side, not at a corner.
    """
    from scipy.sparse.csgraph import connected_components

    votes = np.zeros((grid.n_nodes, labels.max() + 1))
    np.add.at(votes, (node, labels), 1)
    sizes = votes.sum(axis=1)
    winner = np.where(sizes > 0, votes.argmax(axis=1), -1)
    touches = grid.adjacency().numpy()
    cluster = np.full(grid.n_nodes, -1)
    for label in np.unique(winner[winner >= 0]):
        own = np.flatnonzero(winner == label)
        _, part = connected_components(touches[np.ix_(own, own)], directed=False)
        largest = np.bincount(part, weights=sizes[own]).argmax()
        cluster[own[part == largest]] = label
    distances = np.square(codebook[:, None] - codebook[None]).sum(axis=2)
    while (cluster < 0).any():
        candidates = touches & (cluster < 0)[:, None] & (cluster >= 0)[None]
        a, b = np.unravel_index(np.where(candidates, distances, np.inf).argmin(), distances.shape)
        cluster[a] = cluster[b]
    return cluster
