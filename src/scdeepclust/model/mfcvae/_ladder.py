"""Ladder networks: the facets of a latent space leave the encoder, and join the decoder, at different depths.

Facet 0 is the deepest: it leaves the encoder last and enters the decoder first. Every further facet is read from one
layer less and joins one rung later, so that what it says is added to what the facets above have said.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scdeepclust.nn import CovariateMLP, Covariates


class LadderEncoder(nn.Module):
    """Layers whose outputs are all kept, one for each facet.

    Parameters
    ----------
    n_input
        Number of input features.
    n_facets
        Number of facets.
    n_hidden
        Width of the layers.
    n_layers
        Number of layers. With more facets than layers the last facets share the first layer.
    dropout_rate
        Dropout after each activation.
    **covariates
        Numbers of batches and covariates of the first layer, as in :class:`CovariateMLP`.

    Examples
    --------
    >>> import torch
    >>> from scdeepclust.model.mfcvae._ladder import LadderEncoder
    >>> deep, shallow = LadderEncoder(20, 2, n_hidden=8)(torch.randn(4, 20))
    >>> deep.shape, shallow.shape
    (torch.Size([4, 8]), torch.Size([4, 8]))
    """

    def __init__(
        self,
        n_input: int,
        n_facets: int,
        *,
        n_hidden: int = 128,
        n_layers: int = 2,
        dropout_rate: float = 0.1,
        **covariates: Any,
    ):
        super().__init__()
        self.n_facets = n_facets
        shape: dict[str, Any] = {"n_hidden": n_hidden, "n_layers": 1, "dropout_rate": dropout_rate}
        self.first = CovariateMLP(n_input, **shape, **covariates)
        self.deeper = nn.ModuleList(CovariateMLP(n_hidden, **shape) for _ in range(n_layers - 1))

    def forward(self, u: Tensor, covariates: Covariates | None = None) -> list[Tensor]:
        """Features (B, n_hidden) of every facet, the deepest first."""
        features = [self.first(u, covariates)]
        for layer in self.deeper:
            features.append(layer(features[-1]))
        return [features[max(len(features) - 1 - j, 0)] for j in range(self.n_facets)]


class LadderBody(nn.Module):
    """Decoder body that the facets enter one after another.

    With z_0 at the top, h_0 = MLP(z_0), and every further facet adds a rung,

        h_j = h_{j-1} + fade_j MLP_j([h_{j-1}, z_j]).

    A rung sees what is above it: the effect of a facet may depend on the facets before. With fade 0 a facet is
    absent, and the ladder is the network without it.

    Parameters
    ----------
    latent_sizes
        Size of each facet, the deepest first; the input is their concatenation.
    n_hidden
        Width of the layers, and of the output.
    **kwargs
        As in :class:`CovariateMLP`; covariates enter at every rung.

    Examples
    --------
    >>> import torch
    >>> from scdeepclust.model.mfcvae._ladder import LadderBody
    >>> from scdeepclust.nn import Covariates
    >>> body = LadderBody([3, 2], n_hidden=8, n_batch=2)
    >>> body(torch.randn(4, 5), Covariates(torch.zeros(4, 1).long())).shape
    torch.Size([4, 8])
    """

    fade: Tensor

    def __init__(self, latent_sizes: Sequence[int], *, n_hidden: int, **kwargs: Any):
        super().__init__()
        self.latent_sizes = list(latent_sizes)
        top, *others = self.latent_sizes
        self.top = CovariateMLP(top, n_hidden=n_hidden, n_layers=1, **kwargs)
        self.rungs = nn.ModuleList(
            CovariateMLP(n_hidden + size, n_hidden=n_hidden, n_layers=1, **kwargs) for size in others
        )
        # share of each facet that has been let in; facet 0 is there from the start
        self.register_buffer("fade", torch.tensor([1.0] + [0.0] * len(others)))

    def forward(self, z: Tensor, covariates: Covariates | None = None) -> Tensor:
        """Features (..., n_hidden) of the joint code z (..., sum of the sizes)."""
        top, *others = z.split(self.latent_sizes, dim=-1)
        h = self.top(top, covariates)
        for fade, rung, z_j in zip(self.fade[1:], self.rungs, others, strict=True):
            h = h + fade * rung(torch.cat([h, z_j], dim=-1), covariates)
        return h
