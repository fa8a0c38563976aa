"""Where clusters are looked for: principal components of denoised expression."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scvi import settings

from scdeepclust.train import one_thread

# Principal components of denoised expression that start labels are looked for in.
N_START_COMPONENTS = 20

# Largest dense block (cells x genes) from which those components are computed: 80 MB.
MAX_DENSE_ENTRIES = 20_000_000


def denoised_components(
    blocks_of: Callable[[np.ndarray], Iterator[np.ndarray]], cells: np.ndarray, n_genes: int
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
    """
    from sklearn.decomposition import PCA

    # the components come from a bounded number of cells, so that no cells x genes matrix is ever dense
    n_sample = min(len(cells), max(1000, MAX_DENSE_ENTRIES // n_genes))
    sample = np.sort(np.random.default_rng(start_seed()).choice(cells, n_sample, replace=False))
    n_components = min(N_START_COMPONENTS, n_sample - 1, n_genes)
    with one_thread():
        pca = PCA(n_components, svd_solver="randomized", random_state=start_seed())
        pca.fit(np.concatenate(list(blocks_of(sample))))
    return np.concatenate([pca.transform(block) for block in blocks_of(cells)])


def start_seed() -> int:
    """The seed of scvi-tools, or 0: start labels are the same in each process of a distributed fit."""
    return settings.seed or 0
