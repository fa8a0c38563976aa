"""Exact log-likelihoods of counts, one number per cell, with analytic gradients.

Every function sums over the genes of a cell (the convention of scvi-tools), includes the terms that do not depend on
the parameters, and gives what :mod:`scvi.distributions` gives, faster: see :mod:`scdeepclust.nn._sparse_nb` for the
mathematics. All run in full precision under :class:`torch.autocast`.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from ._beta_binomial import ScaledRising
from ._counts import Counts, counts_from_csr, counts_from_dense
from ._precision import as_wide, full_precision
from ._sparse_nb import SparseNB

__all__ = [
    "Counts",
    "beta_binomial_log_likelihood",
    "counts_from_csr",
    "counts_from_dense",
    "gaussian_log_likelihood",
    "nb_log_likelihood",
    "poisson_log_likelihood",
    "zinb_log_likelihood",
]

# Log-concentration from which a beta-binomial is a binomial in all digits.
_BINOMIAL = 80.0


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

    Raises
    ------
    ValueError
        If ``scores`` are not of the cells and genes of ``counts``.

    Notes
    -----
    Exact to ``float32`` for inverse dispersions from 1e-4 to 1e4, counts to 1e4 and means down to 1e-8. Gradients
    reach every argument but ``counts``.

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

    Raises
    ------
    ValueError
        If ``scores`` are not of the cells and genes of ``counts``.

    Examples
    --------
    >>> import torch
    >>> from scdeepclust.nn import counts_from_dense, zinb_log_likelihood
    >>> x = torch.tensor([[0.0, 2.0, 1.0]])
    >>> never = torch.full((1, 3), -50.0)
    >>> zinb_log_likelihood(counts_from_dense(x), torch.zeros(1, 3), x.sum(1).log(), torch.zeros(3), never)
    tensor([-4.1589])
    """
    return _negative_binomial(counts, scores, log_library, log_theta, dropout_logits)


def _negative_binomial(
    counts: Counts, scores: Tensor, log_library: Tensor, log_theta: Tensor, dropout_logits: Tensor | None
) -> Tensor:
    shape = _checked_shape(counts, scores)
    samples = (-1, *shape[-2:])
    given = [t for t in (scores, log_library, log_theta, dropout_logits) if t is not None]
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in given))
    scores, log_library, log_theta = scores.to(dtype), log_library.to(dtype), log_theta.to(dtype)
    log_library = log_library.expand(shape[:-1]).reshape(samples[:2])
    # A dispersion per gene, or per cell and gene, serves all samples of the decoder: leave it unexpanded.
    log_theta = log_theta.expand(shape[-max(log_theta.dim(), 1) :])
    if dropout_logits is not None:
        dropout_logits = dropout_logits.to(dtype).expand(shape).reshape(samples)
    return SparseNB.apply(scores.reshape(samples), log_library, log_theta, dropout_logits, counts).reshape(shape[:-1])


def _checked_shape(counts: Counts, scores: Tensor) -> torch.Size:
    if scores.shape[-2:] != (counts.n_cells, counts.n_genes):
        raise ValueError(
            f"scores must end in (cells, genes) = ({counts.n_cells}, {counts.n_genes}), found shape "
            f"{tuple(scores.shape)}. Pass the counts of the same minibatch and genes."
        )
    return scores.shape


