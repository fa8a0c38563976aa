"""The counts of cells in two halves: what the splits of clusters are judged by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix, vstack
from torch import Tensor

from scdeepclust.nn import Counts

from ._module import ClusteringModule

# Ways in which the counts are halved.
N_HALVINGS = 2


class Components(NamedTuple):
    """Principal components of denoised expression."""

    mean: np.ndarray  # (G,)
    axes: np.ndarray  # (P, G)

    def transform(self, expression: np.ndarray) -> np.ndarray:
        """Places (n, P) of denoised expression (n, G)."""
        return (expression - self.mean) @ self.axes.T


class Half(NamedTuple):
    """Cells of a minibatch by a half of their counts."""

    points: np.ndarray  # places in denoised expression, (B, P)
    inputs: dict  # of the module's inference, with this half as counts


class Halves(NamedTuple):
    """Cells by one half of their counts, and by the other half."""

    points: tuple[np.ndarray, np.ndarray]  # places in denoised expression, (n, P)
    counts: tuple[csr_matrix, csr_matrix]  # (n, G)


def halve(
    module: ClusteringModule, minibatches: Iterable[dict], components: Components, seed: int, *, independent=False
) -> Halves:
    """Halve the counts of cells at random, as if they were sequenced twice, and place them by each half.

    Parameters
    ----------
    module
        The module, in evaluation mode.
    minibatches
        The cells, on its device.
    components
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
        for i, half in enumerate(half_points(module, inputs, components, generator, share)):
            points[i].append(half.points)
            halves[i].append(csr_of(half.inputs["counts"]))
    first, second = ((np.concatenate(points[i]), vstack(halves[i], format="csr")) for i in (0, 1))
    return Halves(*zip(first, second, strict=True))


@torch.inference_mode()
def half_points(
    module: ClusteringModule,
    inputs: dict,
    components: Components,
    generator: torch.Generator,
    share: Tensor | None = None,
) -> list[Half]:
    """Both halves of the counts of a minibatch; ``share`` is that of each count which the first may expect."""
    if inputs["size_factor"] is not None:
        inputs = inputs | {"size_factor": inputs["size_factor"] / 2}
    halves = []
    for counts in inputs["counts"].halved(generator, share):
        of_half = inputs | {"counts": counts}
        z = module.inference(**of_half)["z_mean"]
        expression = module.denoised_expression(z, inputs["covariates"]).cpu().numpy()
        halves.append(Half(components.transform(expression), of_half))
    return halves


def csr_of(counts: Counts) -> csr_matrix:
    """Counts of a minibatch as a matrix, (B, G)."""
    value, row, col = (values.cpu().numpy() for values in (counts.value, counts.row, counts.col))
    return csr_matrix((value, (row, col)), shape=(counts.n_cells, counts.n_genes))


@torch.inference_mode()
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
