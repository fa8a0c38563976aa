"""Noise is normal, independent, and follows from the seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from scdeepclust.nn import normal_like

N = 1_000_000


@pytest.fixture(scope="module")
def noise():
    torch.manual_seed(0)
    return normal_like(torch.empty(N)).double().numpy()


def test_distribution(noise):
    assert stats.kstest(noise, "norm").pvalue > 1e-3
    assert abs(noise.mean()) < 4 / N**0.5
    assert abs(noise.var() - 1) < 4 * (2 / N) ** 0.5
    assert abs(stats.kurtosis(noise)) < 4 * (24 / N) ** 0.5
    assert 4.2 < np.abs(noise).max() < 4.4


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 4000])
def test_no_correlation_at_any_lag(noise, lag):
    bound = 4.5 / N**0.5
    assert abs(np.corrcoef(noise[lag:], noise[:-lag])[0, 1]) < bound
    assert abs(np.corrcoef(noise[lag:] ** 2, noise[:-lag] ** 2)[0, 1]) < bound


def test_calls_and_seeds_differ_and_the_same_seed_repeats():
    x = torch.empty(300, 400)
    torch.manual_seed(1)
    first, second = normal_like(x), normal_like(x)
    torch.manual_seed(1)
    assert torch.equal(normal_like(x), first)
    torch.manual_seed(2)
    for other in (second, normal_like(x)):
        assert abs(np.corrcoef(first.flatten(), other.flatten())[0, 1]) < 4.5 / x.numel() ** 0.5


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (5, 7), (2, 3, 4097)])
def test_shapes(shape):
    noise = normal_like(torch.empty(shape, requires_grad=True))
    assert noise.shape == shape
    assert not noise.requires_grad
    assert noise.is_contiguous()


def test_other_types_are_left_to_pytorch():
    x = torch.empty(10, dtype=torch.float64)
    torch.manual_seed(3)
    found = normal_like(x)
    torch.manual_seed(3)
    assert torch.equal(found, torch.randn_like(x))
