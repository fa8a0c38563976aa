"""Count likelihoods against float64 restatements, SciPy and scvi-tools, over the ranges they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from scdeepclust.nn import (
    Counts,
    _sparse_nb,
    beta_binomial_log_likelihood,
    counts_from_csr,
    counts_from_dense,
    gaussian_log_likelihood,
    nb_log_likelihood,
    poisson_log_likelihood,
    zinb_log_likelihood,
)

TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=["compiled loops", "tensor operations"], autouse=True)
def form(request):
    """Everything here holds for both forms of the negative binomial."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "tensor operations":
            patch.setattr(_sparse_nb, "_can_be_compiled", lambda *tensors: False)
        yield request.param


def log_nb(x, log_mu, log_theta):
    """Log-probability of every entry, written as in a textbook; exact enough in float64."""
    theta, log_ratio = log_theta.exp(), log_mu - log_theta
    log_one_plus = torch.logaddexp(torch.zeros_like(log_ratio), log_ratio)
    constant = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    constant = torch.where(x > 0, constant, 0.0)  # it is zero at zero, but the sum of its gradients is so by luck only
    return constant - theta * log_one_plus + x * (log_ratio - log_one_plus)


def log_zinb(x, log_mu, log_theta, c):
    log_pi, log_not_pi = torch.nn.functional.logsigmoid(c), torch.nn.functional.logsigmoid(-c)
    drawn = log_not_pi + log_nb(x, log_mu, log_theta)
    return torch.where(x > 0, drawn, torch.logaddexp(log_pi, drawn))


def log_mean(scores, log_library):
    return torch.log_softmax(scores, -1) + log_library.unsqueeze(-1)


def reference(x, scores, log_library, log_theta, c=None):
    """Per-cell log-likelihood in float64, by autograd through the dense formulas."""
    log_mu = log_mean(scores, log_library)
    return (log_nb(x, log_mu, log_theta) if c is None else log_zinb(x, log_mu, log_theta, c)).sum(-1)


def gradient_scales(x, weights, scores, log_library, log_theta, c=None):
    """Size of what each gradient adds up: terms of opposite sign may cancel in it, their rounding errors do not."""
    entries = [log_mean(scores, log_library), log_theta.expand_as(scores)] + ([] if c is None else [c])
    entries = [entry.detach().clone().requires_grad_() for entry in entries]
    values = (log_nb if c is None else log_zinb)(x, *entries)
    by_mean, by_theta, *by_dropout = torch.autograd.grad((values.sum(-1) * weights).sum(), entries)
    pull = (weights.unsqueeze(-1) * x * torch.sigmoid(entries[1] - entries[0])).abs().detach()  # x (1 - s), of both
    by_mean, by_theta = by_mean.abs() + pull, by_theta.abs() + pull
    sums = [by_mean, by_mean.sum(-1), by_theta.sum_to_size(log_theta.shape), *by_dropout]
    return [total.abs().max() for total in sums]


