"""What is particular to scDeepCluster."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scvi
import torch
from scipy.stats import nbinom
from sklearn.metrics import adjusted_rand_score

import scdeepclust as sdc
from scdeepclust._keys import CELL_INDEX
from scdeepclust.model import SCDeepCluster
from scdeepclust.model.scdeepcluster import SCDeepClusterModule
from scdeepclust.model.scdeepcluster._dec import target_distribution

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


@pytest.fixture(autouse=True)
def _seed():
    scvi.settings.seed = 0
    yield
    scvi.settings.seed = None


def fitted(adata, pretrain_epochs=3, max_epochs=2, n_clusters=4, batch_key="batch", **kwargs):
    SCDeepCluster.setup_anndata(adata, batch_key=batch_key)
    model = SCDeepCluster(adata, n_clusters=n_clusters, **kwargs)
    model.train(pretrain_epochs=pretrain_epochs, max_epochs=max_epochs, **QUIET)
    return model


def minibatch(model, n=32):
    return next(iter(model._minibatches(indices=np.arange(n), batch_size=n)))


def test_the_loss_is_nll_per_cell_plus_weight_times_genes_times_kl(adata):
    """Restated in numpy; in particular the scale of the clustering weight, on which the method stands or falls."""
    model = fitted(adata, cluster_weight=0.3, balance=0.5)
    model._refresh_targets()
    batch, module = minibatch(model), model.module
    with torch.no_grad():
        outputs, generative, loss = module(batch, loss_kwargs={"phase": "cluster"})
    x = batch["X"].to_dense().numpy().astype(float)
    heads = generative["heads"]
    share = torch.softmax(heads.scores.double(), -1).numpy()
    mu = x.sum(1, keepdims=True) * share
    theta = heads.log_theta.exp().double().numpy()
    nll = -nbinom.logpmf(x, theta, theta / (theta + mu)).sum(axis=1)
    z, centers = outputs["z_mean"].double().numpy(), module.centers.detach().double().numpy()
    q = 1 / (1 + ((z[:, None] - centers[None]) ** 2).sum(-1) / float(module.bandwidth))
    q /= q.sum(axis=1, keepdims=True)
    p = q**2 / model._probabilities().sum(0) ** 0.5  # masses of all cells
    p /= p.sum(axis=1, keepdims=True)
    kl = (p * np.log(p / q)).sum(axis=1)
    expected = nll.mean() + 0.3 * x.shape[1] * kl.mean()
    np.testing.assert_allclose(loss.loss.item(), expected, rtol=1e-4)
    np.testing.assert_allclose(loss.extra_metrics["cluster_kl"].item(), kl.mean(), rtol=1e-3)


def test_weight_one_is_a_reconstruction_per_entry(adata):
    """Ratio of the two gradients: the same as of mean-per-entry NLL + 1 * KL, the published loss."""
    model = fitted(adata, cluster_weight=1.0)
    batch, module = minibatch(model), model.module
    outputs, _, total = module(batch, loss_kwargs={"phase": "cluster"})
    n_genes = adata.n_vars
    log_q = module.log_assignments(outputs, module.covariates(batch))
    p = target_distribution(log_q.detach().exp(), module.cluster_masses, module.balance)
    kl = (p * (p.log() - log_q)).sum(1).mean()
    per_entry = total.reconstruction_loss["reconstruction_loss"].mean() / n_genes
    parameters = [module.z_head.weight, module.encoder.layers.fc_layers[0][0].weight]
    published = torch.autograd.grad(per_entry + kl, parameters, retain_graph=True)
    ours = torch.autograd.grad(total.loss, parameters)
    for a, b in zip(published, ours, strict=True):
        torch.testing.assert_close(a * n_genes, b, rtol=2e-3, atol=1e-3)


def test_clustering_moves_encoder_and_centres_but_not_the_decoder(adata):
    model = fitted(adata)
    module = model.module
    _, _, with_clusters = module(minibatch(model), loss_kwargs={"phase": "cluster"})
    _, _, without = module(minibatch(model), loss_kwargs={"phase": "pretrain"})
    parameters = [module.centers, module.z_head.weight, module.decoder.scores.weight]
    kl = with_clusters.loss - without.loss
    centers, encoder, decoder = torch.autograd.grad(kl, parameters)
    assert centers.abs().max() > 0
    assert encoder.abs().max() > 0
    assert decoder.abs().max() < 1e-4


def test_stored_targets_belong_to_their_cells(adata):
    """A shuffled minibatch gets the rows of its own cells."""
    model = fitted(adata)
    model._refresh_targets()
    rows = np.array([7, 3, 200, 41])
    batch = next(iter(model._minibatches(indices=rows)))
    np.testing.assert_array_equal(batch[CELL_INDEX].numpy(), rows)
    model.module.train()  # held-out cells have no stored target
    targets = model.module._targets(batch[CELL_INDEX], torch.zeros(4, 4))
    q = torch.as_tensor(model._probabilities())
    expected = target_distribution(q, q.sum(0), model.module.balance)[rows]
    torch.testing.assert_close(targets, expected)


def test_targets_are_anchored_to_the_start_of_their_cells(adata):
    model = fitted(adata)
    module = model.module
    model._refresh_targets()
    module.train()
    free = module._targets(torch.tensor([2, 0, 1]), torch.zeros(3, 4))
    module.start_labels = torch.tensor([3, -1, 1])
    anchored = module._targets(torch.tensor([2, 0, 1]), torch.zeros(3, 4))
    torch.testing.assert_close(anchored[0], 0.8 * free[0] + 0.2 * torch.tensor([0.0, 1, 0, 0]))
    torch.testing.assert_close(anchored[1], 0.8 * free[1] + 0.2 * torch.tensor([0.0, 0, 0, 1]))
    torch.testing.assert_close(anchored[2], free[2])  # no start label: a cell held out


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_streaming_targets_equal_stored_ones_right_after_a_refresh(adata, balance):
    stored = fitted(adata, balance=balance)
    stored._refresh_targets()
    batch = minibatch(stored)
    log_q = stored.module.log_assignments(stored._encode(batch), stored.module.covariates(batch))
    stored.module.train()
    kept = stored.module._targets(batch[CELL_INDEX], log_q)
    stored.module.targets = None
    torch.testing.assert_close(stored.module._targets(batch[CELL_INDEX], log_q), kept, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"targets": "streaming"},
        {"gene_likelihood": "zinb"},
        {"gene_likelihood": "zinb", "dispersion": "gene-cell"},
        {"dispersion": "gene-batch"},
        {"gene_likelihood": "poisson"},
        {"gene_likelihood": "normal"},
        {"init": "kmeans"},
        {"init": "gmm"},
        {"init": "leiden"},
        {"balance": 1.0, "anchor": 0.0},
        {"balance": 0.5},
        {"encode_covariates": False},
    ],
    ids=str,
)
def test_every_option_recovers_simulated_clusters(adata, options):
    model = fitted(adata, pretrain_epochs=50, max_epochs=15, **options)
    assert adjusted_rand_score(adata.obs["cell_type"], model.predict()) > 0.85
    assert np.isfinite(model.get_normalized_expression(indices=[0, 1]).to_numpy()).all()


def test_given_labels_are_the_start(adata):
    given = adata.obs["cell_type"].to_numpy()
    model = fitted(adata, init=given, max_epochs=0)
    assert adjusted_rand_score(given, model.initial_labels_) == 1


def test_a_model_started_from_given_labels_takes_other_cells(adata, tmp_path):
    first, second = adata[:250].copy(), adata[250:].copy()
    model = fitted(first, init=list(first.obs["cell_type"]), pretrain_epochs=20, batch_key=None)
    model.save(str(tmp_path / "m"))
    loaded = SCDeepCluster.load(str(tmp_path / "m"), second)
    assert len(loaded.predict()) == second.n_obs
    query = SCDeepCluster.load_query_data(second, model)
    query.train(max_epochs=0, **QUIET)
    np.testing.assert_array_equal(query.predict(), loaded.predict())
    model.write_back()
    assert first.uns["scdeepcluster"]["params"]["init"] == "given labels"


@pytest.mark.parametrize("targets", ["stored", "streaming"])
def test_masses_targets_and_label_changes_are_those_of_the_training_cells(adata, targets):
    SCDeepCluster.setup_anndata(adata)
    model = SCDeepCluster(adata, n_clusters=4, targets=targets)
    model.train(pretrain_epochs=5, max_epochs=2, train_size=0.6, check_val_every_n_epoch=1, **QUIET)
    labels = model._refresh_targets()
    rows = np.sort(model.train_indices)
    q = model.predict(soft=True).to_numpy()[rows]
    np.testing.assert_array_equal(labels, q.argmax(axis=1))
    np.testing.assert_allclose(model.module.cluster_masses, q.sum(axis=0), rtol=1e-5)
    if targets == "streaming":
        assert model.module.targets is None
    else:
        stored = model.module.targets.numpy()
        np.testing.assert_allclose(stored[rows], q**2 / (q**2).sum(axis=1, keepdims=True), rtol=1e-4)
        assert not stored[np.setdiff1d(np.arange(adata.n_obs), rows)].any()
    assert np.isfinite(model.history["validation_loss"].to_numpy()).all()


def test_initial_labels_are_kept_and_ordered_by_size(adata, tmp_path):
    model = fitted(adata)
    sizes = np.unique(model.initial_labels_, return_counts=True)[1]
    assert (np.diff(sizes) <= 0).all()
    model.save(str(tmp_path / "m"))
    loaded = SCDeepCluster.load(str(tmp_path / "m"), adata)
    np.testing.assert_array_equal(loaded.initial_labels_, model.initial_labels_)


def test_centres_are_in_the_order_of_the_labels(adata):
    model = fitted(adata, pretrain_epochs=40, max_epochs=5)
    centers, z = model.get_cluster_centers(), model.get_latent_representation()
    nearest = ((z[:, None] - centers[None]) ** 2).sum(-1).argmin(1)
    np.testing.assert_array_equal(nearest.astype(str), model.predict())


def test_empty_clusters_are_reported(adata):
    model = fitted(adata, pretrain_epochs=40, max_epochs=0)
    with torch.no_grad():
        model.module.centers[3] = 1e4
    with pytest.warns(UserWarning, match="1 of 4 clusters have no cells"):
        model.train(max_epochs=0, **QUIET)
    assert model.n_active_ == 3


def test_a_clustering_phase_that_destroys_the_reconstruction_is_reported(adata):
    model = fitted(adata, pretrain_epochs=20, max_epochs=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model._warn_if_degenerate(model._probabilities())
    model.history["reconstruction_loss_train"].iloc[-1] *= 1.2
    with pytest.warns(UserWarning, match="lost .*% of the reconstruction"):
        model._warn_if_degenerate(model._probabilities())


def test_clustering_stops_when_labels_settle(adata):
    model = fitted(adata, pretrain_epochs=40, max_epochs=100, tol=0.05)
    assert model.phases_[1][1] < 30
    assert model.history["label_change"].iloc[-1, 0] < 0.05


def test_noise_is_for_training_only(adata):
    module = fitted(adata, pretrain_epochs=1, max_epochs=0).module
    x = torch.poisson(torch.full((5, adata.n_vars), 0.7)) + torch.eye(5, adata.n_vars)
    tensors = {"X": x, "batch": torch.zeros(5, 1)}
    encode = lambda: module.inference(**module._get_inference_input(tensors))["z_mean"]  # noqa: E731
    module.eval()
    assert encode().equal(encode())
    module.train()
    assert not encode().equal(encode())


def test_genes_without_variance_and_tiny_data_work():
    x = np.random.default_rng(0).poisson(2, (6, 4)).astype(np.float32)
    x[:, 0] = 3
    x[:, 1] = 0
    import anndata

    adata = anndata.AnnData(x + np.eye(6, 4, k=2, dtype=np.float32))
    model = fitted(adata, n_clusters=2, batch_key=None)
    assert len(model.predict()) == 6


def test_network_input_is_the_standardised_log_of_size_normalised_counts(adata):
    model = fitted(adata, pretrain_epochs=0, max_epochs=0)
    x = np.asarray(adata.X.toarray(), dtype=float)
    y = np.log1p(1e4 * x / x.sum(1, keepdims=True))
    sd = y.std(0)
    expected = np.clip((y - y.mean(0)) / np.where(sd > 0, sd, 1), -10, 10)
    got = np.concatenate([model._encode(batch)["u"].numpy() for batch in model._minibatches()])
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


def test_clusters_start_at_the_means_with_the_median_spread():
    rng = np.random.default_rng(0)
    z, labels = rng.normal(size=(60, 16)).astype(np.float32), np.arange(60) % 3
    module = SCDeepClusterModule(20, n_clusters=0)
    module.start_clusters(torch.as_tensor(z), torch.as_tensor(labels))
    centers = np.stack([z[labels == k].mean(axis=0) for k in range(3)])
    np.testing.assert_allclose(module.centers.detach(), centers, rtol=1e-4, atol=1e-6)
    spread = ((z - centers[labels]) ** 2).sum(axis=1)
    assert np.quantile(spread, 0.45) < float(module.bandwidth) < np.quantile(spread, 0.55)


def test_module_can_be_used_alone():
    module = SCDeepClusterModule(20, n_clusters=3, n_batch=2)
    assert module.centers.shape == (3, 16)


@pytest.mark.slow
def test_beats_its_floor_on_real_data(real_data):
    adata = real_data("mouse_bladder_2100")
    import scanpy as sc

    logged = sc.pp.log1p(sc.pp.normalize_total(adata, target_sum=1e4, copy=True), copy=True)
    sc.pp.highly_variable_genes(logged, n_top_genes=2000)
    adata = adata[:, logged.var["highly_variable"]].copy()
    SCDeepCluster.setup_anndata(adata)
    model = SCDeepCluster(adata, n_clusters=adata.obs["cell_type"].nunique())
    model.train(enable_progress_bar=False)
    assert adjusted_rand_score(adata.obs["cell_type"], model.predict()) >= 0.55


@pytest.mark.slow
def test_demo_data():
    adata = sdc.datasets.pbmc68k_reduced()
    SCDeepCluster.setup_anndata(adata)
    model = SCDeepCluster(adata, n_clusters=10)
    model.train(enable_progress_bar=False)
    assert adjusted_rand_score(adata.obs["cell_type"], model.predict()) >= 0.45
