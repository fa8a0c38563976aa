r"""The beta-binomial from no trust at all in its probability to the binomial, without gamma functions that cancel.

With :math:`a = \theta p`, :math:`b = \theta (1 - p)` and :math:`y` successes out of :math:`n` trials,

.. math::
    \log p(y) = \log \tbinom{n}{y} + R(a, y) + R(b, n - y) - R(\theta, n), \qquad
    R(a, y) = \log \frac{\Gamma(a + y)}{\Gamma(a)} - y \log s ,

for any :math:`s`. At the binomial limit the gamma functions grow without bound, and their difference would have no
digits left; with :math:`s = 1 + \theta` and Stirling's series at :math:`a + y + 3` and :math:`a + 4` nothing grows:
:math:`R` is 0 for :math:`y = 0`, and with :math:`m = y - 1` otherwise

.. math::
    R = \log \frac as + m \log \frac{a + 4}s + (a + m + \tfrac72) \log\Big(1 + \frac{m}{a + 4}\Big) - m
        + S(a + y + 3) - S(a + 4) - \sum_{j=1}^3 \log\Big(1 + \frac{m}{a + j}\Big) .
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from scvi.distributions import BetaBinomial
from torch import Tensor

if TYPE_CHECKING:
    from ._networks import CountHeads


class BetaBinomialCounts(BetaBinomial):
    """What scvi-tools asks of a likelihood, which its beta-binomial does not have: the scale, a probability here."""

    def __init__(self, heads: CountHeads, n_trials: Tensor):
        self.scale = torch.sigmoid(heads.scores)
        theta = cast(Tensor, heads.log_theta).exp()
        super().__init__(n_trials, theta * self.scale, theta * (1 - self.scale))

    def get_normalized(self, key: str) -> Tensor:
        """The mean of each count for the key ``"mu"``, else the probability."""
        return self.mean if key == "mu" else self.scale


class ScaledRising(torch.autograd.Function):
    """``log Gamma(a + y) - log Gamma(a) - y log s`` of ``log_a``, whole ``y >= 0`` and ``log_s``.

    The derivative by ``log_s`` is left out: in the sum above it is 0.
    """

    @staticmethod
    def forward(ctx, log_a: Tensor, y: Tensor, log_s: Tensor) -> Tensor:
        a, m, some = log_a.exp(), (y - 1).clamp_min(0), y.clamp_max(1)
        start, end = 1 / (a + 4), 1 / (a + m + 4)
        log_growth = torch.log1p(m * start)
        value = (a + m).add_(3.5).mul_(log_growth).sub_(m)
        value += (log_a - log_s).mul_(some)
        value += ((a + 4) / log_s.exp()).log_().mul_(m)
        value += _stirling(end) - _stirling(start)
        slope = log_growth + (start - end).mul_(0.5) + _digamma_tail(start) - _digamma_tail(end)
        product = torch.ones_like(value)
        for j in (1, 2, 3):
            step = m / (a + j)
            product *= step + 1
            slope += step / (a + (m + j))
        value -= product.log_()
        ctx.save_for_backward(slope.mul_(a).add_(some))
        return value

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "The beta-binomial likelihood has no second derivative here (create_graph=True was asked for). "
                "Differentiate scvi.distributions.BetaBinomial instead."
            )
        (slope,) = ctx.saved_tensors
        return upstream * slope, None, None


def _stirling(i: Tensor) -> Tensor:
    """What the log of the gamma function at 1 / i = z is more than ``(z - 1/2) log z - z + log(2 pi) / 2``."""
    w = i.square()
    return (w / -1680).add_(1 / 1260).mul_(w).sub_(1 / 360).mul_(w).add_(1 / 12).mul_(i)


def _digamma_tail(i: Tensor) -> Tensor:
    """What the digamma function at 1 / i = z is less than ``log z - 1 / 2 z``."""
    w = i.square()
    return (w / -240).add_(1 / 252).mul_(w).sub_(1 / 120).mul_(w).add_(1 / 12).mul_(w)
