"""The counts of cells in two halves: what the splits of clusters are judged by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix, vstack

from ._module import ClusteringModule

if TYPE_CHECKING:
    from sklearn.decomposition import PCA

# Ways in which the counts are halved.
N_HALVINGS = 2


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