@full_precision
def poisson_log_likelihood(counts: Counts, scores: Tensor, log_library: Tensor) -> Tensor:
    """Poisson log-likelihood of each cell.

    The expected counts of a cell add up to its library size, so the zeros enter through the softmax's normaliser alone.

    Parameters
    ----------
    counts, scores, log_library
        As in :func:`nb_log_likelihood`.

    Returns
    -------
    Log-likelihood in nats, summed over genes, shape (B,) or (M, B).

    Raises
    ------
    ValueError
        If ``scores`` are not of the cells and genes of ``counts``.

    Examples
    --------
    >>> import torch
    >>> from scdeepclust.nn import counts_from_dense, poisson_log_likelihood
    >>> x = torch.tensor([[0.0, 2.0, 1.0]])
    >>> poisson_log_likelihood(counts_from_dense(x), torch.zeros(1, 3), x.sum(1).log())
    tensor([-3.6931])
    """
    shape = _checked_shape(counts, scores)
    # Large counts nearly cancel against the library and the factorial: sum the few non-zeros in float64.
    x, position = as_wide(counts.value), counts.positions()
    log_factorial = torch.lgamma(x + 1)
    log_library = log_library.expand(shape[:-1])
    offset = as_wide(log_library) - as_wide(torch.logsumexp(scores, -1))

    def of_sample(score: Tensor, offset: Tensor) -> Tensor:
        log_mean = as_wide(score.flatten().index_select(0, position)) + offset.index_select(0, counts.row)
        return counts.sum_by_cell(x * log_mean - log_factorial)

    samples = zip(scores.reshape(-1, *shape[-2:]), offset.reshape(-1, shape[-2]), strict=True)
    nonzeros = torch.stack([of_sample(score, offset) for score, offset in samples])
    return (nonzeros.reshape(shape[:-1]) - as_wide(log_library).exp()).to(scores.dtype)


@full_precision
def beta_binomial_log_likelihood(counts: Counts, scores: Tensor, n_trials: Tensor, log_theta: Tensor) -> Tensor:
    """Beta-binomial log-likelihood of each cell, for values that are successes out of a known number of trials.

    It is to the binomial what the negative binomial is to the Poisson: the grey values of an image are bounded, but 255
    steps are not 255 independent trials, and how many they are is learnt. With one trial it is the Bernoulli
    likelihood, whatever the dispersion.

    Parameters
    ----------
    counts
        Observed numbers of successes, at most ``n_trials`` each.
    scores
        Logits of the probability of a success, shape (B, G) or (M, B, G).
    n_trials
        Number of trials, a scalar.
    log_theta
        Log of the concentration, per gene (G,) or anything that broadcasts to ``scores``; infinite for the binomial.

    Returns
    -------
    Log-likelihood in nats, summed over genes, shape (B,) or (M, B).

    Raises
    ------
    ValueError
        If ``scores`` are not of the cells and genes of ``counts``.

    Examples
    --------
    >>> import torch
    >>> from scdeepclust.nn import beta_binomial_log_likelihood, counts_from_dense
    >>> x = torch.tensor([[0.0, 2.0, 1.0]])
    >>> log_theta = torch.tensor(2.0).log()  # all numbers of successes are equally likely
    >>> beta_binomial_log_likelihood(counts_from_dense(x), torch.zeros(1, 3), torch.tensor(2.0), log_theta)
    tensor([-3.2958])
    """
    _checked_shape(counts, scores)
    y, x = counts.to_dense().to(scores.dtype), as_wide(counts.value)
    log_p, log_not_p = logsigmoid(scores), logsigmoid(-scores)
    bounded = log_theta.clamp_max(_BINOMIAL)
    log_s = softplus(bounded.detach())
    successes = ScaledRising.apply(bounded + log_p, y, log_s)
    failures = ScaledRising.apply(bounded + log_not_p, n_trials - y, log_s)
    trials = ScaledRising.apply(bounded, n_trials, log_s)
    binomial = y * log_p + (n_trials - y) * log_not_p
    entries = torch.where(log_theta < _BINOMIAL, successes + failures - trials, binomial)
    n = as_wide(n_trials)
    log_ways = torch.lgamma(n + 1) - torch.lgamma(x + 1) - torch.lgamma(n - x + 1)
    return entries.sum(-1) + counts.sum_by_cell(log_ways).to(scores.dtype)


@full_precision
def gaussian_log_likelihood(y: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Gaussian log-likelihood of each cell, for data that are already on a log scale.

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
