r"""Gaussian mixture over a latent space: log-joint, responsibilities, start from labels.

With diagonal precisions :math:`\lambda_{kd} = 1 / \sigma_{kd}^2`,

.. math::
    \log p(z, k) = c_k + \sum_d \Big( \mu_{kd} \lambda_{kd} z_d - \tfrac12 \lambda_{kd} z_d^2 \Big), \qquad
    c_k = \log \pi_k - \tfrac12 \sum_d \big( \mu_{kd}^2 \lambda_{kd} + \log \sigma_{kd}^2 + \log 2 \pi \big),

which is two matrix products in place of a [cells, components, dimensions] tensor. The terms are of the size of
:math:`\lVert z \rVert^2` while their sum is of the size of :math:`\lVert z - \mu_k \rVert^2`: the mean of the
component means is subtracted from both sides first, or ``float32`` would lose three digits at an offset of 100.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ._precision import as_double, full_precision

_LOG_2PI = math.log(2 * math.pi)
# Bounds of a component's log-variance: a component can neither collapse onto a cell nor flatten into nothing.
_LOG_VAR_MIN, _LOG_VAR_MAX = -6.0, 4.0
# Floor of the variance a component starts with.
_START_VARIANCE = 1e-4


def clamp_component_log_var(log_var: Tensor) -> Tensor:
    """Log-variances of components as they are used."""
    return log_var.clamp(_LOG_VAR_MIN, _LOG_VAR_MAX)


@full_precision
def diag_gaussian_log_prob(z: Tensor, means: Tensor, log_var: Tensor) -> Tensor:
    """Log-density of every cell under every diagonal Gaussian component.

    Parameters
    ----------
    z
        Points, shape (..., D).
    means
        Component means: shape (K, D) when all points share them, or (..., K, D) when each point has its own.
    log_var
        Log-variances, broadcastable to ``means``; shape (1, D) for one variance shared by the components.

    Returns
    -------
    Log-densities, shape (..., K).

    Notes
    -----
    With shared means this costs two matrix products and O(N (K + D)) memory. With means of each point's own the
    argument itself has N K D entries, and the plain difference is as good as anything.

    Examples
    --------
    >>> import torch
    >>> from scdeepclust.nn import diag_gaussian_log_prob
    >>> diag_gaussian_log_prob(torch.zeros(5, 2), means=torch.zeros(3, 2), log_var=torch.zeros(1, 2)).shape
    torch.Size([5, 3])
    """
    normaliser = (log_var + _LOG_2PI).expand_as(means).sum(-1)
    if means.dim() > 2:
        return -0.5 * (((z.unsqueeze(-2) - means).square() * torch.exp(-log_var)).sum(-1) + normaliser)
    origin = means.detach().mean(0)
    z, means = z - origin, means - origin
    precision = torch.exp(-log_var).expand_as(means)
    scaled_means = means * precision
    constant = -0.5 * ((means * scaled_means).sum(-1) + normaliser)  # (K,)
    if log_var.dim() < 2 or len(log_var) == 1:  # one variance for all: z^2 enters as one number per point
        return z @ scaled_means.T + constant - 0.5 * (z.square() @ precision[0]).unsqueeze(-1)
    return z @ scaled_means.T + (z.square() @ (-0.5 * precision).T + constant)


@full_precision
def standard_normal_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL of N(mean, exp(log_var)) from N(0, I), (B,), for arguments (B, D)."""
    return 0.5 * (mean.square() + log_var.exp() - log_var - 1).sum(dim=-1)


