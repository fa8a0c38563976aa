"""Confidence as the probability of a repeat, novelty, and what is kept of the fit for both."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

import scdeepclust as sdc
from scdeepclust.model._systems import SYSTEMS
from scdeepclust.tl._confidence import conformal_sets

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


def simulated(n: int = 320, seed: int = 1, **kwargs):
    options = {"n_clusters": 4, "n_batches": 2, "marker_log_fold_change": 3.0, "depth": 400} | kwargs
    return sdc.datasets.simulate_counts(n, 150, seed=seed, **options)


def fitted(name: str, adata, n_clusters: int | None = 4, **kwargs):
    model_class = getattr(sdc.model, name)
    model_class.setup_anndata(adata, batch_key="batch")
    model = model_class(adata, n_clusters, n_latent=8, seed=0, **kwargs)
    model.train(pretrain_epochs=60, max_epochs=5, **QUIET)
    return model


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_every_model_has_one_scale_and_keeps_what_it_learnt(system, tmp_path):
    adata = simulated()
    model = fitted(system.name, adata)
    torch.manual_seed(123)
    confidence = model.get_confidence()
    assert torch.initial_seed() == 123  # the seeds of the refits are its own matter
    assert confidence.dtype == np.float32
    assert confidence.shape == (320,)
    assert ((confidence > 0) & (confidence < 1)).all()
    assert np.median(confidence) > 0.9  # types that are far apart, whatever the model thinks of its posterior
    np.testing.assert_array_equal(model.get_confidence(), confidence)
    some = model.get_confidence(indices=np.arange(50))
    assert np.abs(some - confidence[:50]).mean() < 0.03
    np.testing.assert_allclose(
        model.get_confidence(confidence="posterior"), model.predict(soft=True).to_numpy().max(axis=1), rtol=1e-5
    )
    model.write_back()
    np.testing.assert_array_equal(adata.obs[f"{system.key}_confidence"], confidence)
    assert adata.uns[system.key]["confidence"] == "repeat"
    assert f"{system.key}_novelty" not in adata.obs
    # it goes with the model, without its cells
    model.save(tmp_path / "m", save_anndata=False)
    loaded = type(model).load(tmp_path / "m", adata=False)
    np.testing.assert_allclose(loaded.get_confidence(adata), confidence, atol=1e-5)
    # nothing of the refits stays in the classes of scvi-tools
    assert len(type(model)._per_instance_manager_store.get(model.id, {})) <= 2


def test_confidence_says_which_cells_are_between_two_types():
    adata = simulated(600, marker_log_fold_change=1.5, depth=150)
    model = fitted("GMVAE", adata)
    right = adata.obs["cell_type"].astype(str).to_numpy()
    labels = model.predict()
    majority = pd.crosstab(labels, right).idxmax(axis=1)[labels].to_numpy()
    confidence = model.get_confidence()
    assert 0.02 < (majority != right).mean() < 0.4
    assert confidence[majority == right].mean() > confidence[majority != right].mean() + 0.05


def test_a_new_fit_forgets_and_a_query_has_that_of_its_reference(tmp_path):
    adata = simulated(400)
    reference, query = adata[:320].copy(), adata[320:].copy()
    query.obs["batch"] = "new"
    model = fitted("SCDeepCluster", reference)
    mapped = type(model).load_query_data(query, model)
    assert mapped.restarts_ is model.restarts_
    mapped.train(max_epochs=2, **QUIET)
    assert mapped.get_confidence().shape == (80,)
    mapped.write_back()
    assert query.obs["scdeepcluster_novelty"].between(0, 1).all()
    model.train(max_epochs=1, **QUIET)
    assert model.restarts_ is None
    # a reference that was saved before it was asked has nothing to hand on
    model.save(tmp_path / "m", save_anndata=False)
    mapped = type(model).load_query_data(query, str(tmp_path / "m"))
    mapped.train(max_epochs=0, **QUIET)
    with pytest.raises(ValueError, match="the reference was saved without what repeats tell"):
        mapped.get_confidence()
    with pytest.warns(UserWarning, match="The confidence is the highest assignment probability"):
        mapped.write_back()
    np.testing.assert_allclose(query.obs["scdeepcluster_confidence"], mapped.get_confidence(confidence="posterior"))
    assert query.uns["scdeepcluster"]["confidence"] == "posterior"
    loaded = type(model).load(tmp_path / "m", adata=False)
    with pytest.raises(ValueError, match="the model was saved without what repeats tell"):
        loaded.get_confidence(reference)


def test_a_kind_that_was_not_there_is_new_and_cells_of_the_fit_are_not_asked():
    adata = simulated(700, n_clusters=5, depth=600)
    kinds = adata.obs["cell_type"].astype(str)
    known = adata[(kinds != "type_2").to_numpy() & (np.arange(700) % 4 > 0)].copy()
    model = fitted("GMVAE", known)
    again = adata[(kinds != "type_2").to_numpy() & (np.arange(700) % 4 == 0)].copy()
    other = adata[(kinds == "type_2").to_numpy()].copy()
    assert (model.get_novelty(other) > 0.95).mean() > 0.9
    assert (model.get_novelty(again) > 0.95).mean() < 0.12
    with pytest.raises(ValueError, match="novelty is that of other cells"):
        model.get_novelty(known.copy())
    model.write_back(other)
    np.testing.assert_array_equal(other.obs["gmvae_novelty"], model.get_novelty(other))
    copy = known.copy()
    model.write_back(copy)
    assert "gmvae_novelty" not in copy.obs


@pytest.mark.parametrize("value", ["repeats", None, 3])
def test_unknown_kinds_of_confidence_are_refused(value):
    model = fitted("SCDeepCluster", simulated(120))
    with pytest.raises(ValueError, match="`confidence` must be one of 'repeat', 'posterior'"):
        model.get_confidence(confidence=value)


@pytest.mark.parametrize(
    "options", [{"n_clusters": None}, {"init": "kmeans"}, {"init": "given"}], ids=["found", "kmeans", "given"]
)
def test_every_way_to_start_can_be_repeated(options):
    adata = simulated(240)
    if options.get("init") == "given":
        options = {"n_clusters": None, "init": adata.obs["cell_type"].astype(str).to_numpy()}
    model = fitted("SCDeepCluster", adata, **({"n_clusters": 4} | options))
    assert np.median(model.get_confidence()) > 0.8
    assert model.n_clusters == 4


def test_a_single_cluster_repeats_with_certainty():
    adata = simulated(200)
    model = fitted("GMVAE", adata[adata.obs["cell_type"] == "type_0"].copy(), None)
    assert model.n_clusters == 1
    assert model.get_confidence().min() > 0.95


def test_the_fit_is_repeated_with_its_own_options(monkeypatch):
    adata = simulated(200)
    seen = []
    train = sdc.model.SCDeepCluster.train

    def noted(self, *args, **kwargs):
        seen.append((self, args, kwargs))
        return train(self, *args, **kwargs)

    model = sdc.model.SCDeepCluster
    model.setup_anndata(adata, batch_key="batch")
    fit = model(adata, 4, n_latent=6, gene_likelihood="zinb", seed=3)
    fit.train(pretrain_epochs=7, max_epochs=3, batch_size=64, plan_kwargs={"lr": 2e-3}, **QUIET)
    monkeypatch.setattr(model, "train", noted)
    fit.get_confidence()
    ((refit, args, kwargs),) = seen
    assert args == tuple(sum(n for name, n in fit.phases_ if name == phase) for phase in ("cluster", "pretrain"))
    assert args[1] == 7
    assert kwargs["batch_size"] == 64
    assert kwargs["plan_kwargs"] == {"lr": 2e-3}
    assert kwargs["enable_progress_bar"] is False
    assert (refit.module.n_latent, refit.module.gene_likelihood) == (6, "zinb")
    assert refit._seed != fit._seed
    # half of the counts of each cell, in its batch
    assert refit.adata.X.sum() == pytest.approx(adata.X.sum() / 2, rel=0.02)
    cells = refit.adata.obs_names.astype(int)
    assert (refit.adata.X > adata.X[cells]).sum() == 0
    assert (refit.adata.obs["batch"].to_numpy() == adata.obs["batch"].to_numpy()[cells]).all()


def test_a_refit_that_is_interrupted_teaches_nothing(monkeypatch):
    model = fitted("SCDeepCluster", simulated(120))
    train, stores = type(model).train, type(model)._per_instance_manager_store

    def stopped(self, *args, **kwargs):
        train(self, *args, **kwargs)
        self.interrupted_ = True

    monkeypatch.setattr(type(model), "train", stopped)
    before = set(stores)
    with pytest.raises(KeyboardInterrupt):
        model.get_confidence()
    assert model.restarts_ is None
    assert set(stores) <= before  # nor does its data stay
    with pytest.raises(KeyboardInterrupt):
        model.write_back()
    assert "scdeepcluster" not in model.adata.obs


def test_facets_have_a_confidence_each():
    adata = sdc.datasets.simulate_counts(300, 150, n_clusters=3, n_facet_groups=2, marker_log_fold_change=3, depth=500)
    sdc.model.MFCVAE.setup_anndata(adata)
    model = sdc.model.MFCVAE(adata, 3, n_facets=2, n_facet_clusters=2, seed=0)
    model.train(pretrain_epochs=60, max_epochs=3, **QUIET)
    model.write_back()
    np.testing.assert_array_equal(adata.obs["mfcvae_confidence"], adata.obs["mfcvae_facet0_confidence"])
    second = model.get_facet_confidence(1)
    np.testing.assert_array_equal(adata.obs["mfcvae_facet1_confidence"], second)
    assert ((second > 0) & (second < 1)).all()
    with pytest.raises(ValueError, match="`facet` must be between 0 and 1"):
        model.get_facet_confidence(2)


# -- the check, and prediction sets


def test_the_check_counts_what_it_says():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0, 1, 20_000)
    honest = sdc.tl.ConfidenceCheck(confidence, rng.uniform(size=20_000) < confidence)
    assert honest.calibration_error < 0.01
    assert honest.auroc == pytest.approx(5 / 6, abs=0.01)  # of a uniform probability
    bins = honest.bins
    assert bins["n_cells"].sum() == 20_000
    np.testing.assert_allclose(bins["confidence"], np.arange(10) / 10 + 0.05, atol=0.01)
    sure = sdc.tl.ConfidenceCheck(np.full(100, 0.95), np.arange(100) < 70)
    assert sure.calibration_error == pytest.approx(0.25)
    assert np.isnan(sdc.tl.ConfidenceCheck(np.full(3, 0.9), np.ones(3, bool)).auroc)
    ax = sdc.pl.reliability(honest)
    np.testing.assert_allclose(ax.collections[-1].get_offsets()[:, 1], bins["repeats"])
    assert f"AUROC {honest.auroc:.2f}" in ax.get_title()
    with pytest.raises(ValueError, match="`check` must be the result of"):
        sdc.pl.reliability(bins)
    plt.close("all")


def test_the_check_fits_halves_and_leaves_the_model_as_it_was():
    adata = simulated(240)
    model = fitted("SCDeepCluster", adata)
    before, kept = model.predict(soft=True), model.restarts_
    check = sdc.tl.check_confidence(model)
    assert check.repeats > 0.9
    assert check.confidence.shape == check.repeated.shape == (240,)
    assert model.predict(soft=True).equals(before)
    assert model.restarts_ is kept


def test_prediction_sets_cover_what_they_promise():
    """Exchangeable cells: the labels of half of them calibrate, those of the others are covered."""
    rng = np.random.default_rng(0)
    likely = rng.dirichlet(np.full(5, 0.4), size=4000)
    truth = np.array([rng.choice(5, p=p) for p in likely])
    needed = np.sort(1 - likely[np.arange(2000), truth[:2000]])
    for alpha in (0.05, 0.1, 0.3):
        sets = conformal_sets(likely[2000:], needed, alpha)
        assert sets[np.arange(2000), truth[2000:]].mean() == pytest.approx(1 - alpha, abs=0.025)
    # of ten calibrating cells none says anything of one in a hundred
    assert conformal_sets(likely, needed[:10], 0.01).all()


def test_prediction_sets_hold_the_cluster_of_the_cell_and_few_others():
    adata = simulated(300)
    model = fitted("SCDeepCluster", adata)
    sets = sdc.tl.prediction_sets(model, alpha=0.1)
    assert list(sets.columns) == ["0", "1", "2", "3"]
    assert sets.to_numpy()[np.arange(300), model.predict().astype(int)].all()
    assert sets.sum(axis=1).mean() < 1.5
    wider = sdc.tl.prediction_sets(model, adata[:50].copy(), alpha=0.001)
    assert (wider.sum(axis=1) >= sets[:50].sum(axis=1)).all()
    for alpha in (0, 1, 2):
        with pytest.raises(ValueError, match="`alpha` must be above 0 and below 1"):
            sdc.tl.prediction_sets(model, alpha=alpha)


@pytest.mark.parametrize("value", ["", 0, [], np.array([True, False]), "sure"])
def test_what_is_no_confidence_is_refused(value):
    adata = sdc.datasets.simulate_counts(60, 40, n_clusters=2)
    sdc.model.SCDeepCluster.setup_anndata(adata)
    model = sdc.model.SCDeepCluster(adata, 2)
    model.train(1, 1, enable_progress_bar=False)
    for call in (model.write_back, model.get_confidence):
        with pytest.raises(ValueError, match="`confidence` must be one of 'repeat', 'posterior'"):
            call(confidence=value)
    assert "scdeepcluster" not in adata.obs
