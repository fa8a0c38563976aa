r"""The negative binomial, with and without zero inflation, paying for the non-zeros and not for the zeros.

Nine entries in ten of a single-cell matrix are zero, and at a zero the gamma functions of the negative binomial
cancel. With mean :math:`\mu = \ell \, \mathrm{softmax}(h)` (:math:`\ell` the library size, :math:`h` the decoder's
scores), inverse dispersion :math:`\theta`, :math:`E = \mu / \theta`, :math:`t = \log(1 + E)` and
:math:`s = E / (1 + E)`:

.. math::
    \log \mathrm{NB}(0) &= -\theta t, \\
    \log \mathrm{NB}(x) &= x \log s - \theta t + \log\Gamma(x + \theta) - \log\Gamma(\theta) - \log x! ,

with the derivatives, per entry,

.. math::
    \partial / \partial \log\mu &= x (1 - s) - \theta s, \\
    \partial / \partial \log\theta &= \theta \, (s - t) - x (1 - s) + \theta \, (\psi(x + \theta) - \psi(\theta)) .

Zero inflation with dropout logit :math:`c`, :math:`\pi = \sigma(c)`, adds :math:`\log(1 - \pi)` at a non-zero. At a
zero, with :math:`n_0 = -\theta t` and :math:`y = (1 - \pi)(e^{n_0} - 1)`,

.. math::
    \log \mathrm{ZINB}(0) &= \log(\pi + (1 - \pi) e^{n_0}) = \log(1 + y), \\
    \partial / \partial n_0 &= \sigma(n_0 - c), \qquad \partial / \partial c = -y \, \sigma(c - n_0) .

The softmax is fused: with :math:`g = \partial / \partial \log \mu` and :math:`R = \sum_g g` over the genes of a cell,
the gradient of the scores is :math:`g - \mathrm{softmax}(h) R`, and that of the log-library is :math:`R`.

**How it is computed.** The formulas of a zero run over the whole matrix in the precision of the scores, each written
so that nothing cancels; the few non-zeros are then overwritten with values computed in ``float64``, where large gamma
functions may cancel safely. A cell has one likelihood, hence one number of upstream gradient: the forward pass forms
the derivatives at once, while everything is at hand, and the backward pass multiplies. It may therefore run more than
once; a second derivative is refused with an error.

There are two forms of the same computation: PyTorch operations, below, which run on any device, and compiled loops for
``float32`` on a CPU, in :mod:`scdeepclust.nn._kernels`. Either can be read as the other's check; the tests do.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import torch
import torch.nn.functional as F
from torch import Tensor

from ._counts import Counts
from ._precision import as_wide

# Dropout logits below this act as this: exp(-80) is about the smallest probability that float32 can hold.
_MIN_DROPOUT_LOGIT = -80.0
# A share of expression below what float32 can hold acts as one it can: the loss stays finite, its gradient right.
_MIN_RATIO = 1e-37
# Counts up to this need no gamma function (see `_rising_factorial`).
_N_FACTORS = 4


class SparseNB(torch.autograd.Function):
    """Log-likelihood (M, B) of ``counts`` under scores (M, B, G).

    ``log_library`` is (M, B), ``log_theta`` (G,), (B, G) or (M, B, G), ``dropout_logits`` (M, B, G) or None for a
    negative binomial without zero inflation.
    """

    @staticmethod
    def forward(ctx, scores, log_library, log_theta, dropout_logits, counts):
        if _can_be_compiled(scores, log_library, log_theta, dropout_logits):
            from ._kernels import negative_binomial
        else:
            negative_binomial = _by_tensor_operations
        # both forms write row by row, into results laid out as these are
        scores, log_library, log_theta = scores.contiguous(), log_library.contiguous(), log_theta.contiguous()
        dropout_logits = None if dropout_logits is None else dropout_logits.contiguous()
        values, *derivatives = negative_binomial(scores, log_library, log_theta, dropout_logits, counts)
        ctx.save_for_backward(*derivatives)
        ctx.theta_dims = log_theta.dim()
        return values

    @staticmethod
    def backward(ctx, upstream):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "The count likelihoods have no second derivative here (create_graph=True was asked for). "
                "Differentiate scvi.distributions.NegativeBinomial, or ZeroInflatedNegativeBinomial, instead."
            )
        d_scores, d_library, d_theta, d_dropout = ctx.saved_tensors
        weight = upstream.unsqueeze(-1)  # (M, B, 1)
        if ctx.theta_dims == 1:  # a matrix product, without the weighted copy
            d_theta = weight.flatten() @ d_theta.flatten(0, 1)
        else:
            d_theta = (weight * d_theta).sum_to_size(d_theta.shape[-ctx.theta_dims :])
        d_dropout = None if d_dropout is None else weight * d_dropout
        return weight * d_scores, upstream * d_library, d_theta, d_dropout, None


def _can_be_compiled(*tensors: Tensor | None) -> bool:
    plain = all(t is None or (t.device.type == "cpu" and t.dtype == torch.float32) for t in tensors)
    return plain and not numba.config.DISABLE_JIT  # type: ignore[attr-defined]


def _by_tensor_operations(
    scores: Tensor, log_library: Tensor, log_theta: Tensor, dropout_logits: Tensor | None, counts: Counts
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Log-likelihood of each cell, and its derivatives by the scores, the log-library, log theta and the logits.

    The derivative by log theta is not summed: it has the shape of the scores.
    """
    theta_per_sample = log_theta.dim() == 3
    shared = None if theta_per_sample else _NonZeros.collect(counts, log_theta)
    values = torch.empty_like(log_library)
    d_scores, d_library, d_theta = torch.empty_like(scores), torch.empty_like(values), torch.empty_like(scores)
    d_dropout = None if dropout_logits is None else torch.empty_like(scores)
    # Sample by sample: the temporaries of one fit the cache, those of ten do not.
    for m in range(len(scores)):
        r = log_theta[m] if theta_per_sample else log_theta
        c = None if dropout_logits is None else dropout_logits[m]
        d_c = None if d_dropout is None else d_dropout[m]
        at = _NonZeros.collect(counts, r) if shared is None else shared
        share, theta = torch.softmax(scores[m], dim=-1), r.exp()
        ratio = (share * log_library[m].exp().unsqueeze(-1)).div_(theta)  # E
        nonzeros = _at_nonzeros(at, ratio, c)
        value, d_mean = _fill_zeros(ratio, theta, c, d_theta[m], d_c)
        for matrix, entries in zip((value, d_mean, d_theta[m], d_c), nonzeros, strict=True):
            if matrix is not None and entries is not None:
                matrix.view(-1).scatter_(0, at.position, entries.to(matrix.dtype))
        torch.sum(value, -1, out=values[m])
        torch.sum(d_mean, -1, out=d_library[m])
        torch.addcmul(d_mean, share, d_library[m].unsqueeze(-1), value=-1, out=d_scores[m])
    return values, d_scores, d_library, d_theta, d_dropout


