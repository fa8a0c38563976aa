"""Full precision under autocast: in every divergence, distance and gate, whatever the networks are rounded to."""

from __future__ import annotations

import pytest
import torch

from scdeepclust.model.gmvae._divergence import mixture_divergence
from scdeepclust.model.gmvae._module import GMVAEModule
from scdeepclust.model.idc._coding_rate import coding_rate, compressed_rate
from scdeepclust.model.idc._gates import GateBudget, draw_gates, expected_open
from scdeepclust.model.mfcvae._independence import dependence
from scdeepclust.model.mfcvae._module import MFCVAEModule
from scdeepclust.model.scdeepcluster._dec import (
    assignment_kl,
    column_sums,
    student_t_log_assignment,
    target_distribution,
)
from scdeepclust.model.somvae._som import arrival_loss, node_distances, som_loss
from scdeepclust.nn import (
    Covariates,
    GaussianMixture,
    check_precision,
    counts_from_dense,
    diag_gaussian_log_prob,
    standard_normal_kl,
)

N, K, D = 40, 6, 8


def normal(*shape, scale=1.0, seed=0):
    """Numbers that half precision holds, as a layer under autocast hands them over."""
    draws = torch.randn(*shape, generator=torch.Generator().manual_seed(seed + len(shape)))
    return (scale * draws).bfloat16().float()


def mixture():
    made = GaussianMixture(K, D, shared_variance=False)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(normal(*parameter.shape, scale=2.0))
    return made


def mfcvae(name):
    torch.manual_seed(0)
    module = MFCVAEModule(12, n_clusters=K, n_facet_clusters=(2,), n_latent=D, n_facet_latent=2, n_hidden=8)
    module.mixtures[0] = mixture()
    module.mixtures[0].set_initialised(True)
    return lambda mean, log_var: getattr(module, name)({"z_mean": mean, "z_log_var": log_var, "z": mean}, 0)


def gmvae_terms(z, mean, log_var):
    torch.manual_seed(0)
    module = GMVAEModule(12, n_clusters=K, n_latent=D, n_hidden=8)
    module.mixture = mixture()
    return torch.stack(list(module.prior_terms({"z": z, "z_mean": mean, "z_log_var": log_var})[0].values()))


def gate_budget(means):
    budget = GateBudget(0.5)
    for _ in range(3):
        shifted = budget(means, wanted=3.0)
    return shifted - budget.offset


Z, LOG_VAR, CENTERS = normal(N, D, scale=3.0), normal(N, 2 * D)[:, :D], normal(K, D, scale=3.0, seed=5)
Q = torch.softmax(normal(N, K), dim=1).bfloat16().float()
CASES = {
    "standard_normal_kl": (standard_normal_kl, Z, LOG_VAR),
    "diag_gaussian_log_prob": (diag_gaussian_log_prob, Z, CENTERS, LOG_VAR[:K]),
    "mixture_divergence": (
        lambda z, mean, v: (
            mixture_divergence(
                z, mean, v, means=CENTERS, log_var=LOG_VAR[:K], log_weights=torch.zeros(K), estimator="analytic_kl"
            ).kl_latent
        ),
        *(Z, Z + 0.5, LOG_VAR),
    ),
    "log_joint": (mixture().log_joint, Z),
    "mean_log_joint": (mixture().mean_log_joint, Z, LOG_VAR.exp()),
    "log_prob": (mixture().log_prob, Z),
    "responsibilities": (mixture().responsibilities, Z),
    "GMVAE.prior_terms": (gmvae_terms, Z, Z + 0.5, LOG_VAR),
    "MFCVAE.divergence": (mfcvae("divergence"), normal(N, D + 2, scale=2.0), normal(N, D + 2)),
    "MFCVAE.log_responsibilities": (mfcvae("log_responsibilities"), normal(N, D + 2, scale=2.0), normal(N, D + 2)),
    "node_distances": (node_distances, Z, CENTERS),
    "som_loss": (lambda d, w: som_loss(d, torch.arange(N) % K, w), normal(N, K).square(), normal(K, K).square()),
    "arrival_loss": (arrival_loss, Q, normal(N, K).square()),
    "student_t_log_assignment": (student_t_log_assignment, Z, CENTERS),
    "column_sums": (column_sums, Z, CENTERS),
    "target_distribution": (target_distribution, Q, Q.sum(0)),
    "assignment_kl": (assignment_kl, Q.log(), Q.flip(1)),
    "coding_rate": (coding_rate, Z),
    "compressed_rate": (compressed_rate, Z, Q),
    "dependence": (dependence, Z, CENTERS.repeat(7, 1)[:N]),
    "expected_open": (lambda m: expected_open(m, 0.5), Z),
    "draw_gates": (lambda m: draw_gates(m, 0.5) if torch.manual_seed(0) else None, Z),
    "GateBudget": (gate_budget, Z),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_half_precision_around_it_changes_nothing(name, dtype):
    function, *arguments = CASES[name]
    arguments = [argument.to(dtype) for argument in arguments]
    expected = function(*(argument.float() for argument in arguments))
    with torch.autocast("cpu", dtype=dtype):
        found = function(*arguments)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("module_cls", [GMVAEModule, MFCVAEModule])
def test_codes_are_drawn_with_the_spread_that_their_divergence_is_of(module_cls):
    module = module_cls(12, n_clusters=K, n_latent=D, n_hidden=8).eval()
    x = counts_from_dense(torch.poisson(torch.ones(N, 12), generator=torch.Generator().manual_seed(0)))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        torch.manual_seed(0)
        q = module.inference(x, Covariates(torch.zeros(N, 1, dtype=torch.long)))
    torch.manual_seed(0)
    noise = torch.randn(q["z_mean"].shape)
    assert q["z_log_var"].dtype == torch.bfloat16  # or this would be no test
    expected = q["z_mean"].float() + (q["z_log_var"].float() / 2).exp() * noise
    torch.testing.assert_close(q["z"], expected, rtol=0, atol=0)


@pytest.mark.parametrize("precision", [None, 32, "32", "32-true", 16, "16", "16-mixed", "bf16", "bf16-mixed"])
def test_precisions_that_work_pass(precision):
    check_precision(precision)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true", 64, "64", "transformer-engine", "half"])
def test_precisions_that_do_not_are_refused_with_those_that_do(precision):
    with pytest.raises(ValueError, match=rf"`precision` must be '32-true'.*'bf16-mixed'.*found {precision!r}"):
        check_precision(precision)
