"""Time on a map: pairs of cells from the data, and the Markov chain of the nodes."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.sparse import csr_matrix

from scdeepclust.model._base import ModelPart, check_choice, check_counts_of, check_obs_keys, shared_docs

from ._cell_pairs import are_sequences, cell_pairs, count_pairs, require_transport, time_codes
from ._som import smoothed_transitions, stationary_distribution

Level = Literal["node", "cluster"]

# Transitions that start at a node are too few to speak of below this number.
MIN_COUNT = 5.0

# Cells whose expected arrivals are computed at once, in double precision.
BLOCK_ROWS = 4096


class TransitionGetters(ModelPart):
    """Registration of time, and getters of :class:`SOMVAE` about its transitions."""

    transition_counts_: np.ndarray | None
    _pairs: csr_matrix | None = None

    # -- registration -------------------------------------------------------------------------------------------------

    @classmethod
    @shared_docs
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: list[str] | None = None,
        continuous_covariate_keys: list[str] | None = None,
        time_key: str | None = None,
        trajectory_key: str | None = None,
        transition_key: str | None = None,
        **kwargs,
    ) -> None:
        """Register the counts, covariates and time of ``adata`` with this model.

        Parameters
        ----------
        %(setup)s
        time_key
            Column of ``obs`` with the time of each cell, numbers or ordered categories.
        trajectory_key
            Column of ``obs`` with the lineage, culture or donor of each cell. Cells of different ones never follow each
            other. With one cell per trajectory and time, cells follow each other one by one; otherwise, and without
            this key, optimal transport couples the cells of consecutive times.
        transition_key
            Matrix of ``obsp`` with the weight of each cell (column) as successor of each cell (row), such as a kernel
            of CellRank or a coupling of moscot. Takes the place of pairs from times.
        **kwargs
            Passed on by scvi-tools when a saved model is loaded.

        Raises
        ------
        ValueError
            If the data are no counts, a key is missing or what it names does not fit; ``adata`` is then unchanged.
        ImportError
            If optimal transport is needed and POT is not installed.
        """
        if not kwargs.get("source_registry"):  # new cells for a model that has its transitions need no time
            _check_time(adata, time_key, trajectory_key, transition_key)
        super().setup_anndata(
            adata,
            layer,
            batch_key,
            labels_key,
            size_factor_key,
            categorical_covariate_keys,
            continuous_covariate_keys,
            **kwargs,
        )
        own = {"time_key": time_key, "trajectory_key": trajectory_key, "transition_key": transition_key}
        cls._get_most_recent_anndata_manager(adata).registry["setup_args"].update(own)

    def _setup_arg(self, name: str) -> str | None:
        return self.registry_["setup_args"].get(name)

    @property
    def has_time(self) -> bool:
        """Whether the data of the model were registered with time or transitions."""
        return self._setup_arg("time_key") is not None or self._setup_arg("transition_key") is not None

    # -- pairs of cells -----------------------------------------------------------------------------------------------

    def _find_pairs(self, cells: np.ndarray, points: np.ndarray | None) -> None:
        """Set the pairs of these cells, in their order; none without time."""
        if not self.has_time:
            self._pairs = None
        elif self._setup_arg("transition_key") is not None:
            self._pairs = csr_matrix(self.adata.obsp[self._setup_arg("transition_key")])[cells][:, cells]
        else:
            self._pairs = self._time_pairs(cells, points, *self._times(cells))

    def _times(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Time point and trajectory of these cells."""
        time_key, trajectory_key = self._setup_arg("time_key"), self._setup_arg("trajectory_key")
        time = time_codes(self.adata.obs[time_key], str(time_key))[cells]
        if trajectory_key is None:
            return time, None
        return time, pd.factorize(self.adata.obs[trajectory_key])[0][cells]

    def _time_pairs(
        self, cells: np.ndarray, points: np.ndarray | None, time: np.ndarray, trajectory: np.ndarray | None
    ) -> csr_matrix:
        if points is None and not are_sequences(time, trajectory):
            points = self._denoised_points(cells)
        points = np.zeros((len(cells), 1)) if points is None else points
        return cell_pairs(time, trajectory, points, seed=self._start_seed)

    def _count_transitions(self, node: np.ndarray) -> None:
        """Count transitions between nodes, and set where each cell is expected to arrive from those before it."""
        if self._pairs is None:
            return
        n_nodes = self.module.grid.n_nodes
        self.transition_counts_ = count_pairs(self._pairs, node, n_nodes)
        transitions = smoothed_transitions(torch.as_tensor(self.transition_counts_), 1.0).numpy()
        # the sum of the weights is that of the cells: the mean over a minibatch is then one over pairs
        weights = csr_matrix(self._pairs.T * (len(node) / max(self._pairs.sum(), 1e-12)))
        # of the cells before a cell only the nodes matter
        nodes_before = csr_matrix((weights.data, node[weights.indices], weights.indptr), (len(node), n_nodes))
        arrivals, cells = torch.zeros(self.adata.n_obs, n_nodes), np.sort(self.train_indices)
        for start in range(0, len(cells), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            arrivals[cells[rows]] = torch.as_tensor(nodes_before[rows] @ transitions, dtype=torch.float32)
        self.module.arrivals = arrivals

    # -- getters ------------------------------------------------------------------------------------------------------

    def _counts_at(self, level: Level) -> tuple[np.ndarray, list[str]]:
        """Transition counts and names of the states."""
        self._check_if_trained(warn=False)
        check_choice("level", level, ("node", "cluster"))
        if self.transition_counts_ is None:
            raise ValueError(
                "The model has no transitions: its data were registered without time. Give `time_key` or "
                "`transition_key` to `setup_anndata`, and train again."
            )
        if level == "node":
            return self.transition_counts_, self.node_names
        member = np.eye(self.n_clusters)[self.module.node_cluster.cpu().numpy()]  # (K, C)
        return member.T @ self.transition_counts_ @ member, [str(k) for k in range(self.n_clusters)]

    def get_transition_matrix(
        self, level: Level = "node", *, min_count: float = MIN_COUNT, pseudo_count: float = 1.0
    ) -> pd.DataFrame:
        """Probability of going from each state (row) to each state (column) in one step of time.

        Parameters
        ----------
        level
            States are the nodes of the map, or its clusters.
        min_count
            Rows with fewer transitions are NaN: the data do not say where those states go.
        pseudo_count
            Transitions that are added to each row, spread evenly over the columns.

        Returns
        -------
        States x states; rows sum to one, or are NaN.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If the data were registered without time.
        """
        counts, names = self._counts_at(level)
        _check_at_least_zero(min_count=min_count, pseudo_count=pseudo_count)
        matrix = smoothed_transitions(torch.as_tensor(counts), max(pseudo_count, 1e-12)).numpy().copy()
        matrix[counts.sum(axis=1) < min_count] = np.nan
        return pd.DataFrame(matrix, index=pd.Index(names, name="from"), columns=pd.Index(names, name="to"))

    def simulate_trajectory(
        self,
        start: str,
        n_steps: int = 10,
        *,
        level: Level = "node",
        n_samples: int | None = None,
        min_count: float = MIN_COUNT,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Paths of the Markov chain from one state: the most likely one, or a sample.

        A path stays where the data do not say how to go on.

        Parameters
        ----------
        start
            Name of a node (``"r0c2"``) or of a cluster.
        n_steps
            Number of steps of time.
        level
            States are the nodes of the map, or its clusters.
        n_samples
            Number of sampled paths; None for the one path of the largest probability.
        min_count
            States with fewer transitions are not left.
        seed
            Seed of the sample.

        Returns
        -------
        Paths x steps (0 is the start), names of states.

        Raises
        ------
        ValueError
            If there is no such state, or no time.
        """
        counts, names = self._counts_at(level)
        _check_at_least_zero(min_count=min_count, seed=seed)
        check_counts_of(n_steps=n_steps, **({} if n_samples is None else {"n_samples": n_samples}))
        if not isinstance(start, str) or start not in names:
            raise ValueError(f"`start`: there is no {level} {start!r}; found {', '.join(names[:5])}, ...")
        matrix = _chain(counts, min_count)
        first = names.index(start)
        if n_samples is None:
            paths = _likeliest_path(matrix, first, n_steps)[None]
        else:
            paths = _sampled_paths(matrix, first, n_steps, n_samples, np.random.default_rng(seed))
        return pd.DataFrame(np.array(names)[paths], columns=pd.RangeIndex(n_steps + 1, name="step"))

    def _time_results(self) -> dict[str, Any]:
        """What is written into ``uns`` of a model with time; nothing of one without."""
        if self.transition_counts_ is None:
            return {}
        chain = torch.as_tensor(_chain(self.transition_counts_, MIN_COUNT))
        return {
            "transition_matrix": self.get_transition_matrix().to_numpy(),
            "transition_counts": self.transition_counts_,
            "stationary_distribution": stationary_distribution(chain).numpy(),
        }


def _check_at_least_zero(**values: Any) -> None:
    for name, value in values.items():
        whole = name != "seed" or isinstance(value, int | np.integer)
        if not whole or not (isinstance(value, int | float | np.number) and value >= 0):
            raise ValueError(
                f"`{name}` must be a {'whole ' if name == 'seed' else ''}number of at least 0; found {value!r}."
            )


def _chain(counts: np.ndarray, min_count: float) -> np.ndarray:
    """Transition matrix without smoothing; states with few transitions keep what they have."""
    totals = counts.sum(axis=1, keepdims=True)
    matrix = counts / np.maximum(totals, 1e-12)
    few = totals[:, 0] < max(min_count, 1e-12)
    matrix[few] = np.eye(len(counts))[few]
    return matrix


def _likeliest_path(matrix: np.ndarray, first: int, n_steps: int) -> np.ndarray:
    """States (n_steps + 1,) of the path of the largest probability, by dynamic programming."""
    with np.errstate(divide="ignore"):
        log_p = np.log(matrix)
    best = np.full(len(matrix), -np.inf)
    best[first] = 0
    came_from = []
    for _ in range(n_steps):
        through = best[:, None] + log_p
        came_from.append(through.argmax(axis=0))
        best = through.max(axis=0)
    path = [int(best.argmax())]
    for origin in reversed(came_from):
        path.append(int(origin[path[-1]]))
    return np.array(path[::-1])


def _sampled_paths(
    matrix: np.ndarray, first: int, n_steps: int, n_samples: int, rng: np.random.Generator
) -> np.ndarray:
    """States (n_samples, n_steps + 1) drawn from the chain."""
    paths = np.full((n_samples, n_steps + 1), first)
    cumulative = matrix.cumsum(axis=1)
    cumulative[:, -1] = 1 + 1e-9  # sums of one, whatever the rounding
    for step in range(n_steps):
        draw = rng.random((n_samples, 1))
        paths[:, step + 1] = (draw >= cumulative[paths[:, step]]).sum(axis=1)
    return paths


def _check_time(adata: AnnData, time_key: str | None, trajectory_key: str | None, transition_key: str | None) -> None:
    """Raise unless what was said of time fits the data."""
    check_obs_keys(adata, {"time_key": time_key, "trajectory_key": trajectory_key})
    if transition_key is not None:
        _check_transitions(adata, transition_key)
    if time_key is None:
        if trajectory_key is not None:
            raise ValueError("`trajectory_key` needs `time_key`: cells of a trajectory follow each other in time.")
        return
    time = time_codes(adata.obs[time_key], time_key)
    trajectory = None if trajectory_key is None else pd.factorize(adata.obs[trajectory_key])[0]
    if transition_key is None and not are_sequences(time, trajectory):
        require_transport()


def _check_transitions(adata: AnnData, key: str) -> None:
    if key not in adata.obsp:
        raise ValueError(f"`transition_key`: `adata.obsp` has no {key!r}; found {', '.join(adata.obsp) or 'nothing'}.")
    values = csr_matrix(adata.obsp[key]).data
    if not np.isfinite(values).all() or (values < 0).any() or values.sum() == 0:
        raise ValueError(
            f"`transition_key`: `adata.obsp[{key!r}]` must hold weights of at least 0 that are not all 0; found "
            f"{'values that are not finite' if not np.isfinite(values).all() else 'negative or no weights'}. "
            "A signed matrix such as a velocity graph must be turned into a transition matrix first."
        )
