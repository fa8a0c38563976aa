from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scdeepclust.tl._arguments import checked

if TYPE_CHECKING:
    from scdeepclust.model import SOMVAE


@checked
def time_control(model: SOMVAE, *, n_permutations: int = 20, seed: int = 0) -> pd.DataFrame:
    """What the times of the cells add to the transitions of a map, beyond chance.

    Pairs of cells are made again from permuted times, and transitions between clusters counted. Optimal transport
    couples any two populations, also two of the same cells, and cells that look alike stay where they are: a matrix
    with a strong diagonal says nothing. What permuted times cannot give is a *direction*: then as many cells go from A
    to B as from B to A. For true sequences times are permuted within a trajectory, otherwise among all cells of a
    trajectory (culture, donor), or all cells where there is none.

    Parameters
    ----------
    model
        A trained model whose data were registered with ``time_key``.
    n_permutations
        Number of permutations.
    seed
        Seed of the permutations.

    Returns
    -------
    One row for each statistic. ``direction``: net flow between clusters over all flow between different clusters, 0 if
    every flow is returned and 1 if none is; ``change``: share of the transitions that lead into another cluster;
    ``information``: mutual information of the cluster before and after, in nats. Columns: ``observed``,
    ``permuted_mean``, ``permuted_sd``, ``excess`` (observed less permuted mean) and ``p_value`` (share of permutations
    that reach the observed value, the observed one counted among them).

    Raises
    ------
    RuntimeError
        If the model is not trained.
    ValueError
        If the data of the model have no times.

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.simulate_counts(200, 100, n_clusters=3, n_time_points=4)
    >>> sdc.model.SOMVAE.setup_anndata(adata, time_key="time", trajectory_key="trajectory")
    >>> model = sdc.model.SOMVAE(adata, n_clusters=3, grid=(3, 4))
    >>> model.train(pretrain_epochs=2, max_epochs=1, enable_progress_bar=False)
    >>> list(sdc.tl.time_control(model, n_permutations=3).index)
    ['direction', 'change', 'information']
    """
    from scdeepclust.model.somvae._cell_pairs import are_sequences, count_pairs

    model._check_if_trained(warn=False)
    if model._setup_arg("time_key") is None:
        raise ValueError("The control needs times: register the data with `time_key` in `setup_anndata`.")
    cells = np.arange(model.adata.n_obs)
    time, trajectory = model._times(cells)
    points = None if are_sequences(time, trajectory) else model._denoised_points(cells)
    cluster = model.module.node_cluster.cpu().numpy()[model._nearest_nodes()]

    def statistics(times: np.ndarray) -> dict[str, float]:
        pairs = model._time_pairs(cells, points, times, trajectory)
        return flow_statistics(count_pairs(pairs, cluster, model.n_clusters))

    rng = np.random.default_rng(seed)
    observed = pd.Series(statistics(time))
    permuted = pd.DataFrame([statistics(_permuted(time, trajectory, rng)) for _ in range(n_permutations)])
    return pd.DataFrame(
        {
            "observed": observed,
            "permuted_mean": permuted.mean(),
            "permuted_sd": permuted.std(),
            "excess": observed - permuted.mean(),
            "p_value": ((permuted >= observed).sum() + 1) / (n_permutations + 1),
        }
    )


def _permuted(time: np.ndarray, trajectory: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """Times permuted within each trajectory, or among all cells."""
    if trajectory is None:
        return rng.permutation(time)
    order = np.lexsort((rng.random(len(time)), trajectory))  # each trajectory in random order
    permuted = np.empty_like(time)
    permuted[np.argsort(trajectory, kind="stable")] = time[order]
    return permuted


def flow_statistics(counts: np.ndarray) -> dict[str, float]:
    """Direction, change and information of a flow between groups, from counts (C, C)."""
    flow = counts / max(counts.sum(), 1e-12)
    between = flow.sum() - np.trace(flow)
    net = np.abs(flow - flow.T).sum() / 2
    independent = flow.sum(axis=1, keepdims=True) * flow.sum(axis=0)
    present = flow > 0
    information = float((flow[present] * np.log(flow[present] / independent[present])).sum())
    return {
        "direction": float(net / between) if between > 0 else 0.0,
        "change": float(between),
        "information": information,
    }
