"""GMVAE around the networks of a trained scVI model."""

from __future__ import annotations

import numpy as np
import pytest
import scvi
import torch
from sklearn.metrics import adjusted_rand_score

import scdeepclust as sdc
from scdeepclust.model import GMVAE

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}
COVARIATES = {"batch_key": "batch", "categorical_covariate_keys": ["kit"], "continuous_covariate_keys": ["age"]}


@pytest.fixture(autouse=True)
def _seed():
    scvi.settings.seed = 0
    yield
    scvi.settings.seed = None


def scvi_model(adata, epochs: int, setup: dict, **kwargs) -> scvi.model.SCVI:
    scvi.settings.seed = 0
    adata.obs["kit"] = np.resize(["a", "b", "c"], adata.n_obs)
    adata.obs["age"] = np.linspace(-1, 1, adata.n_obs)
    scvi.model.SCVI.setup_anndata(adata, **setup)
    model = scvi.model.SCVI(adata, n_hidden=32, **kwargs)
    model.train(max_epochs=epochs, **QUIET)
    return model


@pytest.fixture(scope="module")
def pair():
    """A trained scVI model and the GMVAE made from it."""
    adata = sdc.datasets.simulate_counts(
        400, 200, n_clusters=4, n_batches=2, marker_log_fold_change=2.5, depth=120, seed=1
    )
    reference = scvi_model(adata, 60, {"batch_key": "batch"})
    before = {name: value.clone() for name, value in reference.module.state_dict().items()}
    model = GMVAE.from_scvi_model(reference, n_clusters=4)
    model.train(**QUIET)
    return reference, model, before


def test_networks_are_those_of_scvi_and_neither_model_changes_them(pair):
    reference, model, before = pair
    np.testing.assert_allclose(
        model.get_latent_representation(), reference.get_latent_representation(), rtol=1e-4, atol=1e-5
    )
    after = reference.module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert model.phases_ == [("mixture", model.phases_[0][1])]


def test_only_the_mixture_learns(pair):
    _, model, _ = pair
    learning = {name for name, value in model.module.named_parameters() if value.requires_grad}
    assert learning == {"mixture.means", "mixture.log_var", "mixture.logits"}
    kl = model.history["kl_local_train"].to_numpy().ravel()
    assert kl[-1] < kl[0]


def test_it_finds_the_clusters(pair):
    _, model, _ = pair
    assert adjusted_rand_score(model.adata.obs["cell_type"], model.predict()) > 0.9


@pytest.mark.parametrize(
    ("setup", "options"),
    [
        ({"batch_key": "batch"}, {"gene_likelihood": "zinb"}),
        (COVARIATES, {"n_layers": 2, "encode_covariates": True, "dispersion": "gene-batch", "gene_likelihood": "nb"}),
        (COVARIATES, {"dispersion": "gene-cell", "use_layer_norm": "both", "use_batch_norm": "none"}),
        ({}, {"gene_likelihood": "poisson", "log_variational": False}),
    ],
    ids=["default", "encode-covariates", "gene-cell", "poisson"],
)
def test_every_architecture_encodes_and_decodes_as_in_scvi_and_can_be_saved_and_mapped(adata, setup, options, tmp_path):
    reference = scvi_model(adata, 3, setup, **options)
    model = GMVAE.from_scvi_model(reference, n_clusters=4)
    model.train(max_epochs=1, **QUIET)
    z = reference.get_latent_representation()
    np.testing.assert_allclose(model.get_latent_representation(), z, rtol=1e-3, atol=1e-4)

    tensors = next(iter(reference._make_data_loader(adata, batch_size=50)))
    with torch.no_grad():
        module = reference.module.eval()
        q = module.inference(**module._get_inference_input(tensors)) | {"z": torch.as_tensor(z[:50])}
        expected = module.generative(**module._get_generative_input(tensors, q))["px"]
        ours = model.module.eval()
        q = ours.inference(**ours._get_inference_input(tensors)) | {"z": torch.as_tensor(z[:50])}
        found = ours.generative(**ours._get_generative_input(tensors, q))
        counts = q["counts"]
        log_p = ours.log_likelihood(counts, found["heads"], q["log_library"])
    torch.testing.assert_close(found["px"].mean, expected.mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(log_p, expected.log_prob(tensors["X"]).sum(-1), rtol=1e-3, atol=1e-2)

    soft = model.predict(soft=True)
    model.save(str(tmp_path / "m"))
    np.testing.assert_array_equal(GMVAE.load(str(tmp_path / "m"), adata).predict(soft=True), soft)
    if not setup:
        return
    query = adata[:60].copy()
    mapped = GMVAE.load_query_data(query, model)
    mapped.train(max_epochs=0, **QUIET)  # known batches: nothing may change, whatever the order of the covariates
    np.testing.assert_allclose(mapped.predict(soft=True), soft[:60], rtol=1e-3, atol=1e-5)
    query = adata[:60].copy()
    query.obs["batch"] = "new"
    mapped = GMVAE.load_query_data(query, model)
    mapped.train(max_epochs=1, **QUIET)
    if not options.get("encode_covariates"):
        np.testing.assert_allclose(mapped.get_latent_representation(), z[:60], rtol=1e-3, atol=1e-4)


def test_the_number_of_clusters_can_be_left_open(pair):
    reference, _, _ = pair
    model = GMVAE.from_scvi_model(reference)
    model.train(max_epochs=2, **QUIET)
    assert 2 <= model.n_clusters <= 10


def test_what_cannot_be_taken_over_is_refused(adata):
    setup = {"batch_key": "batch"}
    scvi.model.SCVI.setup_anndata(adata, **setup)
    with pytest.raises(ValueError, match="not trained"):
        GMVAE.from_scvi_model(scvi.model.SCVI(adata))
    with pytest.raises(ValueError, match="must be a scvi.model.SCVI, found str"):
        GMVAE.from_scvi_model("model")
    for options, word in [
        ({"use_observed_lib_size": False}, "use_observed_lib_size=False"),
        ({"gene_likelihood": "normal"}, "gene_likelihood='normal'"),
        ({"dispersion": "gene-label"}, "dispersion='gene-label'"),
        ({"latent_distribution": "ln"}, "latent_distribution='ln'"),
    ]:
        reference = scvi_model(adata, 1, setup, **options)
        with pytest.raises(ValueError, match=f"`scvi_model` was made with {word}"):
            GMVAE.from_scvi_model(reference, n_clusters=3)
    model = GMVAE.from_scvi_model(scvi_model(adata, 1, setup), n_clusters=3)
    with pytest.raises(ValueError, match="`pretrain_epochs` must be 0"):
        model.train(pretrain_epochs=2, **QUIET)