def problem(seed, n_cells=5, n_genes=40, *, n_samples=None, per_cell=False, zinb=False):
    """Counts with about 70 % zeros and matching float32 arguments."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    batch = (n_cells, n_genes) if n_samples is None else (n_samples, n_cells, n_genes)
    x = torch.poisson(torch.exp(normal(n_cells, n_genes) - 1), generator=generator)
    x[:, 0] += 1  # no empty cell
    arguments = [
        1.5 * normal(*batch),
        x.sum(1).log() + 0.1 * normal(n_cells),
        normal(*(batch if per_cell else batch[-1:])),
    ]
    if zinb:
        arguments.append(2 * normal(*batch))
    return x, arguments


def values_and_gradients(function, arguments, weights):
    leaves = [argument.detach().clone().requires_grad_() for argument in arguments]
    values = function(*leaves)
    return values.detach(), torch.autograd.grad((values * weights).sum(), leaves)


def check_against_reference(x, arguments, *, tolerance=TOLERANCE):
    ours = nb_log_likelihood if len(arguments) == 3 else zinb_log_likelihood
    weights = torch.linspace(-0.5, 1.5, arguments[0].shape[:-1].numel()).reshape(arguments[0].shape[:-1])
    counts = counts_from_dense(x)
    values, gradients = values_and_gradients(lambda *a: ours(counts, *a), arguments, weights)
    wide = [argument.double() for argument in arguments]
    weights, x = weights.double(), x.double()
    expected, expected_gradients = values_and_gradients(lambda *a: reference(x, *a), wide, weights)
    torch.testing.assert_close(values.double(), expected, rtol=tolerance, atol=0)
    scales = gradient_scales(x, weights, *wide)
    for found, wanted, scale in zip(gradients, expected_gradients, scales, strict=True):
        assert found.shape == wanted.shape
        # Gamma functions of 1e4 cancel to about 1e-10 in the restatement itself.
        slack = 1e-10 if bool((x > 0).any()) else 1e-15
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=tolerance * scale.item() + slack)


@pytest.mark.parametrize("zinb", [False, True])
@pytest.mark.parametrize("per_cell", [False, True])
@pytest.mark.parametrize("n_samples", [None, 3])
def test_values_and_gradients_of_all_forms(zinb, per_cell, n_samples):
    check_against_reference(*problem(0, n_samples=n_samples, per_cell=per_cell, zinb=zinb))


@pytest.mark.parametrize("zinb", [False, True])
def test_dispersion_per_cell_and_gene_is_shared_by_the_samples(zinb):
    x, arguments = problem(1, n_samples=3, zinb=zinb)
    arguments[2] = torch.randn(5, 40)
    check_against_reference(x, arguments)


@st.composite
def wide_problems(draw):
    """Means from 1e-8, counts to 1e4, theta in [1e-4, 1e4], dropout logits in [-30, 30], zeros and non-zeros."""
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    n_cells, n_genes = draw(st.integers(1, 3)), draw(st.integers(2, 12))
    shape = (n_cells, n_genes)
    log10_mu = rng.uniform(-8, draw(st.sampled_from([-2, 0, 4])), shape)
    log_theta = rng.uniform(*draw(st.sampled_from([(-4, 4), (-4, -3), (3.5, 4)])), n_genes) * math.log(10)
    kind = draw(st.sampled_from(["any", "zeros", "expected"]))
    x = {
        "any": np.where(rng.random(shape) < 0.5, 0, np.floor(10 ** rng.uniform(0, 4, shape))),
        "zeros": np.zeros(shape),
        "expected": rng.poisson(10**log10_mu),
    }[kind]
    log_mu = torch.tensor(log10_mu * math.log(10))
    arguments = [log_mu - log_mu.mean(), torch.logsumexp(log_mu, -1), torch.tensor(log_theta)]
    if draw(st.booleans()):
        low, high = draw(st.sampled_from([(-30, 30), (-30, -20), (20, 30), (-2, 2)]))
        arguments.append(torch.tensor(rng.uniform(low, high, shape)))
    return torch.tensor(x, dtype=torch.float32), [argument.float() for argument in arguments]


@settings(max_examples=100, deadline=None)
@given(wide_problems())
def test_exact_over_the_whole_promised_range(drawn):
    check_against_reference(*drawn)


@settings(max_examples=100, deadline=None)
@given(
    log10_mu=st.floats(-8, 4),
    log10_theta=st.floats(-4, 4),
    c=st.floats(-30, 30),
    x=st.one_of(st.just(0), st.integers(1, 10_000)),
)
def test_single_entries_are_exact_by_value_and_dispersion_gradient(log10_mu, log10_theta, c, x):
    """One gene leaves the softmax no freedom: the entry itself is compared, not a sum that other genes dominate."""
    x = torch.tensor([[float(x)]])
    arguments = [
        torch.zeros(1, 1),
        torch.tensor([log10_mu * math.log(10)]),
        torch.tensor([log10_theta * math.log(10)]),
        torch.tensor([[c]]),
    ]
    check_single_entry(nb_log_likelihood, x, arguments[:3])
    check_single_entry(zinb_log_likelihood, x, arguments)


@pytest.mark.parametrize("c", [-30.0, -12.0, -4.0, 0.0, 30.0])
@pytest.mark.parametrize("theta", [0.01, 1.0, 1e4])
@pytest.mark.parametrize("mu", [1e-8, 0.1, 10.0, 1e4])
def test_zeros_that_the_model_did_and_did_not_expect(mu, theta, c):
    arguments = [torch.zeros(1, 1), torch.tensor([math.log(mu)]), torch.tensor([math.log(theta)]), torch.tensor([[c]])]
    check_single_entry(zinb_log_likelihood, torch.zeros(1, 1), arguments)


def check_single_entry(ours, x, arguments):
    one, counts = torch.ones(1), counts_from_dense(x)
    values, found = values_and_gradients(lambda *a: ours(counts, *a), arguments, one)
    wide = [argument.double() for argument in arguments]
    wanted_values, wanted = values_and_gradients(lambda *a: reference(x.double(), *a), wide, one.double())
    # The restatement itself loses digits to large gamma functions: the absolute term allows for that.
    torch.testing.assert_close(values.double(), wanted_values, rtol=TOLERANCE, atol=1e-9)
    for by_ours, by_reference in zip(found[1:], wanted[1:], strict=True):
        slack = 1e-7 * x.item() + 1e-10 * bool(x)  # rounding of the mean alone moves the terms in x by this much
        torch.testing.assert_close(by_ours.double(), by_reference, rtol=TOLERANCE, atol=slack + 1e-20)


@pytest.mark.parametrize("zinb", [False, True])
def test_values_are_those_of_scvi(zinb):
    from scvi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial

    x, arguments = problem(2, zinb=zinb)
    counts = counts_from_dense(x)
    mu, theta = log_mean(*arguments[:2]).exp(), arguments[2].exp()
    if zinb:
        ours = zinb_log_likelihood(counts, *arguments)
        theirs = ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=arguments[3])
    else:
        ours, theirs = nb_log_likelihood(counts, *arguments), NegativeBinomial(mu=mu, theta=theta)
    torch.testing.assert_close(ours, theirs.log_prob(x).sum(-1), rtol=TOLERANCE, atol=0)


def test_negative_binomial_is_that_of_scipy():
    x, (scores, log_library, log_theta) = problem(3)
    mu, theta = log_mean(scores, log_library).double().exp().numpy(), log_theta.double().exp().numpy()
    expected = stats.nbinom(theta, theta / (theta + mu)).logpmf(x.numpy()).sum(1)
    found = nb_log_likelihood(counts_from_dense(x), scores, log_library, log_theta)
    np.testing.assert_allclose(found.numpy(), expected, rtol=TOLERANCE)


@pytest.mark.parametrize("n_samples", [None, 3])
def test_poisson_is_that_of_scipy_with_its_gradient(n_samples):
    x, (scores, log_library, _) = problem(4, n_samples=n_samples)
    counts = counts_from_dense(x)
    weights = torch.arange(1.0, 6)
    values, gradients = values_and_gradients(
        lambda *a: poisson_log_likelihood(counts, *a), [scores, log_library], weights
    )
    mu = log_mean(scores, log_library).double().exp()
    np.testing.assert_allclose(values, stats.poisson(mu.numpy()).logpmf(x.numpy()).sum(-1), rtol=TOLERANCE)
    by_mean = weights[:, None] * (x - mu)
    by_scores = by_mean - torch.softmax(scores, -1) * by_mean.sum(-1, keepdim=True)
    torch.testing.assert_close(gradients[0].double(), by_scores, rtol=1e-4, atol=1e-4)
    by_library = by_mean.sum(-1)
    torch.testing.assert_close(gradients[1].double(), by_library.sum_to_size(5), rtol=1e-4, atol=1e-4)


def test_gaussian_is_that_of_scipy():
    generator = torch.Generator().manual_seed(5)
    y, mean, log_var = (torch.randn(*shape, generator=generator) for shape in [(5, 7), (3, 5, 7), (7,)])
    expected = stats.norm(mean.numpy(), np.exp(log_var.numpy() / 2)).logpdf(y.numpy()).sum(-1)
    np.testing.assert_allclose(gaussian_log_likelihood(y, mean, log_var), expected, rtol=TOLERANCE)


@pytest.mark.parametrize("n_trials", [1, 16, 255])
def test_beta_binomial_is_that_of_scipy_and_learns_at_the_bounds(n_trials):
    rng = np.random.default_rng(0)
    x = rng.integers(0, n_trials + 1, (6, 7))
    scores = torch.tensor(rng.normal(0, 3, (2, 6, 7)), dtype=torch.float32)
    log_theta = torch.tensor(rng.normal(0, 2, 7), dtype=torch.float32)
    counts, n = counts_from_dense(torch.tensor(x, dtype=torch.float32)), torch.tensor(float(n_trials))
    p, theta = scores.double().sigmoid().numpy(), log_theta.double().exp().numpy()
    expected = stats.betabinom.logpmf(x, n_trials, theta * p, theta * (1 - p)).sum(-1)
    np.testing.assert_allclose(beta_binomial_log_likelihood(counts, scores, n, log_theta), expected, rtol=1e-4)
    if n_trials == 1:
        np.testing.assert_allclose(stats.bernoulli.logpmf(x, p).sum(-1), expected, rtol=1e-6)
    extreme = torch.tensor([[-200.0, 200.0]], requires_grad=True)  # as wrong as can be
    wrong = counts_from_dense(torch.tensor([[n_trials, 0.0]]))
    beta_binomial_log_likelihood(wrong, extreme, n, torch.zeros(2)).sum().backward()
    assert extreme.grad.isfinite().all()


def test_large_theta_tends_to_poisson():
    x, (scores, log_library, _) = problem(6)
    counts = counts_from_dense(x)
    near = nb_log_likelihood(counts, scores, log_library, torch.full((40,), math.log(1e6)))
    torch.testing.assert_close(near, poisson_log_likelihood(counts, scores, log_library), rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_round_the_likelihood(dtype):
    x, arguments = problem(7, zinb=True)
    counts = counts_from_dense(x)
    arguments[0] = arguments[0].to(dtype).float()  # what a layer under autocast would hand over
    weights = torch.ones(5)
    expected = values_and_gradients(lambda *a: zinb_log_likelihood(counts, *a), arguments, weights)

    def under_autocast(scores, *rest):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return zinb_log_likelihood(counts, scores.to(dtype), *rest)

    found = values_and_gradients(under_autocast, arguments, weights)
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0)
    for got, wanted in zip(found[1][1:], expected[1][1:], strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mean = torch.randn(5, 40)
        assert gaussian_log_likelihood(x, mean, torch.zeros(40)).dtype == torch.float32
        assert poisson_log_likelihood(counts, *arguments[:2]).dtype == torch.float32


def test_backward_runs_twice_but_not_through_itself():
    x, arguments = problem(8, zinb=True)
    leaves = [argument.requires_grad_() for argument in arguments]
    loss = zinb_log_likelihood(counts_from_dense(x), *leaves).sum()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    loss = zinb_log_likelihood(counts_from_dense(x), *leaves).sum()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, leaves[0], create_graph=True)


def test_without_gradient_the_values_are_the_same_and_the_arguments_untouched():
    x, arguments = problem(9, zinb=True, n_samples=2)
    counts = counts_from_dense(x)
    before = [argument.clone() for argument in arguments]
    with torch.no_grad():
        without = zinb_log_likelihood(counts, *arguments)
    with_gradient = zinb_log_likelihood(counts, *[argument.requires_grad_() for argument in arguments])
    torch.testing.assert_close(without, with_gradient, rtol=0, atol=0)
    for argument, kept in zip(arguments, before, strict=True):
        torch.testing.assert_close(argument.detach(), kept, rtol=0, atol=0)


def test_samples_are_the_single_calls():
    x, (scores, log_library, log_theta, c) = problem(10, zinb=True, n_samples=3)
    counts = counts_from_dense(x)
    together = zinb_log_likelihood(counts, scores, log_library, log_theta, c)
    one_by_one = [zinb_log_likelihood(counts, scores[m], log_library, log_theta, c[m]) for m in range(3)]
    torch.testing.assert_close(together, torch.stack(one_by_one), rtol=0, atol=0)


def test_gradients_of_a_frozen_argument_are_not_asked_for():
    x, (scores, log_library, log_theta) = problem(11)
    scores.requires_grad_()
    nb_log_likelihood(counts_from_dense(x), scores, log_library, log_theta).sum().backward()
    assert scores.grad is not None
    assert log_theta.grad is None


def test_scores_beyond_float32_give_a_finite_loss_and_the_way_back():
    x = torch.tensor([[3.0, 1.0]])
    scores = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    value = nb_log_likelihood(counts_from_dense(x), scores, torch.tensor([1.0]), torch.zeros(2))
    value.backward()
    assert math.isfinite(value.item())
    assert scores.grad[0, 0] > 1
    assert torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("per_cell", [False, True])
def test_the_number_of_threads_changes_nothing(per_cell):
    x, arguments = problem(15, n_cells=7, zinb=True, n_samples=2, per_cell=per_cell)
    counts, weights, n_threads = counts_from_dense(x), torch.ones(2, 7), torch.get_num_threads()
    found = []
    try:
        for n in (1, 2, 16):
            torch.set_num_threads(n)
            values, gradients = values_and_gradients(lambda *a: zinb_log_likelihood(counts, *a), arguments, weights)
            found.append((values, *gradients))
    finally:
        torch.set_num_threads(n_threads)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_compiled_loops_do_without_a_place_to_write(monkeypatch):
    from scdeepclust.nn import _kernels

    def compiler(**options):
        if options.get("cache"):
            raise RuntimeError("no locator available")
        return lambda function: ("compiled", function)

    monkeypatch.setattr(_kernels, "njit", compiler)
    monkeypatch.setattr(_kernels, "_compiled", compiler())
    assert _kernels._cached(len) == ("compiled", len)


def test_nan_is_not_hidden():
    x, (scores, log_library, log_theta) = problem(12)
    scores[1, 3] = math.nan
    value = nb_log_likelihood(counts_from_dense(x), scores, log_library, log_theta)
    assert torch.isnan(value[1])
    assert torch.isfinite(value[[0, 2, 3, 4]]).all()


def test_other_genes_are_refused():
    x, (scores, log_library, log_theta) = problem(13)
    with pytest.raises(ValueError, match="scores must end in"):
        nb_log_likelihood(counts_from_dense(x[:, :-1]), scores, log_library, log_theta)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 6), st.integers(1, 6), st.integers(0, 2**31))
def test_counts_survive_the_way_there_and_back(n_cells, n_genes, seed):
    x = torch.poisson(torch.full((n_cells, n_genes), 0.4), generator=torch.Generator().manual_seed(seed))
    for counts in (counts_from_dense(x), counts_from_csr(x.to_sparse_csr())):
        torch.testing.assert_close(counts.to_dense(), x)
        torch.testing.assert_close(counts.totals(), x.sum(1))
        assert (counts.row.diff() >= 0).all()
        assert (counts.value > 0).all()


def test_stored_zeros_are_no_counts():
    x = torch.sparse_csr_tensor(torch.tensor([0, 2, 3]), torch.tensor([0, 2, 1]), torch.tensor([2.0, 0.0, 5.0]), (2, 3))
    counts = counts_from_csr(x)
    assert counts == Counts(*counts)
    assert counts.value.tolist() == [2, 5]
    assert counts.row.tolist() == [0, 1]
    assert counts.col.tolist() == [0, 1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("zinb", [False, True])
def test_gpu_agrees(zinb):
    x, arguments = problem(14, zinb=zinb, n_samples=2)
    ours = zinb_log_likelihood if zinb else nb_log_likelihood
    weights = torch.ones(2, 5)
    on_cpu = values_and_gradients(lambda *a: ours(counts_from_dense(x), *a), arguments, weights)
    counts = counts_from_dense(x).to("cuda")
    arguments, weights = [argument.cuda() for argument in arguments], weights.cuda()
    on_gpu = values_and_gradients(lambda *a: ours(counts, *a), arguments, weights)
    torch.testing.assert_close(on_gpu[0].cpu(), on_cpu[0], rtol=TOLERANCE, atol=0)
    for a, b in zip(on_gpu[1], on_cpu[1], strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-4)
