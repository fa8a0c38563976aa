"""Gaussian mixture against scikit-learn and torch.distributions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture as SklearnMixture
from torch.distributions import Independent, Normal

from scdeepclust.nn import GaussianMixture, diag_gaussian_log_prob


def by_broadcast(z, means, log_var):
    """The [..., K, D] form in float64."""
    means, log_var = means.double(), log_var.double().expand(means.shape)
    return Independent(Normal(means, torch.exp(0.5 * log_var)), 1).log_prob(z.double().unsqueeze(-2))


def points(seed, n=40, k=4, d=3, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(k, d, generator=generator) + offset
    z = means[torch.randint(k, (n,), generator=generator)] + torch.randn(n, d, generator=generator)
    return z, means, 0.5 * torch.randn(k, d, generator=generator)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    k=st.integers(1, 8),
    d=st.integers(1, 20),
    shared=st.booleans(),
    offset=st.sampled_from([0.0, 1.0, 100.0]),
)
def test_log_density_is_that_of_torch_distributions(seed, k, d, shared, offset):
    z, means, log_var = points(seed, k=k, d=d, offset=offset)
    log_var = log_var[:1] if shared else log_var
    expected = by_broadcast(z, means, log_var)
    found = diag_gaussian_log_prob(z, means, log_var)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shared", [True, False])
def test_error_at_an_offset_of_100_at_published_size(shared):
    z, means, log_var = points(0, n=1280, k=50, d=80, offset=100.0)
    log_var = log_var[:1] if shared else log_var
    expected = by_broadcast(z, means, log_var)
    error = (diag_gaussian_log_prob(z, means, log_var).double() - expected).abs() / expected.abs()
    assert error.max() <= 1e-5


@pytest.mark.parametrize("leading", [(), (3,)])
def test_means_of_each_point(leading):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(*leading, 6, 3, generator=generator)
    means = torch.randn(*leading, 6, 4, 3, generator=generator)
    log_var = torch.randn(*leading, 6, 4, 3, generator=generator)
    found = diag_gaussian_log_prob(z, means, log_var)
    torch.testing.assert_close(found.double(), by_broadcast(z, means, log_var), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("per_point", [True, False])
def test_gradients_by_finite_differences(shared, per_point):
    z, means, log_var = (tensor.double() for tensor in points(1, n=5, k=3, d=2))
    log_var = log_var[:1] if shared else log_var
    if per_point:
        means = means.expand(5, 3, 2)
    arguments = [tensor.clone().requires_grad_() for tensor in (z, means, log_var)]
    assert torch.autograd.gradcheck(diag_gaussian_log_prob, arguments)


@pytest.mark.parametrize("shared", [True, False])
def test_density_and_responsibilities_are_those_of_scikit_learn(shared):
    z, means, log_var = points(2)
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4])
    mixture = GaussianMixture(4, 3, shared_variance=shared)
    with torch.no_grad():
        mixture.means.copy_(means)
        mixture.log_var.copy_(log_var[: len(mixture.log_var)])
        mixture.logits.copy_(weights.log() + 3)  # logits are known up to a constant
    theirs = SklearnMixture(4, covariance_type="diag")
    theirs.means_, theirs.weights_ = means.numpy(), weights.numpy()
    theirs.precisions_cholesky_ = np.exp(-0.5 * mixture.log_var.detach().expand(4, 3).numpy())
    np.testing.assert_allclose(mixture.log_prob(z).detach(), theirs.score_samples(z.numpy()), rtol=1e-5)
    np.testing.assert_allclose(mixture.responsibilities(z).detach(), theirs.predict_proba(z.numpy()), atol=1e-5)
    assert mixture.log_joint(z.expand(2, 40, 3)).shape == (2, 40, 4)


@pytest.mark.parametrize("shared", [True, False])
def test_start_from_labels(shared):
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    z = rng.normal(size=(100, 4)) + 5 * labels[:, None]
    z_var = rng.uniform(0.1, 0.2, (100, 4))
    mixture = GaussianMixture(3, 4, shared_variance=shared)
    assert not mixture.initialised
    mixture.initialise(torch.tensor(z).float(), torch.tensor(z_var).float(), torch.tensor(labels))
    assert mixture.initialised
    means = np.stack([z[labels == k].mean(0) for k in range(3)])
    np.testing.assert_allclose(mixture.means.detach(), means, rtol=1e-5)
    scatter = (z - means[labels]) ** 2 + z_var
    variance = scatter.mean(0)[None] if shared else np.stack([scatter[labels == k].mean(0) for k in range(3)])
    np.testing.assert_allclose(mixture.log_var.detach().exp(), variance + 1e-4, rtol=1e-4)
    np.testing.assert_allclose(mixture.log_weights.detach().exp(), [0.5, 0.3, 0.2], rtol=1e-5)
    assert (mixture.responsibilities(torch.tensor(z).float()).argmax(1).numpy() == labels).mean() > 0.99


def test_weights_that_are_not_learned_stay_uniform():
    mixture = GaussianMixture(2, 1, learn_weights=False)
    mixture.initialise(torch.tensor([[0.0], [1.0], [9.0]]), torch.zeros(3, 1), torch.tensor([0, 0, 1]))
    torch.testing.assert_close(mixture.log_weights.exp(), torch.tensor([0.5, 0.5]))
    assert "logits" not in dict(mixture.named_parameters())
    assert "logits" in mixture.state_dict()


@pytest.mark.parametrize("labels", [[0, 0, 2], [0, 1, 3], [0, -1, 1], [0, 0, 0]])
def test_labels_that_do_not_fit_are_refused(labels):
    mixture = GaussianMixture(3, 1)
    before = mixture.means.clone()
    with pytest.raises(ValueError, match="labels must use every integer from 0 to 2"):
        mixture.initialise(torch.randn(3, 1), torch.zeros(3, 1), torch.tensor(labels))
    torch.testing.assert_close(mixture.means, before)


def test_variances_are_bounded_where_they_are_used():
    mixture = GaussianMixture(2, 3)
    with torch.no_grad():
        mixture.log_var.fill_(-50)
    z = torch.randn(4, 3)
    expected = by_broadcast(z, mixture.means, torch.full((1, 3), -6.0)) + np.log(0.5)
    torch.testing.assert_close(mixture.log_joint(z).double(), expected, rtol=1e-5, atol=1e-4)


def test_autocast_does_not_round():
    z, means, log_var = points(3, offset=50.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = diag_gaussian_log_prob(z, means, log_var)
    torch.testing.assert_close(under, diag_gaussian_log_prob(z, means, log_var), rtol=0, atol=0)
