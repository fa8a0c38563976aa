from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from scipy import stats
from scipy.special import logsumexp, softmax
from scvi.module.base import BaseModuleClass

import scdeepclust as sdc
from scdeepclust.model import GMVAE
from scdeepclust.model.gmvae import GMVAEModule
from scdeepclust.model.gmvae._style import StyleOffsets
from scdeepclust.nn import counts_from_dense

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}
N_GENES, N_CELLS, N_LATENT, K = 12, 9, 3, 4


@pytest.fixture(autouse=True)
def _seed():
    scvi.settings.seed = 0
    yield
    scvi.settings.seed = None


@pytest.fixture(scope="module")
def trained():
    """A model that found the four simulated clusters."""
    scvi.settings.seed = 0
    adata = sdc.datasets.simulate_counts(
        400, 200, n_clusters=4, n_batches=2, marker_log_fold_change=2.5, depth=120, seed=1
    )
    GMVAE.setup_anndata(adata, batch_key="batch", labels_key="cell_type")
    model = GMVAE(adata, n_clusters=4)
    model.train(pretrain_epochs=40, max_epochs=20, **QUIET)
    return model


def small_module(**kwargs) -> GMVAEModule:
    """Untrained, with components that differ and depend on w."""
    torch.manual_seed(0)
    module = GMVAEModule(N_GENES, n_clusters=K, n_batch=2, n_latent=N_LATENT, n_hidden=8, input_noise=0.0, **kwargs)
    module.set_data_statistics(np.zeros(N_GENES), np.ones(N_GENES), 20.0, np.array([0.5, 0.5]))
    with torch.no_grad():
        module.mixture.means.normal_()
        module.mixture.log_var.normal_(0, 0.3)
        module.mixture.logits.copy_(torch.tensor([0.0, 0.5, -1.0, 0.2]))
        if module.style is not None:
            module.style.offsets.normal_(0, 0.2)
    return module.eval()


def minibatch(n_cells: int = N_CELLS) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(1)
    x = rng.poisson(2.0, (n_cells, N_GENES)).astype(np.float32)
    batch = rng.integers(2, size=(n_cells, 1))
    return {"X": torch.as_tensor(x), "batch": torch.as_tensor(batch), "labels": torch.zeros(n_cells, 1)}


