"""The counts of cells in two halves: what the splits of clusters are judged by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix, vstack
from torch import Tensor

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
def halve(
    module: ClusteringModule, minibatches: Iterable[dict], pca: PCA, seed: int, *, independent: bool = False
) -> Halves:
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
    independent
        Whether the halves share nothing but what the model expects of a cell, so that one can test what the other
        named. Otherwise they share the expression of the cell, of which the model explains a part, as two sequencings
        of it would.
    """
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    points: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    halves: tuple[list[csr_matrix], list[csr_matrix]] = ([], [])
    for tensors in minibatches:
        inputs = module._get_inference_input(tensors)
        share = _uneven_shares(module, inputs, rng) if independent else None
        if inputs["size_factor"] is not None:
            inputs["size_factor"] = inputs["size_factor"] / 2
        for i, counts in enumerate(inputs["counts"].halved(generator, share)):
            z = module.inference(**inputs | {"counts": counts})["z_mean"]
            points[i].append(pca.transform(module.denoised_expression(z, inputs["covariates"]).cpu().numpy()))
            entries = [values.cpu().numpy() for values in (counts.value, counts.row, counts.col)]
            halves[i].append(csr_matrix((entries[0], entries[1:]), shape=(counts.n_cells, counts.n_genes)))
    first, second = ((np.concatenate(points[i]), vstack(halves[i], format="csr")) for i in (0, 1))
    return Halves(*zip(first, second, strict=True))


def _uneven_shares(module: ClusteringModule, inputs: dict, rng: np.random.Generator) -> Tensor | None:
    """Share of each non-zero count for the first half, so that negative binomial counts make independent halves.

    A negative binomial count of size theta is the sum of two independent ones of size theta / 2, and given the sum the
    first of them is beta-binomial.
    """
    if module.gene_likelihood not in ("nb", "zinb"):
        return None
    counts = inputs["counts"]
    log_theta = module.decoder(module.inference(**inputs)["z_mean"], inputs["covariates"]).log_theta
    theta = log_theta.exp().expand(counts.n_cells, counts.n_genes)[counts.row, counts.col].cpu().double().numpy()
    share = rng.beta(theta / 2, theta / 2)
    return torch.as_tensor(share, dtype=counts.value.dtype)
