"""Time as weighted pairs of cells: which cell comes after which.

True sequences (the same culture or donor measured again and again, one measurement a time) give pairs directly. Usual
time courses destroy the cells they measure: a cell has no later self, only a population it belongs to. There, optimal
transport between the cells of consecutive times says how much of a later cell may come from an earlier one.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix, csr_matrix

# Cells of each time that are coupled at once. Minibatches of random cells keep the cost linear in their number.
TRANSPORT_CELLS = 500

# Entropy of the coupling and price of mass that is not matched, in units of the mean squared distance of the pairs.
ENTROPY = 0.05
MARGINAL = 1.0

# Successors kept of each cell: those beyond carry next to no weight.
MAX_SUCCESSORS = 20


def time_codes(time: pd.Series, name: str) -> np.ndarray:
    """Number of the time point of each cell, 0, 1, ... in the order of time.

    Raises
    ------
    ValueError
        If times are missing, have no order, or are all the same.
    """
    if time.isna().any():
        raise ValueError(f"`time_key`: column {name!r} of `adata.obs` has {int(time.isna().sum())} missing values.")
    if isinstance(time.dtype, pd.CategoricalDtype):
        if not time.cat.ordered:
            numeric = pd.to_numeric(time.astype(str), errors="coerce")
            if numeric.isna().any():
                raise ValueError(
                    f"`time_key`: the categories of column {name!r} of `adata.obs` have no order. Give numbers, or "
                    f"order them: adata.obs[{name!r}] = adata.obs[{name!r}].cat.reorder_categories([...], ordered=True)"
                )
            time = numeric
        else:
            time = time.cat.codes
    elif not pd.api.types.is_numeric_dtype(time):
        raise ValueError(f"`time_key`: column {name!r} of `adata.obs` must hold numbers or ordered categories.")
    codes = np.unique(time.to_numpy(), return_inverse=True)[1]
    if codes.max() < 1:
        raise ValueError(f"`time_key`: column {name!r} of `adata.obs` has a single time. Leave it out.")
    return codes


def are_sequences(time: np.ndarray, trajectory: np.ndarray | None) -> bool:
    """Whether no trajectory has two cells of the same time, so that cells follow each other one by one."""
    return trajectory is not None and not pd.DataFrame({"t": time, "of": trajectory}).duplicated().any()


def require_transport() -> None:
    """Raise an ImportError that says what to install unless POT is there."""
    try:
        import ot  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "Coupling the cells of consecutive times needs optimal transport: pip install 'scdeepclust[time]' (it "
            "brings POT). Or give couplings that you have, with `transition_key`."
        ) from error


def cell_pairs(time: np.ndarray, trajectory: np.ndarray | None, points: np.ndarray, *, seed: int = 0) -> csr_matrix:
    """Weight of each cell (column) as successor of each cell (row), (n, n); rows sum to 1, or to 0 without successor.

    Parameters
    ----------
    time
        Time point of each cell (n,), 0, 1, ...
    trajectory
        Lineage, culture or donor of each cell (n,); None if all are of one. Pairs are never of two trajectories.
    points
        Where distances between cells are measured (n, P). Not used for true sequences.
    seed
        Seed of the minibatches.
    """
    if trajectory is not None and are_sequences(time, trajectory):
        return _next_in_sequence(time, trajectory)
    rng = np.random.default_rng(seed)
    blocks = [_couple(points[now], points[later], now, later) for now, later in _populations(time, trajectory, rng)]
    n = len(time)
    if not blocks:
        return csr_matrix((n, n))
    row, col, weight = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return csr_matrix((weight, (row, col)), shape=(n, n))


def _next_in_sequence(time: np.ndarray, trajectory: np.ndarray) -> csr_matrix:
    order = np.lexsort((time, trajectory))
    now, later = order[:-1], order[1:]
    follows = (trajectory[now] == trajectory[later]) & (time[later] == time[now] + 1)
    now, later = now[follows], later[follows]
    return csr_matrix((np.ones(len(now)), (now, later)), shape=(len(time), len(time)))


def _populations(
    time: np.ndarray, trajectory: np.ndarray | None, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Random minibatches of cells of consecutive times, within trajectories."""
    group = np.zeros(len(time), dtype=int) if trajectory is None else np.unique(trajectory, return_inverse=True)[1]
    for of in range(group.max() + 1):
        for t in range(time.max()):
            now, later = (rng.permutation(np.flatnonzero((group == of) & (time == s))) for s in (t, t + 1))
            if not len(now) or not len(later):
                continue
            n_parts = -(-max(len(now), len(later)) // TRANSPORT_CELLS)
            n_parts = min(n_parts, len(now), len(later))
            yield from zip(np.array_split(now, n_parts), np.array_split(later, n_parts), strict=True)


def _couple(
    x: np.ndarray, y: np.ndarray, now: np.ndarray, later: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entropic unbalanced optimal transport from cells ``now`` at x to cells ``later`` at y: rows, columns, weights.

    Unbalanced, because populations grow and die: mass may be made or lost at a price, instead of being carried far.
    """
    import ot
    from sklearn.metrics import pairwise_distances

    cost = pairwise_distances(x, y, metric="sqeuclidean")
    cost /= max(cost.mean(), 1e-12)
    a, b = np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y))
    plan = ot.unbalanced.sinkhorn_unbalanced(a, b, cost, reg=ENTROPY, reg_m=MARGINAL)
    kept = min(MAX_SUCCESSORS, plan.shape[1])
    best = np.argpartition(plan, -kept, axis=1)[:, -kept:]
    weight = np.take_along_axis(plan, best, axis=1)
    weight /= np.maximum(weight.sum(axis=1, keepdims=True), 1e-300)
    return np.repeat(now, kept), later[best].ravel(), weight.ravel()


def count_pairs(pairs: csr_matrix, group: np.ndarray, n_groups: int) -> np.ndarray:
    """Weight of the pairs from each group of cells to each other, (n_groups, n_groups)."""
    pairs = coo_matrix(pairs)
    counts = np.zeros((n_groups, n_groups))
    np.add.at(counts, (group[pairs.row], group[pairs.col]), pairs.data)
    return counts
