"""A continuous variable that moves and scales the components of a mixture."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class StyleOffsets(nn.Module):
    """How a continuous style variable w moves and scales the components of a mixture.

    The last layer starts at zero, that is at a mixture which does not depend on w: a random start would let w, which
    is free for every cell, take over what the components should explain.

    Parameters
    ----------
    n_w
        Dimension of w.
    n_components
        Number of components K.
    n_latent
        Dimension D of the space of the mixture.
    n_hidden
        Width of the hidden layer.

    Examples
    --------
    >>> import torch
    >>> from scdeepclust.model.gmvae._style import StyleOffsets
    >>> means, log_var = StyleOffsets(2, n_components=3, n_latent=5)(torch.randn(7, 2))
    >>> means.shape, log_var.shape
    (torch.Size([7, 3, 5]), torch.Size([7, 3, 5]))
    """

    def __init__(self, n_w: int, n_components: int, n_latent: int, n_hidden: int = 64) -> None:
        super().__init__()
        self.n_latent = n_latent
        self.hidden = nn.Sequential(nn.Linear(n_w, n_hidden), nn.GELU(), nn.LayerNorm(n_hidden))
        self.offsets = nn.Parameter(torch.zeros(n_components, 2 * n_latent, n_hidden))

    def forward(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets of means and log-variances, each (..., K, D), for w of shape (..., n_w)."""
        n_components, n_out, n_hidden = self.offsets.shape
        flat = self.hidden(w) @ self.offsets.view(-1, n_hidden).T  # (..., K * 2D)
        means, log_var = flat.unflatten(-1, (n_components, n_out)).chunk(2, dim=-1)
        return means, log_var

    @torch.no_grad()
    def select(self, order: Tensor) -> None:
        """Renumber the components as :meth:`GaussianMixture.select` does."""
        self.offsets = nn.Parameter(self.offsets[order])
