"""What may learn in a query, and that everything else stays bit for bit."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import scvi
import torch

import scdeepclust as sdc

MODELS = [getattr(sdc.model, name) for name in sdc.model.__all__]
QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}
SETUP = {"batch_key": "batch", "categorical_covariate_keys": ["kit"], "continuous_covariate_keys": ["age"]}


@pytest.fixture(params=MODELS, ids=lambda model: model.__name__)
def model_cls(request):
    return request.param


@pytest.fixture(autouse=True)
def _seed():
    scvi.settings.seed = 0
    yield
    scvi.settings.seed = None


@pytest.fixture
def batches(adata):
    """Five batches, two covariates."""
    adata.obs["batch"] = pd.Categorical.from_codes(np.arange(adata.n_obs) % 5, list("abcde"))
    adata.obs["kit"] = np.where(np.arange(adata.n_obs) % 3, "x", "y")
    adata.obs["age"] = np.arange(adata.n_obs) / adata.n_obs
    return adata


def reference(model_cls, adata, known="abc"):
    known = adata[adata.obs["batch"].isin(list(known))].copy()
    model_cls.setup_anndata(known, **SETUP)
    kwargs = {"n_facet_clusters": 2} if model_cls is sdc.model.MFCVAE else {}
    kwargs |= {"n_clusters": 4, "n_hidden": 16, "encode_covariates": True, "dispersion": "gene-batch"}
    model = model_cls(known, init="kmeans", n_init=1, **kwargs)
    model.train(pretrain_epochs=3, max_epochs=1, **QUIET)
    return model


def moved(before, after):
    return {name: (value != before[name]) for name, value in after.items() if not value.equal(before[name])}


def state_of(model):
    return {name: value.detach().clone() for name, value in model.module.state_dict().items()}


@pytest.mark.parametrize("known", ["a", "abc"])
def test_only_the_columns_of_new_batches_learn(model_cls, batches, known, tmp_path):
    trained = reference(model_cls, batches, known)
    # cells of known batches too: their columns are the reference's
    query = model_cls.load_query_data(batches[batches.obs["batch"].isin(["a", "d", "e"])].copy(), trained)
    query.save(str(tmp_path / "q"))
    copies = {
        "itself": query,
        "saved": model_cls.load(str(tmp_path / "q"), query.adata),
        "copied": copy.deepcopy(query),
        "pickled": pickle.loads(pickle.dumps(query)),
    }
    # weight decay moves what has no gradient
    arguments = {"max_epochs": 2, "plan_kwargs": {"weight_decay": 0.1, "optimizer": "AdamW"}} | QUIET
    states = {}
    for name, model in copies.items():
        before = state_of(model)
        model.train(**arguments)
        after = states[name] = state_of(model)
        changed = moved(before, after)
        assert {key.split(".")[0] for key in changed} == {"encoder", "decoder"}, name
        for key, mask in changed.items():
            assert mask[:, -2:].all(), (name, key)
            assert not mask[:, :-2].any(), (name, key)
        again = state_of(model)
        model.train(**arguments)  # and once more
        assert all(not mask[:, :-2].any() for mask in moved(again, state_of(model)).values())
        for key, value in after.items():
            assert value.equal(states["itself"][key]), (name, key)
    kept = batches[batches.obs["batch"] == "a"].copy()
    # the width of a matrix product decides how it is rounded
    pd.testing.assert_frame_equal(query.predict(kept, soft=True), trained.predict(kept, soft=True), atol=1e-4)


def test_a_query_of_known_batches_has_nothing_to_learn(model_cls, batches):
    trained = reference(model_cls, batches)
    cells = batches[batches.obs["batch"] == "b"].copy()
    query = model_cls.load_query_data(cells, trained)
    before = state_of(query)
    with pytest.warns(UserWarning, match="no new batch"):
        query.train(max_epochs=2, **QUIET)
    query.train(**QUIET)
    assert not moved(before, state_of(query))
    pd.testing.assert_frame_equal(query.predict(soft=True), trained.predict(cells, soft=True), atol=1e-4)


def test_a_query_of_a_query_keeps_what_the_first_learnt(batches):
    trained = reference(sdc.model.GMVAE, batches)
    first = sdc.model.GMVAE.load_query_data(batches[batches.obs["batch"] == "d"].copy(), trained)
    first.train(max_epochs=2, **QUIET)
    second = sdc.model.GMVAE.load_query_data(batches[batches.obs["batch"] == "e"].copy(), first)
    before = state_of(second)
    second.train(max_epochs=2, **QUIET)
    changed = moved(before, state_of(second))
    assert changed
    assert all(mask[:, -1].all() and not mask[:, :-1].any() for mask in changed.values())


def test_an_unfrozen_query_adapts_everything(model_cls, batches):
    trained = reference(model_cls, batches)
    query = model_cls.load_query_data(batches[batches.obs["batch"].isin(["d", "e"])].copy(), trained, unfrozen=True)
    before = state_of(query)
    query.train(pretrain_epochs=3, max_epochs=1, **QUIET)
    parts = {name.split(".")[0] for name in moved(before, state_of(query))}
    assert {"encoder", "decoder"} < parts
    assert query.module.encoder.state_dict().keys() <= {
        name.removeprefix("encoder.") for name in moved(before, state_of(query)) if name.startswith("encoder.")
    }


def test_a_query_that_an_older_version_saved_learns_the_same(batches, tmp_path):
    query = sdc.model.IDC.load_query_data(
        batches[batches.obs["batch"] == "d"].copy(), reference(sdc.model.IDC, batches)
    )
    query.n_known_batches_ = None
    before = state_of(query)
    query.train(max_epochs=1, **QUIET)
    changed = moved(before, state_of(query))
    assert changed
    assert all(mask[:, -1].all() and not mask[:, :-1].any() for mask in changed.values())


def test_arguments_and_references_that_do_not_work_are_named(batches):
    trained = reference(sdc.model.SCDeepCluster, batches)
    cells = batches[batches.obs["batch"] == "d"].copy()
    with pytest.raises(ValueError, match="`load_query_data` does not know 'freeze_expression'.*unfrozen"):
        sdc.model.SCDeepCluster.load_query_data(cells, trained, freeze_expression=False)
    trained.phase_ = "pretrain"
    with pytest.raises(RuntimeError, match="'pretrain'.*goes on"):
        sdc.model.SCDeepCluster.load_query_data(cells, trained)
    assert torch.is_grad_enabled()