def test_samples_decoded_one_by_one_give_the_same_loss_and_gradients(monkeypatch):
    results = []
    for limit in (10**9, 1):
        monkeypatch.setattr("scdeepclust.model.gmvae._module.MAX_DECODED", limit)
        module = small_module(n_samples=3, dropout_rate=0.0).train()
        torch.manual_seed(1)
        _, generative, result = module(minibatch())
        assert (generative["heads"] is None) == (limit == 1)
        result.loss.backward()
        results.append((result.loss, {name: p.grad for name, p in module.named_parameters() if p.grad is not None}))
    (loss, gradients), (loss_by_sample, gradients_by_sample) = results
    torch.testing.assert_close(loss_by_sample, loss)
    assert gradients.keys() == gradients_by_sample.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_by_sample[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def numpy_components(module, w) -> tuple[np.ndarray, np.ndarray]:
    """Means and variances, cells x components x dimensions, one cell and component after the other."""
    means = np.zeros((len(w), K, N_LATENT))
    variances = np.zeros_like(means)
    for i in range(len(w)):
        for k in range(K):
            mean = module.mixture.means[k].detach().numpy().copy()
            log_var = module.mixture.log_var[k if len(module.mixture.log_var) > 1 else 0].detach().numpy().copy()
            if module.style is not None:
                hidden = module.style.hidden(torch.as_tensor(w[i])).detach().numpy()
                offset = module.style.offsets[k].detach().numpy() @ hidden
                mean += offset[:N_LATENT]
                log_var += offset[N_LATENT:]
            means[i, k], variances[i, k] = mean, np.exp(log_var)
    return means, variances


@pytest.mark.parametrize("n_w", [0, 2])
@pytest.mark.parametrize("prior_estimator", ["exact", "analytic_kl"])
@pytest.mark.parametrize("shared_variance", [True, False])
def test_the_bound_is_that_of_the_formulas(n_w, prior_estimator, shared_variance):
    module = small_module(n_w=n_w, prior_estimator=prior_estimator, shared_variance=shared_variance)
    tensors = minibatch()
    with torch.no_grad():
        q, generative, result = module(tensors)
    x = tensors["X"].numpy().astype(int)
    draws = {name: value.numpy().astype(float) for name, value in q.items() if name[0] in "zw"}
    z, z_mean, z_var = draws["z"], draws["z_mean"], np.exp(draws["z_log_var"])

    share = softmax(generative["heads"].scores.numpy(), axis=1)
    theta = np.exp(generative["heads"].log_theta.numpy())
    mu = share * x.sum(1, keepdims=True)
    reconstruction = -stats.nbinom.logpmf(x, theta, theta / (theta + mu)).sum(1)

    w = draws["w"] if n_w else np.zeros((N_CELLS, 0))
    means, variances = numpy_components(module, w.astype(np.float32))
    log_pi = np.log(softmax([0.0, 0.5, -1.0, 0.2]))
    log_p = stats.norm.logpdf(z[:, None], means, np.sqrt(variances)).sum(2)
    if prior_estimator == "exact":
        entropy = stats.norm.entropy(z_mean, np.sqrt(z_var)).sum(1)
        prior = -entropy - logsumexp(log_pi + log_p, axis=1)
    else:
        r = softmax(log_pi + log_p, axis=1)
        ratio = z_var[:, None] / variances
        kl = 0.5 * (ratio + (z_mean[:, None] - means) ** 2 / variances - 1 - np.log(ratio)).sum(2)
        prior = (r * (kl + np.log(r) - log_pi)).sum(1)
    if n_w:
        w_var = np.exp(draws["w_log_var"])
        prior += 0.5 * (w_var + draws["w_mean"] ** 2 - 1 - np.log(w_var)).sum(1)

    np.testing.assert_allclose(result.reconstruction_loss["reconstruction_loss"], reconstruction, rtol=1e-4)
    np.testing.assert_allclose(sum(result.kl_local.values()), prior, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(result.loss, (reconstruction + prior).mean(), rtol=1e-4)


def test_before_the_clusters_the_prior_is_standard_normal():
    module = small_module()
    q, generative, _ = module(minibatch(), compute_loss=True)
    result = module.loss(minibatch(), q, generative, phase="vae", kl_weight=0.3)
    posterior = torch.distributions.Normal(q["z_mean"], (q["z_log_var"] / 2).exp())
    kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(result.kl_local["kl_latent"], kl)
    torch.testing.assert_close(result.loss, (result.reconstruction_loss["reconstruction_loss"] + 0.3 * kl).mean())


@pytest.mark.parametrize(("given", "before"), [(9, [("pretrain", 3), ("vae", 6)]), (1, [("vae", 1)]), (0, [])])
def test_a_third_of_what_comes_before_the_clusters_has_no_prior(adata, given, before):
    GMVAE.setup_anndata(adata)
    model = GMVAE(adata, n_clusters=4, n_hidden=16)
    model.train(pretrain_epochs=given, max_epochs=1, **QUIET)
    assert model.phases_ == [*before, ("mixture", 1)]
    if given == 9:
        assert (model.history["pretrain_kl_weight"] == 0).all(axis=None)
        assert model.history["vae_kl_weight"].iloc[-1, 0] == 1
        before_prior, with_prior = (
            model.history[f"{phase}_kl_local_train"].iloc[-1, 0] for phase in ("pretrain", "vae")
        )
        assert before_prior > with_prior


@pytest.mark.slow
def test_weak_types_are_not_lost_to_the_prior():
    adata = sdc.datasets.simulate_counts(2000, 2000, n_clusters=5, depth=1500, marker_log_fold_change=1.0, seed=0)
    GMVAE.setup_anndata(adata)
    model = GMVAE(adata, n_clusters=5, seed=0)
    model.train(**QUIET)
    scores = sdc.tl.score_clusters(adata.obs.assign(found=model.predict()), "found", label_key="cell_type")
    assert scores.loc["found", "ARI"] > 0.2  # with the prior from the first step on it was below 0


def prior_terms(module, q) -> torch.Tensor:
    with torch.no_grad():
        return sum(module.prior_terms(q)[0].values())


def test_the_published_estimator_is_larger_on_average_and_equal_for_one_component():
    """The gap is sum_k Cov(r_k, log p_k) over q, which is positive: softmax is the gradient of a convex function."""
    module = small_module()
    inputs = module._get_inference_input(minibatch())
    with torch.no_grad():
        q = module.inference(**inputs, n_samples=100_000)
    exact = prior_terms(module, q)
    module.prior_estimator = "analytic_kl"
    published = prior_terms(module, q)
    assert (published > exact).all()
    module.reorder_clusters(torch.tensor([2]))  # one component left
    published = prior_terms(module, q)
    module.prior_estimator = "exact"
    torch.testing.assert_close(prior_terms(module, q), published, rtol=0.02, atol=0.03)


@pytest.mark.parametrize("n_w", [0, 2])
def test_permuting_the_cells_of_a_minibatch_permutes_the_outputs(n_w):
    module = small_module(n_w=n_w)
    tensors = minibatch()
    order = torch.randperm(N_CELLS)
    permuted = {name: value[order] for name, value in tensors.items()}
    with torch.no_grad():
        outputs = []
        for t in (tensors, permuted):
            q = module.inference(**module._get_inference_input(t))
            q |= {name: q[f"{name}_mean"] for name in ("z", "w") if name in q}  # without chance
            terms = module.prior_terms(q)[0]
            outputs.append([module.log_assignments(q, module.covariates(t)), q["z_mean"], *terms.values()])
    for before, after in zip(*outputs, strict=True):
        torch.testing.assert_close(before[order], after)
    assert not torch.allclose(outputs[0][0][order], outputs[0][0])  # cells differ, so the test can fail


def test_the_reshape_of_the_published_code_mixes_cells_up(monkeypatch):
    """What the test above is for: heads (B, K * 2D) read as (K, B, 2D) give a cell the components of other cells."""

    def published(style, w):
        n_components, n_out, n_hidden = style.offsets.shape
        flat = style.hidden(w) @ style.offsets.view(-1, n_hidden).T
        means, log_var = flat.reshape(n_components, len(w), n_out).chunk(2, dim=-1)
        return means.transpose(0, 1), log_var.transpose(0, 1)

    monkeypatch.setattr(StyleOffsets, "forward", published)
    with pytest.raises(AssertionError, match="not close"):
        test_permuting_the_cells_of_a_minibatch_permutes_the_outputs(n_w=2)


@pytest.mark.parametrize("anchor", [0.0, 0.8])
def test_a_start_label_is_a_measurement_of_the_component(anchor):
    module = small_module(anchor=anchor).train()
    tensors = minibatch(3) | {"cell_index": torch.tensor([2, 0, 1])}
    q, generative, free = module(tensors)
    module.start_labels = torch.tensor([3, -1, 1])
    anchored = module.loss(tensors, q, generative)
    z, means = q["z"].detach().numpy(), module.mixture.means.detach().numpy()
    sd = module.mixture.log_var.detach().exp().sqrt().numpy()
    log_joint = np.log(softmax([0.0, 0.5, -1.0, 0.2])) + stats.norm.logpdf(z[:, None], means, sd).sum(2)
    posterior = softmax(log_joint, axis=1)
    expected = np.zeros(3)  # the third cell, number 1, was held out and has no label
    for i, s in ((0, 1), (1, 3)):
        p_of_label = [anchor * (k == s) + (1 - anchor) / K for k in range(K)]
        expected[i] = -np.log(posterior[i] @ p_of_label) if anchor else 0.0
    change = sum(anchored.kl_local.values()) - sum(free.kl_local.values())
    np.testing.assert_allclose(change.detach(), expected, rtol=1e-3, atol=1e-4)


def test_the_anchor_is_lifted_after_training_and_checked(adata):
    GMVAE.setup_anndata(adata)
    with pytest.raises(ValueError, match="`anchor` must be at least 0 and less than 1, found 1"):
        GMVAE(adata, n_clusters=4, anchor=1.0)
    model = GMVAE(adata, n_clusters=4, init=adata.obs["cell_type"])
    model.train(pretrain_epochs=1, max_epochs=1, train_size=0.8, **QUIET)
    assert model.module.start_labels is None


def test_components_depend_on_the_w_of_their_own_cell():
    module = small_module(n_w=2)
    w = torch.randn(5, N_CELLS, 2)
    means, log_var = module.components(w)
    assert means.shape == log_var.shape == (5, N_CELLS, K, N_LATENT)
    alone, _ = module.components(w[3, 4])
    torch.testing.assert_close(means[3, 4], alone)
    assert not torch.allclose(means[3, 4], means[4, 3])


def test_several_samples_average_single_ones():
    module = small_module(n_w=2, n_samples=10)
    tensors = minibatch()
    q = module.inference(**module._get_inference_input(tensors), n_samples=10)
    assert q["z"].shape == (10, N_CELLS, N_LATENT)
    generative = module.generative(**module._get_generative_input(tensors, q))
    together = module.loss(tensors, q, generative).loss
    single = []
    for m in range(10):
        one = q | {"z": q["z"][m], "w": q["w"][m]}
        generative = module.generative(**module._get_generative_input(tensors, one))
        single.append(module.loss(tensors, one, generative).loss)
    torch.testing.assert_close(together, torch.stack(single).mean())
    module.train()
    assert module.inference(**module._get_inference_input(tensors))["z"].shape[0] == 10


def test_free_bits_floor_the_component_term_alone_and_stop_its_gradient():
    module = small_module()
    q = module.inference(**module._get_inference_input(minibatch()))
    free, _ = module.prior_terms(q)
    floor = free["kl_component"].median().item()
    module.free_bits = floor
    floored, _ = module.prior_terms(q)
    torch.testing.assert_close(floored["kl_latent"], free["kl_latent"])
    torch.testing.assert_close(floored["kl_component"], free["kl_component"].clamp(min=floor))
    module.free_bits = 100.0
    module.prior_terms(q)[0]["kl_component"].sum().backward()
    assert module.mixture.means.grad is None or not module.mixture.means.grad.any()


@pytest.mark.parametrize("n_w", [0, 1])
def test_the_marginal_likelihood_is_that_of_numerical_integration(n_w):
    torch.manual_seed(0)
    module = GMVAEModule(5, n_clusters=2, n_latent=1, n_hidden=4, n_w=n_w).eval()
    module.set_data_statistics(np.zeros(5), np.ones(5), 10.0, np.array([1.0]))
    with torch.no_grad():
        module.mixture.means.copy_(torch.tensor([[-1.0], [1.5]]))
        if n_w:
            module.style.offsets.normal_(0, 0.1)
    x = torch.tensor([[3.0, 0.0, 1.0, 5.0, 2.0]])
    tensors = {"X": x, "batch": torch.zeros(1, 1), "labels": torch.zeros(1, 1)}
    grid = torch.linspace(-9, 9, 401)
    w_grid = torch.linspace(-5, 5, 41) if n_w else torch.zeros(1)
    counts = counts_from_dense(x)
    with torch.no_grad():
        heads = module.decoder(grid[:, None, None], module.covariates(tensors))
        log_likelihood = module.log_likelihood(counts, heads, counts.totals().log())[:, 0]  # (Z,)
        total = 0.0
        for w in w_grid:
            means, log_var = module.components(w.view(1) if n_w else None)
            density = torch.distributions.Normal(means[:, 0], (log_var[:, 0] / 2).exp().expand(2))
            p_z = density.log_prob(grid[:, None]).exp().mean(1)  # equal weights
            weight = float(torch.distributions.Normal(0.0, 1.0).log_prob(w).exp()) * 0.25 if n_w else 1.0
            total += weight * float((log_likelihood.exp() * p_z).sum()) * float(grid[1] - grid[0])
    estimate = module.marginal_ll(tensors, n_mc_samples=5000, return_mean=True)
    np.testing.assert_allclose(estimate, np.log(total), atol=0.05)


def test_the_bound_is_below_the_marginal_likelihood(trained):
    elbo = trained.get_elbo_terms(indices=np.arange(100))["elbo"].mean()
    marginal = trained.get_marginal_ll(indices=np.arange(100), n_mc_samples=50)
    assert elbo < marginal < elbo + 10


def test_the_pieces_of_the_bound_add_up(trained):
    table = trained.get_elbo_terms()
    assert list(table.index) == list(trained.adata.obs_names)
    assert {"reconstruction", "kl_latent", "kl_component", "elbo"} == set(table)
    np.testing.assert_allclose(
        table["elbo"], table["reconstruction"] - table["kl_latent"] - table["kl_component"], rtol=1e-5
    )
    # two draws of the same quantity
    np.testing.assert_allclose(table["elbo"].mean(), float(trained.get_elbo()), rtol=0.02)
    error = trained.get_reconstruction_error()["reconstruction_loss"]
    np.testing.assert_allclose(abs(float(error)), -table["reconstruction"].mean(), rtol=0.02)


# ---- clusters --------------------------------------------------------------------------------------------------------


def test_a_type_private_to_one_batch_stays_its_own_cluster():
    adata = sdc.datasets.simulate_counts(
        900, 300, n_clusters=5, n_batches=2, marker_log_fold_change=2.0, depth=500, seed=3
    )
    private = (adata.obs["cell_type"] == "type_4") & (adata.obs["batch"] == "batch_1")
    adata = adata[~private.to_numpy()].copy()
    GMVAE.setup_anndata(adata, batch_key="batch")
    model = GMVAE(adata, n_clusters=5)
    model.train(pretrain_epochs=80, max_epochs=20, **QUIET)
    obs = adata.obs.assign(found=model.predict())
    scores = sdc.tl.score_clusters(obs, "found", label_key="cell_type")
    assert scores.loc["found", "f1[type_4]"] >= 0.8
    assert scores.loc["found", "ARI"] >= 0.8


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, n_bins: int = 10) -> float:
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    table = pd.DataFrame({"bin": bins, "gap": correct - confidence})
    return float((table.groupby("bin")["gap"].sum().abs()).sum() / len(table))


@pytest.mark.slow
def test_probabilities_are_calibrated_on_simulated_data():
    from scipy.optimize import linear_sum_assignment

    adata = sdc.datasets.simulate_counts(
        2000, 300, n_clusters=5, n_batches=2, marker_log_fold_change=1.5, depth=300, seed=5
    )
    GMVAE.setup_anndata(adata, batch_key="batch")
    model = GMVAE(adata, n_clusters=5)
    model.train(**QUIET)
    soft = model.predict(soft=True).to_numpy()
    table = pd.crosstab(adata.obs["cell_type"].to_numpy(), model.predict())
    matched = table.index[linear_sum_assignment(-table.to_numpy().T)[1]].to_numpy()  # type of each cluster
    correct = matched[soft.argmax(1)] == adata.obs["cell_type"].to_numpy()
    assert 0.6 < correct.mean() < 0.99  # neither trivial nor hopeless
    assert expected_calibration_error(soft.max(1), correct.astype(float)) <= 0.05


def test_merged_components_are_reported(trained):
    flat = np.full((100, 4), 0.25, dtype=np.float32)
    with pytest.warns(UserWarning, match="components have merged: a cell is shared by 4.0 of 4"):
        trained._warn_if_degenerate(flat)


def test_one_component_that_takes_all_cells_is_reported(trained):
    one = np.tile(np.array([0.999, 0.001, 0, 0], dtype=np.float32), (100, 1))
    with pytest.warns(UserWarning, match="One component holds nearly all cells"):
        trained._warn_if_degenerate(one)


def test_a_good_fit_is_not_reported(trained, recwarn):
    trained._warn_if_degenerate(trained.predict(soft=True).to_numpy())
    assert not recwarn.list


def test_history_tells_the_entropies_of_the_posterior(trained):
    cell, total = (float(trained.history[f"{name}_entropy_train"].iloc[-1, 0]) for name in ("cell", "total"))
    soft = trained.predict(soft=True).to_numpy()
    assert cell < 0.5 < total <= np.log(4)
    np.testing.assert_allclose(total, stats.entropy(soft.mean(0)), atol=0.1)


def test_probabilities_are_the_posterior_of_the_components_averaged_over_z(trained):
    """Against a brute-force average over many draws of z."""
    mean, variance = trained.get_latent_representation(return_dist=True)
    parameters = trained.get_component_parameters()
    rng = np.random.default_rng(0)
    total = 0.0
    for _ in range(300):
        z = mean + np.sqrt(variance) * rng.standard_normal(mean.shape)
        log_p = stats.norm.logpdf(z[:, None], parameters["means"], np.sqrt(parameters["variances"])).sum(2)
        total += softmax(np.log(parameters["weights"]) + log_p, axis=1)
    soft = trained.predict(soft=True).to_numpy()
    np.testing.assert_allclose(soft, total / 300, atol=0.2)
    assert np.abs(soft - total / 300).mean() < 0.02


# ---- getters ---------------------------------------------------------------------------------------------------------


def test_sampled_cells_look_like_their_cluster(trained):
    counts = trained.sample(200, cluster="1", batch="batch_0", library_size=5000.0)
    assert set(counts.index) == {"1"}
    assert list(counts.columns) == list(trained.adata.var_names)
    assert (counts.to_numpy() == counts.to_numpy().round()).all()
    np.testing.assert_allclose(counts.sum(axis=1).mean(), 5000, rtol=0.1)
    profile = counts.mean() / counts.mean().sum()
    labels = trained.predict()
    expression = trained.get_normalized_expression(transform_batch="batch_0")
    correlations = [np.corrcoef(profile, expression[labels == k].mean())[0, 1] for k in "0123"]
    assert int(np.argmax(correlations)) == 1
    drawn = trained.sample(2000).index.value_counts(normalize=True).reindex(list("0123"))
    np.testing.assert_allclose(drawn, trained.get_component_parameters()["weights"], atol=0.06)
    with pytest.raises(ValueError, match="`cluster` must be one of '0'.*found '9'"):
        trained.sample(cluster="9")


def test_component_parameters_are_in_the_order_of_the_labels(trained):
    parameters = trained.get_component_parameters()
    z, labels = trained.get_latent_representation(), trained.predict().astype(int)
    means = np.stack([z[labels == k].mean(0) for k in range(4)])
    distance = ((means[:, None] - parameters["means"]) ** 2).sum(2)
    np.testing.assert_array_equal(distance.argmin(1), np.arange(4))
    np.testing.assert_allclose(parameters["weights"].sum(), 1, rtol=1e-5)
    assert parameters["variances"].shape == (4, trained.module.n_latent)


def test_latent_draws_scatter_by_the_posterior_variance(trained):
    mean, variance = trained.get_latent_representation(return_dist=True)
    draws = np.stack([trained.get_latent_representation(give_mean=False) for _ in range(60)])
    np.testing.assert_allclose(draws.mean(0), mean, atol=1.0)
    np.testing.assert_allclose((draws.var(0) / variance).mean(), 1, atol=0.1)
    with pytest.raises(ValueError, match="`latent` must be one of 'z'"):
        trained.get_latent_representation(latent="w")


def test_posterior_predictive_checks_of_scvi_work(trained):
    from scvi.criticism import PosteriorPredictiveCheck

    observed = trained.adata.copy()
    observed.X = observed.X.toarray()  # scvi-tools 1.4.2 cannot compare sparse counts of type float
    check = PosteriorPredictiveCheck(observed, {"gmvae": trained}, n_samples=3)
    check.zero_fraction()
    fractions = check.metrics["zero_fraction"]
    assert abs(fractions["gmvae"] - fractions["Raw"]).mean() < 0.05


@pytest.mark.parametrize(
    "options",
    [
        {"gene_likelihood": "zinb", "dispersion": "gene-cell", "n_samples": 3},
        {"gene_likelihood": "poisson", "shared_variance": False},
        {"gene_likelihood": "normal", "n_w": 2, "n_samples": 2},
        {"dispersion": "gene-batch", "n_w": 2, "learn_weights": False, "n_samples": 2, "free_bits": 0.5},
        {"prior_estimator": "analytic_kl", "n_w": 3, "encode_covariates": True},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_options_train_save_and_map_queries(adata, options, tmp_path):
    GMVAE.setup_anndata(adata, batch_key="batch")
    model = GMVAE(adata, n_clusters=4, **options)
    model.train(pretrain_epochs=4, max_epochs=2, **QUIET)
    soft = model.predict(soft=True)
    np.testing.assert_allclose(soft.sum(axis=1), 1, atol=1e-5)
    if options.get("n_w"):
        assert model.get_latent_representation(latent="w").shape == (adata.n_obs, options["n_w"])
    if not options.get("learn_weights", True):
        np.testing.assert_allclose(model.get_component_parameters()["weights"], 0.25)
    model.sample(5), model.get_elbo_terms(), model.get_marginal_ll(n_mc_samples=2)
    model.save(str(tmp_path / "m"))
    pd.testing.assert_frame_equal(GMVAE.load(str(tmp_path / "m"), adata).predict(soft=True), soft)
    query = adata[:60].copy()
    query.obs["batch"] = "new"
    mapped = GMVAE.load_query_data(query, model)
    mapped.train(max_epochs=1, **QUIET)
    assert mapped.n_clusters == 4


def test_sampling_of_the_module_is_that_of_scvi(trained):
    assert isinstance(trained.module, BaseModuleClass)
    draws = trained.posterior_predictive_sample(n_samples=2, indices=[0, 1, 2])
    assert draws.shape == (3, trained.adata.n_vars, 2)


def test_noise_on_the_input_ends_where_the_clusters_begin():
    module = small_module(dropout_rate=0.0).train()
    module.input_noise = 2.0
    inputs = module._get_inference_input(minibatch())
    first, second = (module.inference(**inputs)["z_mean"] for _ in range(2))
    assert (first - second).abs().max() > 1e-3
    module.mixture.set_initialised(True)
    first, second = (module.inference(**inputs)["z_mean"] for _ in range(2))
    torch.testing.assert_close(first, second)
