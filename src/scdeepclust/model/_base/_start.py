"""Where clusters are looked for, and judged: principal components of denoised expression."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix, vstack
from scvi import settings

from scdeepclust.train import one_thread

from ._module import ClusteringModule

if TYPE_CHECKING:
    from sklearn.decomposition import PCA

# Principal components of denoised expression that start labels are looked for in.
N_START_COMPONENTS = 20

# Largest dense block (cells x genes) from which those components are computed: 80 MB.
MAX_DENSE_ENTRIES = 20_000_000

Blocks = Callable[[np.ndarray], Iterator[np.ndarray]]


def denoised_components(blocks_of: Blocks, cells: np.ndarray, n_genes: int) -> PCA:
    """Principal components of denoised expression, fitted.

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
        return pca.fit(np.concatenate(list(blocks_of(sample))))


class Halves(NamedTuple):
    """Cells by one half of their counts, and by the other half."""

    points: tuple[np.ndarray, np.ndarray]  # places in denoised expression, (n, P)
    counts: tuple[csr_matrix, csr_matrix]  # (n, G)


@torch.inference_mode()
def halve(module: ClusteringModule, minibatches: Iterable[dict], pca: PCA, seed: int) -> Halves:
    """Halve the counts of cells at random, as if they were sequenced twice, and place them by each half.

    Parameters
    ----------
    module
        The module, in evaluation mode.
    minibatches
        The cells, on its device.
    pca
        Components of :func:`denoised_components`.
    seed
        Seed of the halves.
    """
    generator = torch.Generator().manual_seed(seed)
    points: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    halves: tuple[list[csr_matrix], list[csr_matrix]] = ([], [])
    for tensors in minibatches:
        inputs = module._get_inference_input(tensors)
        if inputs["size_factor"] is not None:
            inputs["size_factor"] = inputs["size_factor"] / 2
        for i, counts in enumerate(inputs["counts"].halved(generator)):
            z = module.inference(**inputs | {"counts": counts})["z_mean"]
            points[i].append(pca.transform(module.denoised_expression(z, inputs["covariates"]).cpu().numpy()))
            entries = [values.cpu().numpy() for values in (counts.value, counts.row, counts.col)]
            halves[i].append(csr_matrix((entries[0], entries[1:]), shape=(counts.n_cells, counts.n_genes)))
    first, second = ((np.concatenate(points[i]), vstack(halves[i], format="csr")) for i in (0, 1))
    return Halves(*zip(first, second, strict=True))


def start_seed() -> int:
    """The seed of scvi-tools, or 0: start labels are the same in each process of a distributed fit."""
    return settings.seed or 0
