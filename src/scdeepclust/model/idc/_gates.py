r"""Stochastic gates: which features of a sample a network may see.

A gate has a mean :math:`\mu` and is drawn, in training, as :math:`g = \mathrm{clip}(\mu + \sigma \varepsilon, 0, 1)`
with :math:`\varepsilon \sim N(0, 1)`; otherwise it is :math:`\mathrm{clip}(\mu, 0, 1)`. The noise gives a gradient to
gates near their bounds, and makes the number of open gates differentiable: a gate is open with probability
:math:`P(g > 0) = \Phi(\mu / \sigma)`, where :math:`\sigma` is that of the noise.

References
----------
Yamada, Lindenbaum, Negahban, Kluger (2020). Feature selection using stochastic gates. ICML.
Yang, Lindenbaum, Kluger (2022). Locally sparse neural networks for tabular biomedical data. ICML.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from scdeepclust.nn import full_precision, use_fast_linear

# Largest change of the offset in one step, in units of gates; and the least slope that gradients are divided by.
_LARGEST_STEP = 0.1
_LEAST_SLOPE = 1.0


@full_precision
def draw_gates(mean: Tensor, sigma: float | None = None) -> Tensor:
    """Gates in [0, 1] from their means.

    Parameters
    ----------
    mean
        Means of the gates, any shape.
    sigma
        Standard deviation of the noise; None for gates without noise, as at prediction.

    Returns
    -------
    Gates, of the shape of ``mean``.

    Examples
    --------
    >>> import torch
    >>> from scdeepclust.model.idc._gates import draw_gates
    >>> draw_gates(torch.tensor([-0.5, 0.2, 3.0]))
    tensor([0.0000, 0.2000, 1.0000])
    """
    if sigma is not None:
        mean = mean + sigma * torch.randn_like(mean)
    return mean.clamp(0, 1)


@full_precision
def expected_open(mean: Tensor, sigma: float) -> Tensor:
    """Expected number of open gates of each sample.

    Parameters
    ----------
    mean
        Means of the gates, shape (..., D).
    sigma
        Standard deviation of the noise of the gates.

    Returns
    -------
    Sum over the last axis of the probabilities that a gate is above 0, shape (...).

    Examples
    --------
    >>> import torch
    >>> from scdeepclust.model.idc._gates import expected_open
    >>> expected_open(torch.tensor([0.0, 0.0, 9.0, -9.0]), sigma=0.5)
    tensor(2.)
    """
    return torch.special.ndtr(mean / sigma).sum(dim=-1)


class GatingNetwork(nn.Module):
    """From a sample to the means of its gates, all open at the start.

    Parameters
    ----------
    n_features
        Number of features, each with a gate.
    n_hidden
        Width of the hidden layer.

    Examples
    --------
    >>> import torch
    >>> from scdeepclust.model.idc._gates import GatingNetwork
    >>> GatingNetwork(20, 8)(torch.zeros(4, 20)).shape
    torch.Size([4, 20])
    """

    def __init__(self, n_features: int, n_hidden: int = 128):
        super().__init__()
        output = nn.Linear(n_hidden, n_features)
        with torch.no_grad():
            output.weight.mul_(0.1)
            output.bias.fill_(1.0)
        self.layers = nn.Sequential(nn.Linear(n_features, n_hidden), nn.LayerNorm(n_hidden), nn.Tanh(), output)
        use_fast_linear(self)

    def forward(self, x: Tensor) -> Tensor:
        """Means of the gates, (..., n_features)."""
        return self.layers(x)


class GateBudget(nn.Module):
    r"""A common offset of gates, such that the wanted number of them is open.

    With means :math:`\mu_{ij}` of gate j of sample i and the number :math:`n_i` of gates that it has open in
    expectation, the offset :math:`\tau` solves

    .. math::
        n_i = \sum_j \Phi\big((\mu_{ij} - \tau) / \sigma\big), \qquad \sqrt{\tfrac1B \sum_i n_i^2} = b .

    It follows the means with one Newton step a training step, through which gradients flow. Opening a gate therefore
    closes others: its gradient becomes :math:`\partial L / \partial \mu_{ij} - \lambda\, n_i \varphi_{ij}`, where
    :math:`\varphi_{ij}` is the density with which the offset meets this gate and :math:`\lambda` the Lagrange
    multiplier of the budget, found anew in each step. The price of a gate rises with the number of open gates of a
    sample, else rare kinds of samples, which are hard to reconstruct, would keep all of theirs.

    A fixed price in the loss would have to be tuned to each data set; a price that is raised until enough gates are
    closed overshoots, because gates that are closed for good do not come back.

    Of several processes, each with its own samples, all make the step of all samples together.

    Parameters
    ----------
    sigma
        Standard deviation of the noise of the gates.

    Examples
    --------
    >>> import torch
    >>> from scdeepclust.model.idc._gates import GateBudget, expected_open
    >>> budget = GateBudget(sigma=0.5)
    >>> means = torch.linspace(-1, 1, 100).expand(8, -1)
    >>> for _ in range(20):
    ...     shifted = budget(means, wanted=10)
    >>> expected_open(shifted, sigma=0.5).mean().round()
    tensor(10.)
    """

    offset: Tensor

    def __init__(self, sigma: float):
        super().__init__()
        self.sigma = sigma
        self.register_buffer("offset", torch.zeros(()))

    @full_precision
    def forward(self, means: Tensor, wanted: float | None = None) -> Tensor:
        """Means less the offset, (B, D); ``wanted`` open gates a sample, or None to leave the offset as it is."""
        if wanted is None:
            return means - self.offset
        shifted = (means - self.offset) / self.sigma
        n_open = torch.special.ndtr(shifted).sum(dim=-1)  # (B,)
        level = n_open.square().mean().sqrt()
        with torch.no_grad():
            density = torch.exp(-shifted.square() / 2).sum(dim=-1) / (self.sigma * math.sqrt(2 * math.pi))  # (B,)
            squared, tangent = _mean_over_processes(torch.stack([n_open.square().mean(), (n_open * density).mean()]))
            slope = tangent / squared.sqrt()
            step = (squared.sqrt() - wanted) / slope.clamp_min(torch.finfo(slope.dtype).tiny)
            self.offset.add_(step.clamp(-_LARGEST_STEP, _LARGEST_STEP))
        return means - self.offset - (level - level.detach()) / slope.clamp_min(_LEAST_SLOPE)


def _mean_over_processes(values: Tensor) -> Tensor:
    """Mean of what the processes of a distributed fit have; the values themselves in a single one."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return values
    dist.all_reduce(values)
    return values / dist.get_world_size()
