"""The ladder, the independence penalty and the closed-form responsibilities against plain restatements."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import norm

from scdeepclust.model.mfcvae._independence import dependence
from scdeepclust.model.mfcvae._ladder import LadderBody, LadderEncoder
from scdeepclust.nn import Covariates, GaussianMixture


def hsic_by_definition(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    """Mean over all quadruples of different cells of k_ij l_ij + k_ij l_qr - 2 k_ij l_iq."""
    n, total, count = len(k), 0.0, 0
    for i in range(n):
        for j in range(n):
            for q in range(n):
                for r in range(n):
                    if len({i, j, q, r}) == 4:
                        total += k[i, j] * l[i, j] + k[i, j] * l[q, r] - 2 * k[i, j] * l[i, q]
                        count += 1
    return total / count


def kernel(x: np.ndarray) -> np.ndarray:
    distances = np.square(x[:, None] - x[None]).sum(axis=2)
    off_diagonal = np.sort(distances[~np.eye(len(x), dtype=bool)])
    return np.exp(-distances / off_diagonal[(len(off_diagonal) - 1) // 2])  # the lower median, as in torch


def test_dependence_is_hsic_over_all_quadruples():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 2)), rng.normal(size=(8, 3))
    y[:, 0] += x[:, 0]
    k, l = kernel(x), kernel(y)  # noqa: E741
    expected = hsic_by_definition(k, l) / np.sqrt(hsic_by_definition(k, k) * hsic_by_definition(l, l))
    result = dependence(torch.as_tensor(x), torch.as_tensor(y))
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_dependence_is_zero_on_average_for_independent_variables_and_has_a_gradient():
    torch.manual_seed(0)
    draws = torch.stack([dependence(torch.randn(30, 2), torch.randn(30, 3)) for _ in range(300)])
    assert abs(draws.mean()) < 4 * draws.std() / 300**0.5
    x = torch.randn(60, 1)
    assert dependence(x, x.square()) > 0.1  # not correlated, but dependent
    y = (x + 0.1 * torch.randn(60, 1)).requires_grad_()
    dependence(x, y).backward()
    assert y.grad.abs().sum() > 0
    assert dependence(x[:3], x[:3]) == 0


def test_responsibilities_use_the_mean_of_the_log_density():
    torch.manual_seed(0)
    mixture = GaussianMixture(3, 2, shared_variance=False)
    torch.nn.init.normal_(mixture.means)
    torch.nn.init.normal_(mixture.log_var)
    torch.nn.init.normal_(mixture.logits)
    mean, var = torch.randn(5, 2), torch.rand(5, 2)
    draws = mean + var.sqrt() * torch.randn(200_000, 5, 2)
    sampled = torch.stack([mixture.log_joint(block).mean(dim=0) for block in draws.split(50_000)]).mean(dim=0)
    np.testing.assert_allclose(mixture.mean_log_joint(mean, var).detach(), sampled.detach(), atol=0.03)
    mu, sd = mixture.means.detach().numpy(), np.exp(mixture.log_var.detach().numpy() / 2)
    exact = norm.logpdf(mean[:, None].numpy(), mu, sd).sum(axis=2) - 0.5 * (var[:, None].numpy() / sd**2).sum(axis=2)
    exact = exact + torch.log_softmax(mixture.logits, dim=0).detach().numpy()
    np.testing.assert_allclose(mixture.mean_log_joint(mean, var).detach(), exact, atol=1e-4)


def test_facets_leave_the_encoder_at_different_depths():
    encoder = LadderEncoder(10, 4, n_hidden=6, n_layers=2).eval()
    u = torch.randn(3, 10)
    deep, shallow, *others = encoder(u)
    first = encoder.first(u)
    torch.testing.assert_close(shallow, first)
    torch.testing.assert_close(deep, encoder.deeper[0](first))
    assert len(others) == 2
    assert all(h.equal(shallow) for h in others)


def test_a_faded_facet_has_no_part_and_an_open_one_depends_on_those_above():
    torch.manual_seed(0)
    body = LadderBody([3, 2], n_hidden=6, n_batch=2).eval()
    z, batch = torch.randn(4, 5), Covariates(torch.tensor([[0], [1], [0], [1]]))
    top = body.top(z[:, :3], batch)
    torch.testing.assert_close(body(z, batch), top)
    body.fade[1] = 0.5
    expected = top + 0.5 * body.rungs[0](torch.cat([top, z[:, 3:]], dim=1), batch)
    torch.testing.assert_close(body(z, batch), expected)
    assert not body(z, batch).equal(body(z, Covariates(1 - batch.batch)))
