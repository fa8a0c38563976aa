"""Likelihoods where floats run out, and arguments laid out in any way, against 50 digits of mpmath."""

from __future__ import annotations

import functools
import math

import mpmath
import numpy as np
import pytest
import torch

from scdeepclust.nn import (
    _sparse_nb,
    beta_binomial_log_likelihood,
    counts_from_dense,
    gaussian_log_likelihood,
    nb_log_likelihood,
    poisson_log_likelihood,
    zinb_log_likelihood,
)

DTYPES = [torch.float32, torch.float64]


@pytest.fixture(params=["compiled loops", "tensor operations"])
def form(request, monkeypatch):
    if request.param == "tensor operations":
        monkeypatch.setattr(_sparse_nb, "_can_be_compiled", lambda *tensors: False)


# ---- layout ----------------------------------------------------------------------------------------------------------

N_SAMPLES, N_CELLS, N_GENES = 2, 5, 7
LIKELIHOODS = {
    "nb": lambda counts, scores, library, theta, c: nb_log_likelihood(counts, scores, library, theta),
    "zinb": zinb_log_likelihood,
    "poisson": lambda counts, scores, library, theta, c: poisson_log_likelihood(counts, scores, library),
    "beta_binomial": lambda counts, scores, library, theta, c: beta_binomial_log_likelihood(
        counts, scores, torch.tensor(9.0), theta
    ),
    "normal": lambda counts, scores, library, theta, c: gaussian_log_likelihood(counts.to_dense(), scores, theta),
}


def transposed(t):
    return t.transpose(0, -1).contiguous().transpose(0, -1)


def sliced(t):
    return torch.stack([t, t + 1], dim=-1).flatten(-2)[..., ::2]


def expanded(t):
    """The same number along the first axis, held once."""
    return t[:1].expand(t.shape)


