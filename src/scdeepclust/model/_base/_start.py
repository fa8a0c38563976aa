"""Where clusters are looked for, and what is kept of where they started."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from anndata import AnnData
from scvi.model.base import BaseModelClass
from torch import Tensor

from scdeepclust.train import digest, one_thread

# Principal components of denoised expression that start labels are looked for in.
N_START_COMPONENTS = 20

# Largest dense block (cells x genes) from which those components are computed: 80 MB.
MAX_DENSE_ENTRIES = 20_000_000


def denoised_components(
    blocks_of: Callable[[np.ndarray], Iterator[np.ndarray]], cells: np.ndarray, n_genes: int, seed: int
) -> np.ndarray:
    """Principal components of denoised expression, (n, P).

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
    return np.concatenate([pca.transform(block) for block in blocks_of(cells)])


class StartsMixin(BaseModelClass):
    """Codes that cells start from, such as labels, kept for a fit that goes on in another call of ``train``."""

    starts_: dict[str, np.ndarray] = {}
    start_cells_: str | None = None

    def _keep_start(self, name: str, cells: np.ndarray, codes: np.ndarray) -> Tensor:
        """Keep the codes of these cells; returns those of all cells (n,), -1 where there is none."""
        of_all = np.full(self.adata.n_obs, -1, dtype=np.int32)
        of_all[cells] = codes
        self.starts_ = self.starts_ | {name: of_all}
        self.start_cells_ = _hash_of_names(self.adata)
        return torch.as_tensor(of_all, dtype=torch.long)

    def _kept_start(self, name: str) -> Tensor | None:
        """What was kept, unless the model has got other cells since."""
        if name not in self.starts_ or self.start_cells_ != _hash_of_names(self.adata):
            return None
        return torch.as_tensor(self.starts_[name], dtype=torch.long)

    def _renumber_start(self, name: str, order: np.ndarray) -> None:
        """New code j is old code ``order[j]``; codes that are not in ``order`` are forgotten."""
        if name in self.starts_:
            old = self.starts_[name]
            new = np.full(max(old.max(), order.max()) + 2, -1, dtype=np.int32)  # its last entry is for -1
            new[order] = np.arange(len(order))
            self.starts_ = self.starts_ | {name: new[old]}


def _hash_of_names(adata: AnnData) -> str:
    return digest("\n".join(map(str, adata.obs_names)).encode())
