r"""Exact log-likelihoods of counts that pay for the non-zeros, not for the zeros.

Nine entries in ten of a single-cell matrix are zero, and at a zero the gamma functions of the negative binomial
cancel. With mean :math:`\mu = \ell \, \mathrm{softmax}(h)` (:math:`\ell` the library size, :math:`h` the decoder's
scores), inverse dispersion :math:`\theta`, :math:`E = \mu / \theta`, :math:`s = E / (1 + E)`:

.. math::
    \log \mathrm{NB}(0) &= -\theta \log(1 + E), \\
    \log \mathrm{NB}(x) &= x \log s - \theta \log(1 + E)
        + \log\Gamma(x + \theta) - \log\Gamma(\theta) - \log x! ,

with the derivatives, per entry,

.. math::
    \partial / \partial \log\mu &= x (1 - s) - \theta s, \\
    \partial / \partial \log\theta &= \theta \, (s - \log(1 + E)) - x (1 - s)
        + \theta \, (\psi(x + \theta) - \psi(\theta)) .

Zero inflation with dropout logit :math:`c`, :math:`\pi = \sigma(c)`, adds :math:`\log(1 - \pi)` at a non-zero. At a
zero, with :math:`n_0 = \log \mathrm{NB}(0)` and :math:`y = (1 - \pi)(e^{n_0} - 1)`,

.. math::
    \log \mathrm{ZINB}(0) &= \log(\pi + (1 - \pi) e^{n_0}) = \log(1 + y), \\
    \partial / \partial n_0 &= \sigma(n_0 - c), \qquad \partial / \partial c = -y \, \sigma(c - n_0) .

The softmax is fused: with :math:`g = \partial / \partial \log \mu` and :math:`R = \sum_g g` over the genes of a cell,
the gradient of the scores is :math:`g - \mathrm{softmax}(h) R`, and that of the log-library is :math:`R`.

**How it is computed.** The zero formulas run over the whole matrix in ``float32``, every one of them written so that
nothing cancels; the few non-zeros are then overwritten with values computed in ``float64``, where large gamma
functions may cancel safely. Each cell has one value, hence one number of upstream gradient: the forward pass
already forms the derivatives, and the backward pass only multiplies. It may therefore run more than once;
differentiating a second time is refused by PyTorch with an error.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from scdeepclust.nn._precision import full_precision

# Dropout logits below this act as this: exp(-80) is about the smallest probability float32 can hold.
_MIN_DROPOUT_LOGIT = -80.0


class Counts(NamedTuple):
    """Non-zero counts of a minibatch, row by row.

    Parameters
    ----------
    row
        Cell of each non-zero, ascending, ``int64``, shape (nnz,).
    col
        Gene of each non-zero, ``int64``, shape (nnz,).
    value
        The counts, ``float32``, shape (nnz,).
    n_cells
        Number of cells in the minibatch.
    n_genes
        Number of genes.

    Examples
    --------
    >>> import torch
    >>> from scdeepclust.nn import counts_from_dense
    >>> counts_from_dense(torch.tensor([[0.0, 2.0], [1.0, 0.0]])).totals()
    tensor([2., 1.])
    """

    row: Tensor
    col: Tensor
    value: Tensor
    n_cells: int
    n_genes: int

    def totals(self) -> Tensor:
        """Total count of each cell, shape (n_cells,)."""
        return _sum_by_cell(self.value, self)

    def to_dense(self) -> Tensor:
        """The counts as a matrix, shape (n_cells, n_genes)."""
        dense = self.value.new_zeros(self.n_cells * self.n_genes)
        return dense.index_copy_(0, self.positions(), self.value).view(self.n_cells, self.n_genes)

    def positions(self) -> Tensor:
        """Place of each non-zero in the flattened matrix, ``int64``, shape (nnz,)."""
        return self.row * self.n_genes + self.col

    def to(self, device: torch.device | str) -> Counts:
        """The same counts on another device."""
        return self._replace(row=self.row.to(device), col=self.col.to(device), value=self.value.to(device))


def counts_from_dense(x: Tensor) -> Counts:
    """Collect the non-zeros of a dense matrix of counts, shape (cells, genes)."""
    row, col = x.nonzero(as_tuple=True)
    return Counts(row, col, x[row, col].float(), *x.shape)


def counts_from_csr(x: Tensor) -> Counts:
    """Collect the non-zeros of a ``torch.sparse_csr`` matrix of counts, shape (cells, genes)."""
    lengths = x.crow_indices().diff()
    row = torch.repeat_interleave(torch.arange(len(lengths), device=x.device), lengths)
    return Counts(row, x.col_indices().long(), x.values().float(), *x.shape)


def _sum_by_cell(values: Tensor, counts: Counts) -> Tensor:
    return values.new_zeros(counts.n_cells).index_add_(0, counts.row, values)


@full_precision
def nb_log_likelihood(counts: Counts, scores: Tensor, log_library: Tensor, log_theta: Tensor) -> Tensor:
    """Negative binomial log-likelihood of each cell.

    Parameters
    ----------
    counts
        Observed counts of B cells and G genes.
    scores
        Decoder scores whose softmax over genes is the expected share of each gene, shape (B, G), or (M, B, G) for M
        samples of the decoder; what does not depend on the sample is then computed once.
    log_library
        Log of the expected total count of each cell, shape (B,).
    log_theta
        Log of the inverse dispersion: per gene (G,), or anything that broadcasts to ``scores``.

    Returns
    -------
    Log-likelihood in nats, summed over genes, shape (B,) or (M, B).

    Examples
    --------
    >>> import torch
    >>> from scdeepclust.nn import counts_from_dense, nb_log_likelihood
    >>> x = torch.tensor([[0.0, 2.0, 1.0]])
    >>> nb_log_likelihood(counts_from_dense(x), torch.zeros(1, 3), x.sum(1).log(), torch.zeros(3))
    tensor([-4.1589])
    """
    return _negative_binomial(counts, scores, log_library, log_theta, None)


@full_precision
def zinb_log_likelihood(
    counts: Counts, scores: Tensor, log_library: Tensor, log_theta: Tensor, dropout_logits: Tensor
) -> Tensor:
    """Zero-inflated negative binomial log-likelihood of each cell.

    Parameters
    ----------
    counts, scores, log_library, log_theta
        As in :func:`nb_log_likelihood`.
    dropout_logits
        Logit of the probability that an entry is zero for technical reasons, of the shape of ``scores``. Logits below
        -80 act as -80.

    Returns
    -------
    Log-likelihood in nats, summed over genes, shape (B,) or (M, B).

    Examples
    --------
    >>> import torch
    >>> from scdeepclust.nn import counts_from_dense, zinb_log_likelihood
    >>> x = torch.tensor([[0.0, 2.0, 1.0]])
    >>> never = torch.full((1, 3), -50.0)
    >>> zinb_log_likelihood(counts_from_dense(x), torch.zeros(1, 3), x.sum(1).log(), torch.zeros(3), never)
    tensor([-4.1589])
    """
    return _negative_binomial(counts, scores, log_library, log_theta, dropout_logits.expand_as(scores))


def _negative_binomial(
    counts: Counts, scores: Tensor, log_library: Tensor, log_theta: Tensor, dropout_logits: Tensor | None
) -> Tensor:
    if scores.shape[-2:] != (counts.n_cells, counts.n_genes):
        raise ValueError(
            f"scores must end in (cells, genes) = ({counts.n_cells}, {counts.n_genes}), found shape "
            f"{tuple(scores.shape)}. Pass the counts of the same minibatch and genes."
        )
    log_library = log_library.expand(scores.shape[:-1])
    # A dispersion per gene, or per cell and gene, serves all samples of the decoder: leave it unexpanded.
    log_theta = log_theta.expand(scores.shape[-max(log_theta.dim(), 1) :])
    return _SparseNB.apply(scores, log_library, log_theta, dropout_logits, counts)


class _SparseNB(torch.autograd.Function):
    """NB (``dropout_logits`` None) or ZINB; see the head of this file for the formulas."""

    @staticmethod
    def forward(ctx, scores, log_library, log_theta, dropout_logits, counts):
        shape = scores.shape
        scores = scores.reshape(-1, *shape[-2:])  # (M, B, G)
        log_library = log_library.reshape(scores.shape[:-1])
        theta_per_sample = log_theta.dim() == 3
        nonzeros = None if theta_per_sample else _NonZeros.collect(counts, log_theta)

        values = torch.empty_like(log_library)
        grads = [torch.empty(s, dtype=scores.dtype, device=scores.device) if need else None
                 for s, need in zip((scores.shape, values.shape, scores.shape, scores.shape), ctx.needs_input_grad)]
        for m in range(len(scores)):
            r = log_theta[m] if theta_per_sample else log_theta
            c = None if dropout_logits is None else dropout_logits.reshape(scores.shape)[m]
            at = _NonZeros.collect(counts, r) if theta_per_sample else nonzeros
            values[m] = _one_sample(at, scores[m], log_library[m], r, c, [g if g is None else g[m] for g in grads])

        ctx.save_for_backward(*grads)
        ctx.shapes = shape, log_theta.shape
        return values.reshape(shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        d_scores, d_library, d_theta, d_dropout = ctx.saved_tensors
        shape, theta_shape = ctx.shapes
        weight = grad.reshape(-1, shape[-2], 1)  # (M, B, 1)
        if d_scores is not None:
            d_scores = (weight * d_scores).reshape(shape)
        if d_library is not None:
            d_library = grad * d_library.reshape(grad.shape)
        if d_theta is not None:
            if len(theta_shape) == 1:
                d_theta = weight.flatten() @ d_theta.flatten(0, 1)
            else:
                d_theta = weight * d_theta
                d_theta = d_theta.reshape(shape) if len(theta_shape) == 3 else d_theta.sum(0)
        if d_dropout is not None:
            d_dropout = (weight * d_dropout).reshape(shape)
        return d_scores, d_library, d_theta, d_dropout, None


class _NonZeros(NamedTuple):
    """What all samples of a decoder share at the non-zeros, in ``float64``, each of shape (nnz,)."""

    position: Tensor  # in the flattened matrix
    row: Tensor
    x: Tensor
    log_theta: Tensor
    theta: Tensor
    log_gammas: Tensor  # log Gamma(x + theta) - log Gamma(theta) - log x!
    digammas: Tensor  # theta (psi(x + theta) - psi(theta))

    @classmethod
    def collect(cls, counts: Counts, log_theta: Tensor) -> _NonZeros:
        position = counts.positions()
        x = counts.value.double()
        if log_theta.dim() == 1:
            log_theta = log_theta.double()
            theta = log_theta.exp()
            log_gamma, digamma = (f(theta)[counts.col] for f in (torch.lgamma, torch.digamma))
            theta, log_theta = theta[counts.col], log_theta[counts.col]
        else:
            log_theta = log_theta.reshape(-1)[position].double()
            theta = log_theta.exp()
            log_gamma, digamma = torch.lgamma(theta), torch.digamma(theta)
        log_gammas = torch.lgamma(x + theta) - log_gamma - torch.lgamma(x + 1)
        digammas = theta * (torch.digamma(x + theta) - digamma)
        return cls(position, counts.row, x, log_theta, theta, log_gammas, digammas)


def _one_sample(at, scores, log_library, log_theta, dropout_logits, grads):
    share = torch.softmax(scores, dim=-1)
    theta = log_theta.exp()
    ratio = share * log_library.exp().unsqueeze(-1)
    ratio *= theta.reciprocal()
    ratio.view(-1).index_fill_(0, at.position, 0)
    log_term = torch.log1p(ratio)
    s = ratio.div_(ratio + 1)
    value = -theta * log_term
    d_mean = -theta * s
    d_theta = -theta * _log1p_minus(s, log_term)
    if dropout_logits is not None:
        c = dropout_logits.clamp_min(_MIN_DROPOUT_LOGIT)
        logit = value - c
        p0 = torch.sigmoid(logit)
        not0 = torch.sigmoid(logit.neg_())
        y = torch.sigmoid(-c) * torch.expm1(value)
        d_dropout = -y * not0
        likely = torch.log1p(y)
        unlikely = torch.sigmoid(c).div_(not0).log_()
        value = torch.lerp(likely, unlikely, y.mul_(-8).sub_(4).clamp_(0, 1))
        d_mean *= p0
        d_theta *= p0

    peak = share.amax(-1).double().log() - scores.amax(-1).double()
    log_ratio = scores.reshape(-1)[at.position].double() + (peak + log_library)[at.row] - at.log_theta
    e = log_ratio.exp()
    lt = torch.log1p(e)
    s = e / (1 + e)
    nz_value = at.x * (log_ratio - lt) - at.theta * lt + at.log_gammas
    nz_mean = (at.x - at.theta * e) / (1 + e)
    nz_theta = at.theta * (s - lt) - at.x / (1 + e) + at.digammas
    if dropout_logits is not None:
        c = dropout_logits.reshape(-1)[at.position].double()
        nz_value -= torch.nn.functional.softplus(c)
        _put(d_dropout, at.position, -torch.sigmoid(c))
    _put(value, at.position, nz_value)
    _put(d_mean, at.position, nz_mean)
    _put(d_theta, at.position, nz_theta)
    total = d_mean.sum(-1)
    if grads[0] is not None:
        torch.addcmul(d_mean, share, -total.unsqueeze(-1), out=grads[0])
    if grads[1] is not None:
        grads[1].copy_(total)
    if grads[2] is not None:
        grads[2].copy_(d_theta)
    if grads[3] is not None:
        grads[3].copy_(d_dropout)
    return value.sum(-1)


def _put(dense, position, values):
    dense.view(-1).scatter_(0, position, values.to(dense.dtype))


def _log1p_minus(s, log_term):
    """``log(1 + E) - s`` for ``s = E / (1 + E)``, without cancellation at small E."""
    series = ((s / 5 + 1 / 4) * s + 1 / 3) * s + 1 / 2
    return torch.lerp(series * s * s, log_term - s, (32 * s - 1).clamp_(0, 1))


@full_precision
def poisson_log_likelihood(counts: Counts, scores: Tensor, log_library: Tensor) -> Tensor:
    """Poisson log-likelihood of each cell; arguments and result as in :func:`nb_log_likelihood`.

    The expected counts of a cell sum to its library size, so nothing but a normaliser touches the zeros.

    Examples
    --------
    >>> import torch
    >>> from scdeepclust.nn import counts_from_dense, poisson_log_likelihood
    >>> x = torch.tensor([[0.0, 2.0, 1.0]])
    >>> poisson_log_likelihood(counts_from_dense(x), torch.zeros(1, 3), x.sum(1).log())
    tensor([-3.6931])
    """
    log_library = log_library.expand(scores.shape[:-1])
    samples = scores.reshape(-1, counts.n_cells, counts.n_genes)
    x = counts.value.double()
    log_factorial = torch.lgamma(x + 1)
    values = []
    for score, log_size in zip(samples, log_library.reshape(-1, counts.n_cells), strict=True):
        log_mean = score.flatten()[counts.positions()].double()
        offset = log_size.double() - torch.logsumexp(score, -1).double()
        terms = x * (log_mean + offset[counts.row]) - log_factorial
        values.append(_sum_by_cell(terms, counts).to(score.dtype) - log_size.exp())
    return torch.stack(values).reshape(scores.shape[:-1])


@full_precision
def gaussian_log_likelihood(y: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Gaussian log-likelihood of each cell for data that are already on a log scale.

    Parameters
    ----------
    y
        Observed values, shape (B, G).
    mean
        Predicted values, shape (B, G) or (M, B, G).
    log_var
        Log-variance of each gene, shape (G,).

    Returns
    -------
    Log-likelihood in nats, summed over genes, shape (B,) or (M, B).

    Examples
    --------
    >>> import torch
    >>> from scdeepclust.nn import gaussian_log_likelihood
    >>> gaussian_log_likelihood(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(2))
    tensor([-1.8379])
    """
    quadratic = (y - mean).square() @ torch.exp(-log_var)
    return -0.5 * (quadratic + log_var.sum() + log_var.numel() * math.log(2 * math.pi))
