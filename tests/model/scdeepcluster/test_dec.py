"""DEC terms against NumPy, finite differences, and the naive [N, K, D] form."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from scdeepclust.model.scdeepcluster._dec import (
    assignment_kl,
    column_sums,
    student_t_log_assignment,
    target_distribution,
)


def naive(z, centers, scale):
    kernel = 1 / (1 + cdist(z.double().numpy(), centers.double().numpy(), "sqeuclidean") / scale)
    return kernel / kernel.sum(1, keepdims=True)


def cells(seed, n=60, k=5, d=4, spread=1.0, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    z = spread * torch.randn(n, d, generator=generator) + offset
    return z, z[torch.randperm(n, generator=generator)[:k]] + 0.1 * torch.randn(k, d, generator=generator)


@settings(max_examples=60, deadline=None)
@example(seed=4126, k=5, d=1, scale=0.0546875, spread=5.0, offset=0.0)
@given(
    seed=st.integers(0, 2**31),
    k=st.integers(1, 8),
    d=st.integers(1, 10),
    scale=st.floats(0.05, 50),
    spread=st.floats(0.01, 10),
    offset=st.floats(-1000, 1000),
)
def test_assignment_is_the_student_kernel(seed, k, d, scale, spread, offset):
    z, centers = cells(seed, k=k, d=d, spread=spread, offset=offset)
    q = student_t_log_assignment(z, centers, scale).exp()
    # A float32 embedding at an offset of 1000 is itself known to 6e-5 only, and a squared distance from matrix products
    # is as exact as the rounding of its largest term.
    rounding = 2**-24 * float((z - centers.mean(0)).square().sum(1).max()) / scale
    np.testing.assert_allclose(q, naive(z, centers, scale), atol=1e-5 + rounding)


def test_no_cancellation_at_an_offset():
    z, centers = cells(0)
    near = student_t_log_assignment(z, centers)
    far = student_t_log_assignment(z + 128, centers + 128)  # 128: the shift itself rounds to 1e-5 only
    torch.testing.assert_close(near, far, rtol=0, atol=2e-4)


def test_a_cell_on_its_centre_has_finite_gradients():
    z = torch.tensor([[0.3, 0.1], [2.0, 1.0]], requires_grad=True)
    centers = z.detach().clone().requires_grad_()
    student_t_log_assignment(z, centers).sum().backward()
    assert torch.isfinite(z.grad).all()
    assert torch.isfinite(centers.grad).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), balance=st.sampled_from([0.0, 0.5, 1.0]))
def test_target_sharpens_and_balances(seed, balance):
    z, centers = cells(seed)
    q = student_t_log_assignment(z, centers).exp()
    f = q.sum(0)
    p = target_distribution(q, f, balance=balance)
    expected = q.double().numpy() ** 2 / f.double().numpy() ** balance
    np.testing.assert_allclose(p, expected / expected.sum(1, keepdims=True), rtol=1e-4, atol=1e-7)


def test_target_survives_an_empty_cluster_and_takes_no_gradient():
    q = torch.tensor([[1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    p = target_distribution(q, q.sum(0).double())
    assert not p.requires_grad
    torch.testing.assert_close(p, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))


def test_divergence_is_that_of_scipy_and_zero_at_the_target():
    from scipy.stats import entropy

    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(6), 20), rng.dirichlet(np.ones(6), 20)
    p[0] = [1, 0, 0, 0, 0, 0]
    kl = assignment_kl(torch.tensor(q).log(), torch.tensor(p))
    np.testing.assert_allclose(kl, entropy(p, q, axis=1), rtol=1e-10)
    np.testing.assert_allclose(assignment_kl(torch.tensor(p[1:]).log(), torch.tensor(p[1:])), 0, atol=1e-15)


def test_gradient_of_the_clustering_loss_by_finite_differences():
    z, centers = cells(1, n=12, k=3, d=2)
    z, centers = z.double().requires_grad_(), centers.double().requires_grad_()
    q = student_t_log_assignment(z, centers, 0.7).exp()
    p = target_distribution(q, q.sum(0))
    assert torch.autograd.gradcheck(lambda z, c: assignment_kl(student_t_log_assignment(z, c, 0.7), p), (z, centers))


def test_target_is_a_constant():
    log_q = torch.log(torch.tensor([[0.3, 0.7]])).requires_grad_()
    p = torch.tensor([[0.5, 0.5]], requires_grad=True)
    assignment_kl(log_q, p).sum().backward()
    assert p.grad is None
    torch.testing.assert_close(log_q.grad, -p.detach())


@pytest.mark.parametrize("as_blocks", [False, True])
def test_column_sums_are_those_of_all_cells(as_blocks):
    z, centers = cells(2, n=10_000)
    blocks = z.split(999) if as_blocks else z
    found = column_sums(iter(blocks) if as_blocks else blocks, centers, 2.0)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, naive(z, centers, 2.0).sum(0), rtol=1e-6)


def test_blocks_are_read_one_at_a_time():
    """Memory does not grow with the number of blocks: none of them is kept."""

    def peak(n):
        tracemalloc.start()  # it sees the blocks, which NumPy allocates
        column_sums((torch.from_numpy(np.full((4096, 8), i, np.float32)) for i in range(n)), torch.zeros(50, 8))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak(40) < 1.5 * peak(4)


def test_autocast_does_not_round_distances():
    z, centers = cells(3, offset=30.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = student_t_log_assignment(z, centers)
        sums = column_sums(z, centers)
    torch.testing.assert_close(under, student_t_log_assignment(z, centers), rtol=0, atol=0)
    torch.testing.assert_close(sums, column_sums(z, centers), rtol=0, atol=0)
