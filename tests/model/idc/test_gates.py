"""Gates and coding rates against independent restatements."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from scdeepclust.model.idc._coding_rate import coding_rate, compressed_rate
from scdeepclust.model.idc._gates import GateBudget, GatingNetwork, draw_gates, expected_open


def test_gates_are_clipped_and_noisy_only_when_asked():
    means = torch.tensor([-1.0, 0.25, 2.0])
    torch.testing.assert_close(draw_gates(means), torch.tensor([0.0, 0.25, 1.0]))
    draws = draw_gates(means.expand(20_000, 3), sigma=0.5)
    assert draws.min() >= 0
    assert draws.max() <= 1
    x = np.clip(means.numpy() + 0.5 * np.random.default_rng(0).normal(size=(200_000, 3)), 0, 1)
    np.testing.assert_allclose(draws.mean(0), x.mean(0), atol=0.01)
    np.testing.assert_allclose(draws.std(0), x.std(0), atol=0.01)


def test_expected_open_is_the_share_of_draws_above_zero():
    means = torch.tensor([[-0.6, 0.1, 0.9], [-2.0, 0.0, 0.4]])
    np.testing.assert_allclose(expected_open(means, 0.5), norm.cdf(means.numpy() / 0.5).sum(1), rtol=1e-5)
    draws = (draw_gates(means.expand(20_000, 2, 3), sigma=0.5) > 0).float().sum(-1).mean(0)
    torch.testing.assert_close(draws, expected_open(means, 0.5), atol=0.02, rtol=0)


def test_a_new_gating_network_opens_all_gates():
    torch.manual_seed(0)
    gates = draw_gates(GatingNetwork(50, 16)(torch.randn(30, 50)))
    assert gates.mean() > 0.9


@pytest.mark.parametrize("wanted", [3.0, 20.0, 45.0])
def test_the_budget_is_met(wanted):
    budget = GateBudget(sigma=0.5)
    means = torch.randn(64, 50, generator=torch.Generator().manual_seed(0))
    for _ in range(100):
        shifted = budget(means, wanted)
    assert expected_open(shifted, 0.5).square().mean().sqrt().item() == pytest.approx(wanted, rel=1e-3)
    torch.testing.assert_close(budget(means), shifted)  # at prediction the offset stays
    assert budget(means[:1] + 100).equal(means[:1] + 100 - budget.offset)


def test_gradients_flow_through_the_offset():
    """By finite differences, with the offset solved to full precision each time."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    budget = GateBudget(sigma=0.5).double()

    def solved(m):
        for _ in range(60):
            shifted = budget(m, wanted=2.0)
        return shifted

    leaf = means.clone().requires_grad_()
    (solved(leaf).tanh() * weight).sum().backward()
    for i, j in [(0, 0), (1, 3), (2, 4)]:
        step = torch.zeros_like(means)
        step[i, j] = 1e-5
        up, down = ((solved(means + s * step).tanh() * weight).sum() for s in (1, -1))
        assert leaf.grad[i, j].item() == pytest.approx((up - down).item() / 2e-5, rel=1e-3, abs=1e-6)


def test_a_gate_costs_more_where_many_are_open():
    """Two samples with the same gate on the edge; the second has ten times as many others open."""
    means = torch.full((2, 100), -9.0)
    means[0, 1:6] = means[1, 1:51] = 9.0
    means[:, 0] = 0.0
    means.requires_grad_()
    budget = GateBudget(sigma=0.5)
    budget(means, wanted=40.0).sum().backward()
    taken = 1 - means.grad[:, 0]
    assert (taken[1] / taken[0]).item() == pytest.approx(50.5 / 5.5, rel=1e-3)


def test_opening_all_gates_at_once_is_impossible():
    """What all gates have in common is taken back by the offset: gradients add up to nothing."""
    budget = GateBudget(sigma=0.5)
    means = torch.randn(8, 40).requires_grad_()
    for _ in range(50):
        shifted = budget(means, wanted=10.0)
    shifted.sum().backward()
    assert abs(means.grad.sum().item()) < 1e-3


@pytest.mark.parametrize("shape", [(40, 6), (6, 40)])
def test_coding_rate_is_a_log_determinant(shape):
    z = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    n, d = shape
    expected = np.linalg.slogdet(np.eye(d) + d / (n * 0.1) * z.numpy().T @ z.numpy())[1] / 2
    assert coding_rate(z, 0.1).item() == pytest.approx(expected, rel=1e-4)


def test_compressed_rate_is_a_sum_over_clusters():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(30, 4, generator=generator)
    p = torch.softmax(torch.randn(30, 3, generator=generator), dim=1)
    expected = 0.0
    for k in range(3):
        size = p[:, k].sum().item()
        gram = z.numpy().T @ np.diag(p[:, k].numpy()) @ z.numpy()
        expected += size / (2 * 30) * np.linalg.slogdet(np.eye(4) + 4 / (size * 0.5) * gram)[1]
    assert compressed_rate(z, p, 0.5).item() == pytest.approx(expected, rel=1e-4)


def test_compressed_rate_is_bounded_by_the_rate_and_forgives_empty_clusters():
    z = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    one = torch.zeros(30, 3)
    one[:, 0] = 1
    torch.testing.assert_close(compressed_rate(z, one), coding_rate(z))  # all in one cluster: nothing is saved
    parts = torch.nn.functional.one_hot(torch.arange(30) % 3, 3).float()
    assert compressed_rate(z, parts) < coding_rate(z)


def test_gates_that_are_all_open_have_a_rate():
    """The Gram matrix of many open gates is so large that one is below its rounding error."""
    torch.manual_seed(0)
    gates = (1 - 1e-3 * torch.rand(256, 17_126)).requires_grad_()
    rate = coding_rate(gates, distortion=1.0)
    z = gates.detach().double().numpy()
    expected = np.linalg.slogdet(np.eye(256) + 17_126 / 256 * z @ z.T)[1] / 2
    assert rate.item() == pytest.approx(expected, rel=0.02)
    rate.backward()
    assert torch.isfinite(gates.grad).all()


def test_processes_with_samples_of_their_own_keep_one_offset(monkeypatch):
    """Each process sees its part; what it sends is replaced by the sum over both parts, as the other sees it too."""
    from scdeepclust.model.idc import _gates

    means = torch.randn(64, 50, generator=torch.Generator().manual_seed(0))
    means[32:] += 1.0  # the two parts would drift apart
    parts = means.split(32)
    budgets = [GateBudget(sigma=0.5) for _ in parts]
    sent = []
    monkeypatch.setattr(_gates.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(_gates.dist, "get_world_size", lambda: 2)
    for _ in range(60):
        sent.clear()
        offset = [budget.offset.clone() for budget in budgets]
        monkeypatch.setattr(_gates.dist, "all_reduce", lambda values: sent.append(values.clone()))
        for budget, part in zip(budgets, parts, strict=True):
            budget(part, 12.0)
        for budget, before, part in zip(budgets, offset, parts, strict=True):
            budget.offset.copy_(before)
            monkeypatch.setattr(_gates.dist, "all_reduce", lambda values: values.copy_(sum(sent)))
            budget(part, 12.0)
    assert budgets[0].offset == budgets[1].offset
    level = expected_open(means - budgets[0].offset, 0.5).square().mean().sqrt()
    assert level.item() == pytest.approx(12, rel=1e-3)
