"""Where clusters are looked for, and what is kept of where they started."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from scdeepclust.train import (
    MAX_POINTS,
    Initialiser,
    cut,
    digest,
    given_labels,
    initial_labels,
    least_p_below,
    one_thread,
    separation_linkage,
    split_p_values,
)

from ._checks import check_held_out
from ._halves import N_HALVINGS, Components, Halves, halve
from ._streamed import DataModuleMixin

# Principal components of denoised expression that start labels are looked for in.
N_START_COMPONENTS = 20

# Largest dense block (cells x genes) from which those components are computed: 80 MB.
MAX_DENSE_ENTRIES = 20_000_000


def denoised_components(
    blocks_of: Callable[[np.ndarray], Iterator[np.ndarray]], cells: np.ndarray, n_genes: int, seed: int
) -> Components:
    """Principal components of denoised expression.

    Parameters
    ----------
    blocks_of
        Yields denoised expression of given cells, in their order, as blocks (rows, genes).
    cells
        Rows of the cells (n,).
    n_genes
        Number of genes.
    seed
        Seed of the sample and of the decomposition.
    """
    from sklearn.decomposition import PCA

    # the components come from a bounded number of cells, so that no cells x genes matrix is ever dense
    n_sample = min(len(cells), max(1000, MAX_DENSE_ENTRIES // n_genes))
    sample = np.sort(np.random.default_rng(seed).choice(cells, n_sample, replace=False))
    n_components = min(N_START_COMPONENTS, n_sample - 1, n_genes)
    with one_thread():
        pca = PCA(n_components, svd_solver="randomized", random_state=seed)
        pca.fit(np.concatenate(list(blocks_of(sample))))
    return Components(pca.mean_, pca.components_)


class StartsMixin(DataModuleMixin):
    """Labels that clusters start from, and codes such as these kept for a fit that goes on in another ``train``."""

    module: Any
    init_params_: dict
    initial_labels_: Any
    finds_n_clusters_: bool = False
    _given_start: np.ndarray | None
    _init: Initialiser | Sequence
    _n_init: int
    _alpha: float
    _seed: int | None
    starts_: dict[str, np.ndarray] = {}
    start_cells_: str | None = None

    @property
    def _start_seed(self) -> int:
        """Seed of what is looked for once: the same in each process of a distributed fit."""
        return self._seed or 0

    @property
    def _keeps_reference_clusters(self) -> bool:
        """Whether this model maps a query: its clusters, and their names, are then those of the reference."""
        return getattr(self, "is_query_", False)

    def _start_labels(self, cells: np.ndarray, points: np.ndarray | None = None) -> np.ndarray:
        """Labels (n,) int64 for the clustering phase to start from, largest cluster first.

        ``points`` are the start points of these cells where the caller has them already.
        """
        n_clusters = self.module.n_clusters or None
        if self._given_start is not None:
            labels = np.unique(self._given_start[cells], return_inverse=True)[1]
        elif isinstance(self._init, str):
            points = self._start_points(cells) if points is None else points
            labels = initial_labels(points, self._init, n_clusters, n_init=self._n_init, seed=self._start_seed)
            if n_clusters is None:
                labels = self._supported_labels(cells, labels)
        else:
            labels = given_labels(self._init, self.adata.n_obs, n_clusters)[cells]
        order = np.argsort(-np.bincount(labels), kind="stable")
        labels = np.argsort(order)[labels]
        self.initial_labels_ = np.array([str(k) for k in range(len(order))])[labels]  # as wide as need be
        self._keep_n_clusters(len(order))
        return labels

    def _begin_training(self) -> None:
        """Find what is wrong with the data or the start before any training."""
        if not isinstance(self._init, str) and not self._keeps_reference_clusters:
            if not self.module.knows_data or len(self._init) == self.adata.n_obs:
                given_labels(self._init, self.adata.n_obs, self.module.n_clusters or None)
                check_held_out("init", pd.Series(np.asarray(self._init)), self.train_indices)
        super()._begin_training()

    def _start_points(self, cells: np.ndarray) -> np.ndarray:
        """Where clusters are looked for, (n, P): denoised expression, unless a model knows better."""
        return self._denoised_points(cells)

    def _keep_n_clusters(self, n_clusters: int) -> None:
        """Loading builds the module from the arguments of the constructor: let them have the number that was found."""
        self.init_params_["non_kwargs"]["n_clusters"] = n_clusters

    def _denoised_points(
        self, cells: np.ndarray, transform: Callable[[np.ndarray], np.ndarray] = np.asarray
    ) -> np.ndarray:
        """Principal components of denoised expression, (n, P), where distances are Hellinger distances.

        Distances there weigh genes as the data do; in the latent space, dimensions that carry noise are about as wide
        as those that carry cell types. ``transform`` is applied to the square roots of the expected shares first.
        """

        def blocks_of(rows: np.ndarray) -> Iterator[np.ndarray]:
            return (transform(block) for block in self._denoised_blocks(rows))

        components = denoised_components(blocks_of, cells, self.module.n_input, self._start_seed)
        return np.concatenate([components.transform(block) for block in blocks_of(cells)])

    def _halves(self, cells: np.ndarray, n_halvings: int = N_HALVINGS, *, independent: bool = False) -> list[Halves]:
        """Cells by each half of their counts, for some ways of halving them (see :func:`halve`)."""
        components = denoised_components(self._denoised_blocks, cells, self.module.n_input, self._start_seed)
        self.module.eval()
        seeds = range(self._start_seed, self._start_seed + n_halvings)
        return [
            halve(self.module, self._minibatches(indices=cells), components, seed, independent=independent)
            for seed in seeds
        ]

    def _supported_labels(
        self, cells: np.ndarray, labels: np.ndarray, points: Sequence[tuple[np.ndarray, np.ndarray]] | None = None
    ) -> np.ndarray:
        """Labels in which clusters are joined that the halves of the counts do not tell from one population.

        ``points`` are the places of these cells by both halves, for each halving, where the caller has them already.
        """
        labels = np.unique(labels, return_inverse=True)[1]
        if labels.max() == 0:
            return labels
        rows = np.arange(len(cells))
        if len(cells) > MAX_POINTS:
            rows = np.sort(np.random.default_rng(self._start_seed).choice(len(cells), MAX_POINTS, replace=False))
        in_rows, codes = np.unique(labels[rows], return_inverse=True)
        if points is None:
            points = [halves.points for halves in self._halves(cells[rows])]
        else:
            points = [(first[rows], second[rows]) for first, second in points]
        linkage = separation_linkage(codes, points)
        p = least_p_below(linkage, split_p_values(codes, linkage, points, self._start_seed))
        group = np.arange(labels.max() + 1) + len(in_rows)  # a cluster with no cell among the rows stays
        group[in_rows] = cut(linkage, p > self._alpha)
        return np.unique(group[labels], return_inverse=True)[1]

    @torch.inference_mode()
    def _denoised_blocks(self, cells: np.ndarray) -> Iterator[np.ndarray]:
        batches = self.module.typical_batches()
        for tensors in self._minibatches(indices=cells):
            z = self._encode(tensors)["z_mean"]
            yield self.module.denoised_expression(z, self.module.covariates(tensors), batches).cpu().numpy()

    # -- kept for another call of train

    def _keep_start(self, name: str, cells: np.ndarray, codes: np.ndarray) -> Tensor:
        """Keep the codes of these cells; returns those of all cells (n,), -1 where there is none."""
        of_all = np.full(self.adata.n_obs, -1, dtype=np.int32)
        of_all[cells] = codes
        self.starts_ = self.starts_ | {name: of_all}
        self.start_cells_ = hash_of_names(self.adata)
        return torch.as_tensor(of_all, dtype=torch.long)

    def _kept_start(self, name: str) -> Tensor | None:
        """What was kept, unless the model has got other cells since."""
        if name not in self.starts_ or self.start_cells_ != hash_of_names(self.adata):
            return None
        return torch.as_tensor(self.starts_[name], dtype=torch.long)

    def _renumber_start(self, name: str, order: np.ndarray) -> None:
        """New code j is old code ``order[j]``; codes that are not in ``order`` are forgotten."""
        if name in self.starts_:
            old = self.starts_[name]
            new = np.full(max(old.max(), order.max()) + 2, -1, dtype=np.int32)  # its last entry is for -1
            new[order] = np.arange(len(order))
            self.starts_ = self.starts_ | {name: new[old]}


def hash_of_names(adata: AnnData) -> str:
    """What tells cells from others, by their names."""
    return digest("\n".join(map(str, adata.obs_names)).encode())
