"""What an IDC model tells besides its clusters: gates of cells and of clusters, scores of other numbers of clusters."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.sparse import csr_matrix, vstack
from torch import nn

from scdeepclust._keys import ResultKeys
from scdeepclust.model._base import Indices, ModelPart, all_genes, check_n_clusters
from scdeepclust.train import initial_labels, one_thread

from ._coding_rate import coding_rate, compressed_rate
from ._gates import draw_gates

# Gates below this are closed: what they let through is less than a hundredth of the expression.
OPEN = 0.01

# Cells whose gates are looked at for warnings, and the share of them without open gates that is worth one.
MAX_GATED_CELLS, MANY_CLOSED = 2000, 0.1


class GateGetters(ModelPart):
    """Getters of :class:`IDC`."""

    _clusterer: str

    def get_gates(
        self, adata: AnnData | None = None, indices: Indices = None, batch_size: int | None = None
    ) -> csr_matrix:
        """Gate of each gene in each cell: 1 where the cluster was read from the gene, 0 where it was not looked at.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`predict`.

        Returns
        -------
        Sparse matrix (n_cells, n_genes), float32, of gates of at least 0.01; smaller ones count as closed.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        """
        self._check_if_trained(warn=False)
        blocks = []
        for tensors in self._minibatches(adata, indices, batch_size):
            gates = draw_gates(self._encode(tensors)["gate_means"]).cpu().numpy()
            blocks.append(csr_matrix(np.where(gates < OPEN, 0, gates)))
        return vstack(blocks, format="csr")

    def get_global_gates(self) -> pd.DataFrame:
        """Gate of each gene for each cluster: which genes tell the cluster from all others.

        Returns
        -------
        Genes x clusters, in [0, 1].

        Raises
        ------
        RuntimeError
            If the model is not trained.
        """
        self._check_if_trained(warn=False)
        with torch.no_grad():
            gates = draw_gates(self.module.global_budget(self.module.global_gates)).T.cpu().numpy()
        names = [str(k) for k in range(self.n_clusters)]
        return pd.DataFrame(np.where(gates < OPEN, 0, gates), index=self.gene_names_, columns=names)

    def _results(self, adata: AnnData, keys: ResultKeys, confidences: list[np.ndarray]) -> list[tuple[str, str, Any]]:
        gates, global_gates = self.get_gates(adata), self.get_global_gates()
        n_genes = np.diff(gates.indptr)
        genes = all_genes(adata)
        if list(genes) != list(self.gene_names_):
            # genes the model does not know have closed gates in cells, and none in clusters
            columns = genes.get_indexer(self.gene_names_)
            gates = csr_matrix((gates.data, columns[gates.indices], gates.indptr), (len(n_genes), len(genes)))
            gates.sort_indices()
            global_gates = global_gates.reindex(genes)
        return [
            *super()._results(adata, keys, confidences),
            ("layers", keys.gates, gates),
            ("obs", keys.n_genes, n_genes),
            ("varm", keys.global_gates, global_gates),
        ]

    def _start_points(self, cells: np.ndarray) -> np.ndarray:
        """Where clusters are looked for, (n, P).

        For the clustering head, in expression denoised from the open genes and, with equal weight, from all genes: two
        partitions that the open genes alone hardly tell apart are decided by the others.
        """
        if self._clusterer != "mcr2":
            return self._latent(indices=cells)
        views = []
        for uses_gates in (True, False):
            with _gates_in_use(self.module, uses_gates):
                views.append(_unit_variance(self._denoised_points(cells)))
        return np.concatenate(views, axis=1)

    def sweep_n_clusters(self, numbers: Sequence[int]) -> pd.DataFrame:
        """Other numbers of clusters of the same gated cells, scored without labels. Nothing is trained.

        Parameters
        ----------
        numbers
            Numbers of clusters.

        Returns
        -------
        Indexed by ``n_clusters``: ``rate``, the coding rate of the latent codes cluster by cluster over that of all
        cells together, and ``silhouette``, the mean silhouette width of the latent codes. Look for the number after
        which the rate hardly falls; :meth:`recluster` then takes it.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If a number is below 2 or above the number of cells.
        """
        from sklearn.metrics import silhouette_score

        self._check_if_trained(warn=False)
        if isinstance(numbers, str) or not isinstance(numbers, Iterable) or not len(numbers := list(numbers)):
            raise ValueError(f"`numbers` must be a list of numbers of clusters; found {numbers!r}.")
        for number in numbers:
            check_n_clusters(number, self.adata.n_obs, "numbers")
        cells = np.arange(self.adata.n_obs)
        points, seed = self._start_points(cells), self._start_seed
        method = self._init if isinstance(self._init, str) else "merge"
        unit = torch.as_tensor(_unit_variance(self._latent()))
        rows = []
        for number in numbers:
            labels = initial_labels(points, method, number, n_init=self._n_init, seed=seed)
            members = nn.functional.one_hot(torch.as_tensor(labels)).float()
            with one_thread():
                width = silhouette_score(unit.numpy(), labels, sample_size=min(5000, len(labels)), random_state=seed)
            rows.append({"rate": float(compressed_rate(unit, members) / coding_rate(unit)), "silhouette": float(width)})
        return pd.DataFrame(rows, index=pd.Index(numbers, name="n_clusters"))

    def _warn_if_degenerate(self, probabilities: np.ndarray) -> None:
        """Say so when gates are closed for good, or open for the same genes in every cell."""
        super()._warn_if_degenerate(probabilities)
        cells = np.arange(min(self.adata.n_obs, MAX_GATED_CELLS))
        opened = self.get_gates(indices=cells) > 0
        n_open = np.diff(opened.indptr)  # of each cell
        n_cells = np.asarray(opened.sum(axis=0))  # of each gene
        if (n_open == 0).mean() > MANY_CLOSED:
            warnings.warn(
                f"{(n_open == 0).mean():.0%} of the cells have no open gate: their clusters mean nothing. Train longer "
                "(`pretrain_epochs`), or with a larger `target_sparsity`.",
                stacklevel=2,
            )
        elif np.isin(n_cells, (0, len(cells))).all():
            warnings.warn(
                "Gates are open for the same genes in all cells: they select genes, but explain no cell. Train longer "
                "(`pretrain_epochs`), or with a smaller `target_sparsity`.",
                stacklevel=2,
            )


@contextmanager
def _gates_in_use(module: Any, uses_gates: bool) -> Iterator[None]:
    """Look through the gates or past them, and leave the module as it was, whatever happens meanwhile."""
    before, module.uses_gates = module.uses_gates, uses_gates
    try:
        yield
    finally:
        module.uses_gates = before


def _unit_variance(points: np.ndarray) -> np.ndarray:
    """Points (n, D) centred and divided by their root mean square distance from the centre."""
    centred = points - points.mean(axis=0)
    return centred / max(np.sqrt(np.square(centred).sum(axis=1).mean()), np.finfo(np.float32).eps)
