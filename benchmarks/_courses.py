"""Transitions that are known: a simulated branching chain, seen through destroyed cells or through true sequences."""

from __future__ import annotations

from collections.abc import Iterator

from _threads import one_thread  # first: it sets the number of threads

# isort: split
import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

Result = tuple[str, dict[str, float]]  # method, metrics

N_STATES = 6


def course(data: str, seed: int) -> Iterator[Result]:
    """A branching chain seen at five times through cells that are destroyed, with and without the times permuted."""
    import scdeepclust as sdc

    adata = sdc.datasets.simulate_counts(2000, 500, n_clusters=N_STATES, n_time_points=5, depth=500, seed=seed)
    truth = adata.uns["simulation"]["transition_matrix"].to_numpy()
    times = adata.obs["time"].to_numpy()
    settings = {
        "time": (times, {}),
        "time, no smoothness": (times, {"smoothness_weight": 0.0}),
        "permuted time": (np.random.default_rng(seed).permutation(times), {}),
    }
    for name, (used, options) in settings.items():
        adata.obs["used_time"] = used
        model = _fit_time(adata, seed, {"time_key": "used_time"}, options)
        matrix = _in_true_order(model, adata)
        states = adata.obs["cell_type"].to_numpy()
        nodes = model.get_nodes()["node"].astype(str).to_numpy()
        control = sdc.tl.time_control(model, n_permutations=10)
        yield (
            name,
            {
                "top_rows": _top_rows(matrix, truth),
                "onward_rows": _onward_rows(matrix, truth),
                "direction": control.loc["direction", "observed"],
                "direction_permuted": control.loc["direction", "permuted_mean"],
                "merged_ari": adjusted_rand_score(states, model.predict()),
                "node_nmi": normalized_mutual_info_score(states, nodes),
                "topographic_error": model.get_map_quality()["topographic_error"],
            },
        )


def chain(data: str, seed: int) -> Iterator[Result]:
    """The same chain through true sequences: how far the rows of the matrix are from the true ones."""
    import scdeepclust as sdc

    adata = sdc.datasets.simulate_counts(5000, 500, n_clusters=N_STATES, n_time_points=5, depth=500, seed=seed)
    truth = adata.uns["simulation"]["transition_matrix"].to_numpy()
    model = _fit_time(adata, seed, {"time_key": "time", "trajectory_key": "trajectory"}, {})
    matrix = _in_true_order(model, adata)
    codes = adata.obs["cell_type"].cat.codes.to_numpy()
    counted = _true_counts(adata, codes)
    yield (
        "somvae",
        {
            "total_variation": float(np.nanmean(np.abs(matrix - truth).sum(axis=1) / 2)),
            "total_variation_of_nodes": float(np.mean(np.abs(_of_nodes(model, codes) - truth).sum(axis=1) / 2)),
            "merged_ari": adjusted_rand_score(codes, model.predict()),
        },
    )
    yield "true states", {"total_variation": float(np.mean(np.abs(counted - truth).sum(axis=1) / 2))}


def _fit_time(adata: AnnData, seed: int, keys: dict, options: dict):
    import scvi

    import scdeepclust as sdc

    scvi.settings.seed = seed
    one_thread()
    sdc.model.SOMVAE.setup_anndata(adata, layer="counts", **keys)
    model = sdc.model.SOMVAE(adata, n_clusters=N_STATES, **options)
    model.train(accelerator="cpu", enable_progress_bar=False)
    return model


def _in_true_order(model, adata: AnnData) -> np.ndarray:
    """Transition matrix of the clusters, matched one to one to the true states."""
    from scipy.optimize import linear_sum_assignment

    names = [str(k) for k in range(N_STATES)]
    table = pd.crosstab(adata.obs["cell_type"], model.predict()).reindex(columns=names, fill_value=0).to_numpy()
    _, cluster = linear_sum_assignment(-table)
    return model.get_transition_matrix("cluster").to_numpy()[np.ix_(cluster, cluster)]


def _of_nodes(model, codes: np.ndarray) -> np.ndarray:
    """Transition matrix of the nodes, each named after the true state that most of its cells are of."""
    nodes = model.get_nodes()["node"].cat.codes.to_numpy()
    votes = np.zeros((len(model.node_names), N_STATES))
    np.add.at(votes, (nodes, codes), 1)
    member = np.eye(N_STATES)[votes.argmax(axis=1)]
    counts = member.T @ model.transition_counts_ @ member + 1 / N_STATES
    return counts / counts.sum(axis=1, keepdims=True)


def _top_rows(matrix: np.ndarray, truth: np.ndarray) -> float:
    """Share of the rows in which the m largest entries are just the m transitions that are possible."""
    hits = [
        set(np.argsort(-row)[: (true > 0).sum()]) == set(np.flatnonzero(true)) for row, true in _rows(matrix, truth)
    ]
    return float(np.mean(hits))


def _onward_rows(matrix: np.ndarray, truth: np.ndarray) -> float:
    """Share of the states that are left in which the largest entry beside the diagonal is a true next state."""
    hits = []
    for state, (row, true) in enumerate(_rows(matrix, truth)):
        if true[state] < 1:
            row[state] = -1
            hits.append(true[row.argmax()] > 0)
    return float(np.mean(hits))


def _rows(matrix: np.ndarray, truth: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    yield from zip(np.nan_to_num(matrix, nan=-1.0), truth, strict=True)


def _true_counts(adata: AnnData, codes: np.ndarray) -> np.ndarray:
    """Transition matrix counted from the true states of the same cells: what sampling alone leaves open."""
    wide = adata.obs.assign(code=codes).pivot(index="trajectory", columns="time", values="code").to_numpy()
    counts = np.full((N_STATES, N_STATES), 1 / N_STATES)
    for now, later in zip(wide.T[:-1], wide.T[1:], strict=True):
        known = np.isfinite(now) & np.isfinite(later)
        np.add.at(counts, (now[known].astype(int), later[known].astype(int)), 1)
    return counts / counts.sum(axis=1, keepdims=True)