LAYOUTS = {"transposed": transposed, "sliced": sliced, "expanded": expanded}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("samples", [(), (N_SAMPLES,)])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_layout_of_the_arguments_does_not_matter(form, name, samples, layout, dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = [(*samples, N_CELLS, N_GENES), (*samples, N_CELLS), (N_GENES,), (*samples, N_CELLS, N_GENES)]
    counts = counts_from_dense(torch.randint(0, 4, (N_CELLS, N_GENES), generator=generator).float())
    plain = [LAYOUTS[layout](torch.randn(shape, generator=generator, dtype=dtype)).contiguous() for shape in shapes]
    results = []
    for lay in (torch.Tensor.contiguous, LAYOUTS[layout]):
        leaves = [t.clone().requires_grad_() for t in plain]
        for _ in range(2):  # memory that was never written holds something else the second time
            values = LIKELIHOODS[name](counts, *map(lay, leaves))
            upstream = torch.linspace(1, 2, values.numel(), dtype=dtype).view(values.shape)
            gradients = torch.autograd.grad((values * upstream).sum(), leaves, allow_unused=True)
        results.append([values, *(g for g in gradients if g is not None)])
    assert results[0][0].dtype == dtype
    for one, other in zip(*results, strict=True):
        if layout != "expanded":  # its gradient comes back on the one number that was held
            torch.testing.assert_close(one, other)
        torch.testing.assert_close(one.sum(), other.sum())
    torch.testing.assert_close(results[0][0], results[1][0])


def test_arguments_of_two_precisions_are_taken_in_the_wider(form):
    x = counts_from_dense(torch.tensor([[0.0, 2.0, 1.0]]))
    scores, library, theta, c = torch.randn(1, 3), torch.tensor([1.0]), torch.zeros(3), torch.randn(1, 3)
    expected = zinb_log_likelihood(x, scores.double(), library.double(), theta.double(), c.double())
    for wide in range(4):
        arguments = [t.double() if i == wide else t for i, t in enumerate((scores, library, theta, c))]
        torch.testing.assert_close(zinb_log_likelihood(x, *arguments), expected, rtol=1e-6, atol=0)


# ---- zero inflation --------------------------------------------------------------------------------------------------


@functools.cache
def zinb_by_mpmath(x, log_mu, log_theta, c):
    """Log-probability, and its derivative by the log mean where x is 0."""
    with mpmath.workdps(50):
        mu, theta, c = mpmath.exp(mpmath.mpf(log_mu)), mpmath.exp(mpmath.mpf(log_theta)), mpmath.mpf(max(c, -80.0))
        log_nb = theta * mpmath.log(theta / (theta + mu)) + x * mpmath.log(mu / (theta + mu))
        log_nb += mpmath.loggamma(x + theta) - mpmath.loggamma(theta) - mpmath.loggamma(x + 1)
        pi = 1 / (1 + mpmath.exp(-c))
        drawn = (1 - pi) * mpmath.exp(log_nb)
        return float(mpmath.log(drawn + (x == 0) * pi)), float(-drawn / (drawn + pi) * mu / (1 + mu / theta))


LOGITS = [-1e4, -200.0, -95.0, -80.5, -79.0, -30.0, -3.0, 0.0, 3.0, 40.0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("x", [0, 1, 3, 700])
def test_zero_inflation_at_any_logit(form, x, dtype):
    cases = [(*m, c) for m in ((-7.0, 1.0), (0.0, 0.0), (5.0, 6.0), (9.0, 9.0)) for c in LOGITS]  # one a cell
    log_mu, log_theta, c = (torch.tensor(v, dtype=dtype) for v in zip(*cases, strict=True))
    leaves = [v.requires_grad_() for v in (torch.zeros(40, 1, dtype=dtype), log_mu, log_theta[:, None], c[:, None])]
    values = zinb_log_likelihood(counts_from_dense(torch.full((40, 1), float(x))), *leaves)
    gradients = torch.autograd.grad(values.sum(), leaves)
    assert all(g.isfinite().all() for g in gradients)
    expected, slopes = zip(*(zinb_by_mpmath(x, *case) for case in cases), strict=True)
    np.testing.assert_allclose(values.detach(), expected, rtol=3e-6 if dtype == torch.float32 else 1e-9)
    if x == 0:
        np.testing.assert_allclose(gradients[1], slopes, rtol=1e-4, atol=1e-30)


# ---- beta-binomial ---------------------------------------------------------------------------------------------------


@functools.cache
def beta_binomial_by_mpmath(y, n, score, log_theta):
    """Log-probability, and its derivatives by the score and by log theta."""
    with mpmath.workdps(60):
        p = 1 / (1 + mpmath.exp(-mpmath.mpf(score)))
        log_p = mpmath.log(mpmath.binomial(n, y))
        if log_theta == math.inf:
            return float(log_p + y * mpmath.log(p) + (n - y) * mpmath.log(1 - p)), float(y - n * p), 0.0
        theta = mpmath.exp(mpmath.mpf(log_theta))
        a, b, g, d = theta * p, theta * (1 - p), mpmath.loggamma, mpmath.digamma
        log_p += g(y + a) - g(a) + g(n - y + b) - g(b) - g(n + theta) + g(theta)
        by_a, by_b = a * (d(y + a) - d(a)), b * (d(n - y + b) - d(b))
        return float(log_p), float((1 - p) * by_a - p * by_b), float(by_a + by_b - theta * (d(n + theta) - d(theta)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 4, 255])
def test_beta_binomial_up_to_the_binomial_limit(n, dtype):
    outcomes = sorted({0, 1, min(2, n), n // 2, n})
    thetas = [-20.0, -3.0, 0.0, 3.0, 7.0, 12.0, 25.0, 60.0, math.inf]
    cases = [(y, s, t) for y in outcomes for s in (-60.0, -4.0, 0.3, 25.0) for t in thetas]  # one a cell
    y, score, theta = (torch.tensor(v, dtype=dtype)[:, None] for v in zip(*cases, strict=True))
    leaves = [score.requires_grad_(), theta.requires_grad_()]
    values = beta_binomial_log_likelihood(counts_from_dense(y), leaves[0], torch.tensor(float(n)), leaves[1])
    gradients = torch.autograd.grad(values.sum(), leaves)
    expected = np.array([beta_binomial_by_mpmath(y, n, s, t) for y, s, t in cases]).T
    # terms of the size of n cancel where the outcome is likely
    slack = (1e-6 if dtype == torch.float32 else 1e-8) * n
    np.testing.assert_allclose(values.detach(), expected[0], rtol=2e-6, atol=slack)
    np.testing.assert_allclose(gradients[0].squeeze(), expected[1], rtol=1e-4, atol=2 * slack)
    np.testing.assert_allclose(gradients[1].squeeze(), expected[2], rtol=1e-4, atol=2 * slack)


def test_beta_binomial_has_no_second_derivative():
    theta = torch.zeros(1, requires_grad=True)
    value = beta_binomial_log_likelihood(
        counts_from_dense(torch.ones(1, 1)), torch.zeros(1, 1), torch.tensor(3.0), theta
    )
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(value.sum(), theta, create_graph=True)