class GaussianMixture(nn.Module):
    """Mixture of diagonal Gaussians with learned means, variances and weights.

    Parameters
    ----------
    n_components
        Number of components K.
    n_latent
        Dimension D of the space.
    shared_variance
        One diagonal variance for all components (a shared metric, K-means-like borders) instead of one each.
    learn_weights
        Learn the component weights, starting from the label frequencies; otherwise they stay uniform.

    Notes
    -----
    Log-variances are clamped to [-6, 4] wherever they are used. Call :meth:`initialise` before training: the module
    starts with small random means, uniform weights and unit variances, and ``initialised`` false.

    Examples
    --------
    >>> import torch
    >>> from scdeepclust.nn import GaussianMixture
    >>> z = torch.tensor([[0.0, 0.0], [0.0, 1.0], [9.0, 9.0], [9.0, 8.0]])
    >>> mixture = GaussianMixture(2, 2)
    >>> mixture.initialise(z, torch.zeros_like(z), labels=torch.tensor([0, 0, 1, 1]))
    >>> mixture.responsibilities(z).argmax(-1)
    tensor([0, 0, 1, 1])
    """

    logits: Tensor
    initialised: Tensor

    def __init__(
        self, n_components: int, n_latent: int, *, shared_variance: bool = True, learn_weights: bool = True
    ) -> None:
        super().__init__()
        self.n_components, self.n_latent = n_components, n_latent
        self.means = nn.Parameter(0.1 * torch.randn(n_components, n_latent))
        self.log_var = nn.Parameter(torch.zeros(1 if shared_variance else n_components, n_latent))
        if learn_weights:
            self.logits = nn.Parameter(torch.zeros(n_components))
        else:
            self.register_buffer("logits", torch.zeros(n_components))
        self.register_buffer("initialised", torch.tensor(False))
        # the same for each training step to ask, where a look at the buffer would wait for the GPU
        self.is_initialised = False

    def set_initialised(self, value: bool) -> None:
        """Note whether the means belong to clusters."""
        self.initialised.fill_(value)
        self.is_initialised = value

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self.is_initialised = bool(self.initialised)

    @property
    def log_weights(self) -> Tensor:
        """Log-probability of each component, shape (K,)."""
        return torch.log_softmax(self.logits, dim=-1)

    @property
    def clamped_log_var(self) -> Tensor:
        """Log-variances as used, shape (1, D) or (K, D)."""
        return clamp_component_log_var(self.log_var)

    @full_precision
    def log_joint(self, z: Tensor) -> Tensor:
        """``log p(z, k)`` for ``z`` of shape (..., D): shape (..., K)."""
        return diag_gaussian_log_prob(z, self.means, self.clamped_log_var) + self.log_weights

    @full_precision
    def mean_log_joint(self, z_mean: Tensor, z_var: Tensor) -> Tensor:
        """Mean of ``log p(z, k)`` over a Gaussian z: its value at the mean, less what the spread costs; (B, K)."""
        precision = torch.exp(-self.clamped_log_var).expand_as(self.means)
        return self.log_joint(z_mean) - 0.5 * z_var @ precision.T

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density of the mixture at ``z`` of shape (..., D): shape (...)."""
        return torch.logsumexp(self.log_joint(z), dim=-1)

    def responsibilities(self, z: Tensor) -> Tensor:
        """Posterior probability ``p(k | z)`` of each component for ``z`` of shape (..., D): shape (..., K)."""
        return torch.softmax(self.log_joint(z), dim=-1)

    @torch.no_grad()
    def select(self, order: Tensor) -> None:
        """Renumber the components: new component j is old component ``order[j]``; the others are dropped."""
        self.n_components = len(order)
        self.means = nn.Parameter(self.means[order])
        if len(self.log_var) > 1:
            self.log_var = nn.Parameter(self.log_var[order])
        logits = self.logits[order]
        self.logits = nn.Parameter(logits) if isinstance(self.logits, nn.Parameter) else logits

    @torch.no_grad()
    def initialise(self, z_mean: Tensor, z_var: Tensor, labels: Tensor) -> None:
        """Set weights, means and variances from a first labelling of the cells.

        Weights, when learned, are the label frequencies, means the label means, and variances the scatter around the
        means plus the mean posterior variance: pooled over all cells when shared, otherwise label by label.

        Parameters
        ----------
        z_mean
            Posterior means of the cells, shape (N, D).
        z_var
            Posterior variances, shape (N, D); zeros for a deterministic encoder.
        labels
            Integer component of each cell in 0..K-1, shape (N,); every component needs a cell.

        Raises
        ------
        ValueError
            If a label is out of range or a component has no cell.
        """
        z_mean, z_var = as_double(z_mean), as_double(z_var)
        labels = labels.to(device=z_mean.device, dtype=torch.long)
        sizes = torch.bincount(labels.clamp_min(0), minlength=self.n_components)
        if bool((labels < 0).any()) or len(sizes) > self.n_components or bool((sizes == 0).any()):
            raise ValueError(
                f"labels must use every integer from 0 to {self.n_components - 1} and no other, found "
                f"{labels.unique().tolist()}. Renumber the labels, or build the mixture with as many components."
            )
        means = _mean_by_label(z_mean, labels, sizes)
        scatter = (z_mean - means[labels]).square() + z_var
        shared = len(self.log_var) == 1
        variances = scatter.mean(0, keepdim=True) if shared else _mean_by_label(scatter, labels, sizes)
        self.means.copy_(means)
        self.log_var.copy_((variances + _START_VARIANCE).log().clamp(_LOG_VAR_MIN, _LOG_VAR_MAX))
        if isinstance(self.logits, nn.Parameter):
            self.logits.copy_((sizes / sizes.sum()).log())
        self.set_initialised(True)


def _mean_by_label(rows: Tensor, labels: Tensor, sizes: Tensor) -> Tensor:
    """Mean row of each label, shape (K, D)."""
    return rows.new_zeros(len(sizes), rows.shape[1]).index_add_(0, labels, rows) / sizes[:, None]
