"""Numbers that models keep, write and start from, restated; and what they hold on to."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import scvi
import torch
from scipy.sparse import csr_matrix
from sklearn.decomposition import PCA

from scdeepclust.model import GMVAE, MFCVAE, SCDeepCluster
from scdeepclust.model._base._module import MAX_BATCHES, ClusteringModule
from scdeepclust.model.mfcvae import _crossed_groups
from scdeepclust.model.mfcvae import _model as mfcvae_file
from scdeepclust.model.mfcvae._module import MAX_COMBINATIONS, MFCVAEModule
from scdeepclust.model.scdeepcluster._model import SCDeepClusterModule
from scdeepclust.nn import Counts, Covariates

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}
SHORT = {"pretrain_epochs": 3, "max_epochs": 3} | QUIET


@pytest.fixture(autouse=True)
def _seed(monkeypatch):
    monkeypatch.setattr(_crossed_groups, "N_STARTS", 5)
    scvi.settings.seed = 0
    yield
    scvi.settings.seed = None


def fitted(model_cls, adata, n_clusters=4, **kwargs):
    model_cls.setup_anndata(adata, batch_key="batch")
    model = model_cls(adata, n_clusters=n_clusters, n_hidden=16, **kwargs)
    model.train(**SHORT)
    return model


# ---- history and what is written -------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_cls", [GMVAE, MFCVAE, SCDeepCluster])
def test_the_bound_in_the_history_has_its_divergence_and_uns_the_last_epoch(model_cls, adata):
    model = fitted(model_cls, adata)
    history = model.history
    for prefix in ("", "vae_" if model_cls is GMVAE else "pretrain_"):
        kl, reconstruction = (history[f"{prefix}{name}_train"] for name in ("kl_local", "reconstruction_loss"))
        expected = kl.to_numpy() + reconstruction.to_numpy()
        np.testing.assert_allclose(history[f"{prefix}elbo_train"], expected, rtol=1e-6)
        assert (kl.to_numpy() > 0).all() == (model_cls is not SCDeepCluster)
    model.write_back(key_added="k", confidence="posterior")
    final = adata.uns["k"]["final"]
    assert set(final) == set(history)
    for name, value in final.items():
        assert value == pytest.approx(float(history[name].iloc[-1, 0]), nan_ok=True), name
    assert final["train_loss"] != float(history["train_loss"].iloc[0, 0])


# ---- numbers of clusters that were found -----------------------------------------------------------------------------


def test_components_that_end_empty_are_not_loaded_either(adata, tmp_path, monkeypatch):
    monkeypatch.setattr(
        GMVAE, "_start_labels", lambda self, cells: self._keep_n_clusters(6) or np.arange(len(cells)) % 6
    )
    probabilities = GMVAE._probabilities
    monkeypatch.setattr(GMVAE, "_probabilities", lambda self, *a: _without(probabilities(self, *a), 5))
    model = fitted(GMVAE, adata, n_clusters=None)
    monkeypatch.undo()
    assert model.n_clusters == 5
    model.save(str(tmp_path / "m"))
    assert GMVAE.load(str(tmp_path / "m"), adata).n_clusters == 5


def _without(probabilities, k):
    probabilities[:, k] = 0
    return probabilities


def test_numbers_of_facet_clusters_that_were_found_are_loaded(adata, tmp_path, monkeypatch):
    for n_found in (1, 3):
        groups = None if n_found == 1 else np.arange(adata.n_obs) % n_found
        monkeypatch.setattr(MFCVAE, "_start_groups", lambda self, j, cells, groups=groups: groups)
        model = fitted(MFCVAE, adata)
        model.save(str(tmp_path / str(n_found)))
        loaded = MFCVAE.load(str(tmp_path / str(n_found)), adata)
        assert [m.n_components for m in loaded.module.mixtures] == [4, n_found]


# ---- where things start ----------------------------------------------------------------------------------------------


def test_the_bandwidth_is_the_median_squared_distance_to_the_own_centre():
    z, labels = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 2
    z[0] += 100  # one cell far away moves a mean, but no median
    module = SCDeepClusterModule(10, n_clusters=2, n_latent=3, n_hidden=8)
    module.start_clusters(z, labels)
    centers = torch.stack([z[labels == k].mean(dim=0) for k in range(2)])
    torch.testing.assert_close(module.centers.detach(), centers)
    torch.testing.assert_close(module.bandwidth, (z - centers[labels]).square().sum(dim=1).median())


def test_facets_are_looked_for_in_log_expression(adata, monkeypatch):
    """Where the effect of a condition is the same in all cell types; restated from the shares."""
    seen = {}

    def spy(points, n_clusters, n_groups, seed):
        seen["points"] = points
        return original(points, n_clusters, n_groups, seed=seed)

    original = mfcvae_file.crossed_groups
    monkeypatch.setattr(mfcvae_file, "crossed_groups", spy)
    MFCVAE.setup_anndata(adata, batch_key="batch")
    model = MFCVAE(adata, n_clusters=4, n_hidden=16)
    monkeypatch.setattr(MFCVAE, "_warn_if_degenerate", lambda *args: None)
    model.train(pretrain_epochs=3, max_epochs=0, **QUIET)
    cells = np.arange(adata.n_obs)
    model._start_groups(1, cells)
    shares = np.concatenate(list(model._denoised_blocks(cells))) ** 2
    expected = PCA(20, svd_solver="randomized", random_state=0).fit_transform(np.log1p(1e4 * shares))
    np.testing.assert_allclose(seen["points"], expected, atol=1e-3 * expected.std())


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "normal", "beta_binomial"])
def test_a_decoder_starts_at_the_average_profile(likelihood, adata):
    counts = np.asarray(adata.X.todense())
    counts[:, 0] = 0  # a gene that does not occur
    adata.X = csr_matrix(counts)
    GMVAE.setup_anndata(adata)
    model = GMVAE(adata, n_clusters=3, gene_likelihood=likelihood, n_hidden=16)
    model._begin_training()
    start = model.module.decoder.scores.bias.detach().numpy().astype(float)
    logged = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True)).mean(axis=0)
    if likelihood == "normal":
        expected = logged
    elif likelihood == "beta_binomial":
        p = np.clip(counts.mean(axis=0) / counts.max(), 1e-7, None)
        expected = np.log(p / (1 - p))
    else:
        expected = np.log((np.exp(logged) - 1) / 1e4 + 1e-7)
    np.testing.assert_allclose(start, expected, rtol=1e-4, atol=1e-4)
    model.module.decoder.scores.bias.data.zero_()
    model._begin_training()  # statistics are known: what was learnt since stays
    assert (model.module.decoder.scores.bias == 0).all()


@pytest.mark.parametrize(("model_cls", "starts"), [(GMVAE, True), (MFCVAE, True), (SCDeepCluster, False)])
def test_only_decoders_under_a_prior_start_at_the_average_profile(model_cls, starts, adata):
    model_cls.setup_anndata(adata)
    model = model_cls(adata, n_clusters=3, n_hidden=16)
    before = model.module.decoder.scores.bias.detach().clone()
    model.train_indices = np.arange(adata.n_obs)
    model._begin_training()
    assert torch.equal(model.module.decoder.scores.bias, before) != starts


@pytest.mark.parametrize("n_batches", [3, 8, 9, 40])
def test_expression_is_averaged_over_the_largest_batches(n_batches):
    module = ClusteringModule(12, n_batch=n_batches, n_latent=3, n_hidden=8, input_noise=0.0).eval()
    weights = np.random.default_rng(0).dirichlet(np.ones(n_batches))
    weights[1] = 0
    weights /= weights.sum()
    module.set_data_statistics(np.zeros(12), np.ones(12), 20.0, weights)
    kept = np.sort(np.argsort(-weights)[: min(8, (weights > 0).sum())])
    batches = module.typical_batches()
    assert [batch for batch, _ in batches] == kept.tolist()
    np.testing.assert_allclose([w for _, w in batches], weights[kept] / weights[kept].sum(), rtol=1e-6)
    if len(kept) < MAX_BATCHES:  # few batches: the very same numbers as ever
        assert [w for _, w in batches] == [w for w in module.batch_frequencies.tolist() if w > 0]
    z, batch = torch.randn(5, 3), torch.zeros(5, 1, dtype=torch.long)
    with torch.no_grad():
        found = module.denoised_expression(z, Covariates(batch))
        expected = sum(
            w * torch.softmax(module.decoder(z, Covariates(torch.full_like(batch, b))).scores, dim=1)
            for b, w in batches
        )
        torch.testing.assert_close(found.square(), expected)
        torch.testing.assert_close(module.denoised_expression(z, Covariates(batch), batches), found, rtol=0, atol=0)


@pytest.mark.parametrize(("sizes", "n_kept"), [((3, 2), 2), ((3, 2, 4), 8), ((3, 3, 4), 8), ((2, 4, 4, 4), 8)])
def test_expression_is_averaged_over_the_likeliest_combinations_of_facets(sizes, n_kept):
    torch.manual_seed(0)
    module = MFCVAEModule(12, n_clusters=sizes[0], n_facet_clusters=sizes[1:], n_latent=3, n_facet_latent=2, n_hidden=8)
    for mixture in module.mixtures:
        torch.nn.init.normal_(mixture.logits)
    facets = list(range(1, len(sizes)))
    found = module._typical_combinations(facets)
    joint = torch.ones(())
    for j in facets:
        joint = joint.unsqueeze(-1) * module.mixtures[j].log_weights.exp()
    n_all = joint.numel()
    assert len(found) == n_kept == min(n_all, MAX_COMBINATIONS)
    top = joint.flatten().sort(descending=True).values[:n_kept]
    for combination, weight in found:
        torch.testing.assert_close(weight, joint[combination] / top.sum())
    torch.testing.assert_close(sum(weight for _, weight in found), torch.ones(()))


# ---- what is held ----------------------------------------------------------------------------------------------------


def test_start_labels_are_strings_no_wider_than_they_need(adata):
    model = fitted(SCDeepCluster, adata)
    assert model.initial_labels_.dtype == "<U1"
    assert set(model.initial_labels_) == set("0123")
    assert model.predict().dtype == np.arange(3).astype(str).dtype  # what users fill with names of their own stays wide


@pytest.mark.parametrize(
    "arguments",
    [{}, {"give_mean": False}, {"return_dist": True}, {"latent": "w"}, {"latent": "w", "return_dist": True}],
)
def test_codes_do_not_keep_the_counts_they_are_of(adata, monkeypatch, arguments):
    model = fitted(GMVAE, adata, n_w=2)
    kept = []
    encode = model._encode

    def watched(tensors):
        alive = [reference for reference in kept if reference() is not None]
        assert len(alive) <= 1  # no more than the minibatch before
        kept.append(weakref.ref(tensors["X"].value))
        return encode(tensors)

    monkeypatch.setattr(model, "_encode", watched)
    torch.manual_seed(0)
    found = model.get_latent_representation(batch_size=50, **arguments)
    assert len(kept) == 8
    torch.manual_seed(0)
    posteriors = [encode(tensors) for tensors in model._minibatches(batch_size=50)]
    name = arguments.get("latent", "z")
    mean, log_var, draw = (torch.cat([q[f"{name}{s}"] for q in posteriors]) for s in ("_mean", "_log_var", ""))
    expected = (
        (mean, log_var.exp()) if "return_dist" in arguments else (mean if "give_mean" not in arguments else draw,)
    )
    found = found if isinstance(found, tuple) else (found,)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert isinstance(next(iter(model._minibatches()))["X"], Counts)
