r"""Divergence of a Gaussian posterior from a mixture of Gaussians.

With the posterior of the component, :math:`r_k = p(k \mid z) \propto \pi_k\, p(z \mid k)`, the term of the mixture is

.. math::
    \log q(z) - \log \sum_k \pi_k\, p(z \mid k)
        = \sum_k r_k \big(\log q(z) - \log p(z \mid k)\big) + \mathrm{KL}(r \,\|\, \pi),

whose two parts are kept apart because the second may be given for free.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from scdeepclust.nn import diag_gaussian_log_prob, full_precision

PriorEstimator = Literal["exact", "analytic_kl"]


class MixtureDivergence(NamedTuple):
    """Divergence of q(z) from a mixture, in its two parts, and the component posterior it was computed with."""

    kl_latent: Tensor  # (B,)
    kl_component: Tensor  # (B,)
    log_r: Tensor  # (..., B, K)


@full_precision
def mixture_divergence(
    z: Tensor,
    z_mean: Tensor,
    z_log_var: Tensor,
    *,
    means: Tensor,
    log_var: Tensor,
    log_weights: Tensor,
    estimator: PriorEstimator = "exact",
    free_bits: float = 0.0,
) -> MixtureDivergence:
    """Divergence of a diagonal Gaussian posterior from a mixture of diagonal Gaussians, estimated at draws of z.

    Parameters
    ----------
    z
        Draws from the posterior, shape (B, D) or (M, B, D); the result is the mean over the M.
    z_mean, z_log_var
        Posterior of each cell, shape (B, D).
    means, log_var
        Components, as in :func:`diag_gaussian_log_prob`.
    log_weights
        Log of the weights of the components, shape (K,).
    estimator
        ``"exact"``: the identity above, with log q(z) replaced by its mean, which has no variance. ``"analytic_kl"``:
        log q(z) - log p(z | k) replaced by its mean over z while r is taken at the draw. Both depend on the same z,
        so the mean of their product is not the product of the means, and the result is too large.
    free_bits
        Nats below which ``kl_component`` costs nothing.

    Returns
    -------
    The two parts and log r.
    """
    log_p = diag_gaussian_log_prob(z, means, log_var)  # (..., B, K)
    log_r = torch.log_softmax(log_p + log_weights, dim=-1)
    r = log_r.exp()
    negative_entropy = -0.5 * (z_log_var + math.log(2 * math.pi) + 1).sum(dim=-1)  # (B,)
    if estimator == "analytic_kl":
        log_p = _mean_log_prob(z_mean.expand_as(z), z_log_var.exp(), means, log_var)
    kl_latent = negative_entropy - (r * log_p).sum(dim=-1)  # (..., B)
    kl_component = (r * (log_r - log_weights)).sum(dim=-1).clamp_min(free_bits)
    n_cells = len(z_mean)
    return MixtureDivergence(kl_latent.view(-1, n_cells).mean(dim=0), kl_component.view(-1, n_cells).mean(dim=0), log_r)


def _mean_log_prob(z_mean: Tensor, z_var: Tensor, means: Tensor, log_var: Tensor) -> Tensor:
    """Mean of log p(z | k) over a Gaussian z: its value at the mean of z, less what the spread of z costs; (..., K)."""
    precision = torch.exp(-log_var)
    spread = z_var @ precision.T if precision.dim() == 2 else (z_var.unsqueeze(-2) * precision).sum(dim=-1)
    return diag_gaussian_log_prob(z_mean, means, log_var) - 0.5 * spread