def _fill_zeros(
    ratio: Tensor, theta: Tensor, c: Tensor | None, d_theta: Tensor, d_dropout: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Value and derivatives of every entry (B, G) as if its count were zero; ``ratio`` is used up.

    Returns the value and the derivative by log mu, and writes those by log theta and by the dropout logits into
    ``d_theta`` and ``d_dropout``. The cost here is memory traffic: what can be done in place is.
    """
    t = torch.log1p(ratio)
    s = ratio.div_(ratio + 1)
    minus_theta = -theta
    _t_minus_s(t, s, out=d_theta).mul_(minus_theta)
    value, d_mean = t.mul_(minus_theta), s.mul_(minus_theta)
    if c is None or d_dropout is None:
        return value, d_mean

    c = c.clamp_min(_MIN_DROPOUT_LOGIT)
    logit = value - c
    from_nb = torch.sigmoid(logit)  # posterior probability that a zero was drawn by the negative binomial
    from_dropout = logit.neg_().sigmoid_()
    y = torch.neg(c).sigmoid_().mul_(torch.expm1(value, out=value))
    # near -1 the digits of y are lost: there a zero would surprise both parts of the model, and this ratio is 1 + y
    exact = c.sigmoid_().div_(from_dropout).log_()
    value = torch.where(y < -0.5, exact, torch.log1p(y))
    d_theta.mul_(from_nb)
    torch.mul(y, from_dropout, out=d_dropout).neg_()
    return value, d_mean.mul_(from_nb)


def _t_minus_s(t: Tensor, s: Tensor, out: Tensor) -> Tensor:
    """``t - s`` of ``s = 1 - exp(-t)``, without cancellation at small t.

    It is ``s t (1/2 + t/12 - t^3/720 + ...)`` up to t = 1/16 and the plain difference from t = 1/8, blended between.
    """
    series = torch.mul(t, 1 / 12, out=out).add_(0.5).mul_(t).mul_(s)
    return series.lerp_(t - s, torch.mul(t, 16).sub_(1).clamp_(0, 1))


class _NonZeros(NamedTuple):
    """What the decoder's samples share at the non-zeros, each of shape (nnz,), the numbers in ``float64``."""

    position: Tensor  # in the flattened (B, G) matrix
    x: Tensor
    theta: Tensor
    log_gammas: Tensor  # log Gamma(x + theta) - log Gamma(theta) - log x!
    digammas: Tensor  # theta (psi(x + theta) - psi(theta))

    @classmethod
    def collect(cls, counts: Counts, log_theta: Tensor) -> _NonZeros:
        position, x = counts.positions(), as_wide(counts.value)
        if log_theta.dim() == 1:
            log_theta = as_wide(log_theta)
            log_theta, theta = (r.index_select(0, counts.col) for r in (log_theta, log_theta.exp()))
        else:
            log_theta = as_wide(log_theta.reshape(-1).index_select(0, position))
            theta = log_theta.exp()
        return cls(position, x, theta, *_rising_factorial(x, theta, log_theta))


def _rising_factorial(x: Tensor, theta: Tensor, log_theta: Tensor) -> tuple[Tensor, Tensor]:
    """``log Gamma(x + theta) - log Gamma(theta) - log x!`` for whole ``x > 0``, and its derivative by log theta.

    The ratio is the product of ``(theta + j) / (1 + j)`` over ``j < x``: small counts need no gamma function, whose
    difference has few digits at a large theta. Which counts are small is not asked: that would wait for a GPU.
    """
    value, slope = log_theta.clone(), torch.ones_like(theta)  # j = 0
    for j in range(1, _N_FACTORS):
        factor, counted = theta + j, x > j
        value += torch.where(counted, (factor / (j + 1)).log_(), 0)
        slope += torch.where(counted, theta / factor, 0)
    first, large = theta + _N_FACTORS, x > _N_FACTORS
    log_gammas = torch.lgamma(x + theta) - torch.lgamma(first) - torch.lgamma(x + 1) + math.lgamma(_N_FACTORS + 1)
    value += torch.where(large, log_gammas, 0)
    slope += torch.where(large, theta * (torch.digamma(x + theta) - torch.digamma(first)), 0)
    return value, slope


def _at_nonzeros(at: _NonZeros, ratio: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Value and derivatives, by log mu, log theta and the dropout logits, of the non-zeros, each (nnz,)."""
    ratio = as_wide(ratio.view(-1).index_select(0, at.position).clamp_min_(_MIN_RATIO))  # E
    t = torch.log1p(ratio)
    log_s = ratio.log().sub_(t)
    theta_t = t.mul_(at.theta)
    value = torch.addcmul(at.log_gammas, at.x, log_s).sub_(theta_t)
    d_mean = torch.addcmul(at.x, at.theta, ratio, value=-1).div_(ratio.add_(1))  # (x - theta E) / (1 + E)
    d_theta = (at.digammas - d_mean).sub_(theta_t)
    if c is None:
        return value, d_mean, d_theta, None
    c = c.reshape(-1).index_select(0, at.position)
    return value.sub_(F.softplus(as_wide(c))), d_mean, d_theta, c.sigmoid_().neg_()
