"""What every model promises, whatever its method."""

from __future__ import annotations

import os
import subprocess
import sys

import anndata
import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from scipy.sparse import csc_matrix, csr_array
from sklearn.metrics import adjusted_rand_score

import scdeepclust as sdc

MODELS = [getattr(sdc.model, name) for name in sdc.model.__all__]
SHORT = {"pretrain_epochs": 3, "max_epochs": 2, "enable_progress_bar": False, "accelerator": "cpu"}


@pytest.fixture(params=MODELS, ids=lambda model: model.__name__)
def model_cls(request):
    return request.param


@pytest.fixture(autouse=True)
def _seed():
    scvi.settings.seed = 0
    yield
    scvi.settings.seed = None


def fitted(model_cls, adata, *, setup=None, n_clusters=4, **train):
    model_cls.setup_anndata(adata, batch_key="batch", **(setup or {}))
    model = model_cls(adata, n_clusters=n_clusters)
    model.train(**(SHORT | train))
    return model


def test_own_labels_recover_simulated_clusters(model_cls, adata):
    model = fitted(model_cls, adata, pretrain_epochs=60, max_epochs=30)
    assert adjusted_rand_score(adata.obs["cell_type"], model.predict()) > 0.9


def test_training_in_half_precision(model_cls, adata):
    model = fitted(model_cls, adata, pretrain_epochs=60, max_epochs=20, precision="bf16-mixed")
    assert adjusted_rand_score(adata.obs["cell_type"], model.predict()) > 0.8
    assert all(p.dtype == torch.float32 for p in model.module.parameters())


def test_predict_returns_strings_by_size_and_probabilities_that_sum_to_one(model_cls, adata):
    model = fitted(model_cls, adata)
    labels = model.predict()
    assert labels.shape == (adata.n_obs,)
    assert labels.dtype.kind == "U"
    sizes = pd.Series(labels).value_counts().reindex([str(k) for k in range(4)], fill_value=0)
    assert (np.diff(sizes.to_numpy()) <= 0).all()
    soft = model.predict(soft=True)
    assert list(soft.index) == list(adata.obs_names)
    assert list(soft.columns) == ["0", "1", "2", "3"]
    np.testing.assert_allclose(soft.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(soft.idxmax(axis=1), labels)
    np.testing.assert_array_equal(model.predict(indices=[5, 3, 9]), labels[[5, 3, 9]])
    np.testing.assert_array_equal(model.predict(batch_size=7), labels)


def test_getters_have_the_documented_shapes(model_cls, adata):
    model = fitted(model_cls, adata)
    latent = model.get_latent_representation()
    assert latent.shape == (adata.n_obs, model.module.n_latent)
    assert latent.dtype == np.float32
    totals = np.asarray(adata.X.sum(axis=1))
    np.testing.assert_allclose(model.get_latent_library_size(indices=[3, 1]), totals[[3, 1]], rtol=1e-5)
    expression = model.get_normalized_expression(indices=[0, 1], transform_batch=str(adata.obs["batch"].iloc[0]))
    assert expression.shape == (2, adata.n_vars)
    np.testing.assert_allclose(expression.sum(axis=1), 1, rtol=1e-4)
    result = model.differential_expression(idx1=model.predict() == "0", mode="change", silent=True)
    assert set(result.index) == set(adata.var_names)


def test_write_back_writes_the_documented_keys_and_nothing_else(model_cls, adata):
    model = fitted(model_cls, adata)
    before = {slot: set(getattr(adata, slot)) for slot in ("obs", "var", "obsm", "layers", "uns", "obsp", "varm")}
    model.predict(), model.get_latent_representation(), model.get_normalized_expression(indices=[0])
    assert {slot: set(getattr(adata, slot)) for slot in before} == before
    model.write_back(key_added="mine")
    assert {"mine", "mine_confidence"} <= set(adata.obs) - before["obs"]
    assert {"X_mine", "mine_probabilities"} <= set(adata.obsm) - before["obsm"]
    assert set(adata.uns) - before["uns"] == {"mine"}
    assert isinstance(adata.obs["mine"].dtype, pd.CategoricalDtype)
    np.testing.assert_array_equal(adata.obs["mine"].astype(str), model.predict())
    np.testing.assert_array_equal(adata.obs["mine_confidence"], model.get_confidence())
    assert adata.uns["mine"]["seed"] == 0
    assert adata.uns["mine"]["setup"]["batch_key"] == "batch"


def test_results_survive_h5ad(model_cls, adata, tmp_path):
    model = fitted(model_cls, adata)
    model.write_back(key_added="mine", confidence="posterior")
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert list(again.obs["mine"]) == list(adata.obs["mine"])
    assert again.uns["mine"]["model"] == model_cls.__name__


def test_save_load_predict_is_identical(model_cls, adata, tmp_path):
    model = fitted(model_cls, adata)
    model.save(str(tmp_path / "m"))
    loaded = model_cls.load(str(tmp_path / "m"), adata)
    pd.testing.assert_frame_equal(loaded.predict(soft=True), model.predict(soft=True))
    assert loaded.phases_ == model.phases_
    assert loaded.history.keys() == model.history.keys()
    np.testing.assert_array_equal(
        loaded.history["reconstruction_loss_train"], model.history["reconstruction_loss_train"]
    )
    assert loaded.n_active_ == model.n_active_


def test_load_without_data_then_predict_new_cells(model_cls, adata, tmp_path):
    model = fitted(model_cls, adata)
    model.save(str(tmp_path / "m"))
    loaded = model_cls.load(str(tmp_path / "m"), adata=False)
    with pytest.raises(ValueError, match="`adata` is needed"):
        loaded.predict()
    with pytest.raises(ValueError, match="has no `adata`"):
        loaded.train(**SHORT)
    new = sdc.datasets.simulate_counts(
        50, 200, n_clusters=4, n_batches=2, marker_log_fold_change=2.5, depth=120, seed=1
    )
    assert loaded.predict(new).shape == (50,)
    target = new.copy()
    loaded.write_back(target, key_added="x")
    np.testing.assert_array_equal(target.obs["x"].astype(str), loaded.predict(new))


def test_another_class_refuses_a_saved_model(adata, tmp_path):
    if len(MODELS) < 2:
        pytest.skip("needs two models")
    fitted(MODELS[0], adata).save(str(tmp_path / "m"))
    with pytest.raises(ValueError, match="different class"):
        MODELS[1].load(str(tmp_path / "m"), adata)


def test_sparse_dense_and_other_formats_give_the_same_labels(model_cls, adata):
    expected = fitted(model_cls, adata.copy()).predict(soft=True)
    for convert in (lambda x: x.toarray(), csc_matrix, csr_array):
        other = adata.copy()
        other.X = convert(adata.X)
        result = fitted(model_cls, other).predict(soft=True)
        np.testing.assert_allclose(result, expected, atol=2e-4)


def test_counts_in_a_layer_are_used(model_cls, adata):
    expected = fitted(model_cls, adata.copy()).predict(soft=True)
    adata.layers["raw"] = adata.X.copy()
    adata.X = adata.X * 0.5
    result = fitted(model_cls, adata, setup={"layer": "raw"}).predict(soft=True)
    pd.testing.assert_frame_equal(result, expected)


def test_genes_in_another_order_are_put_into_order_and_missing_ones_listed(model_cls, adata):
    model = fitted(model_cls, adata)
    expected = model.predict(soft=True).to_numpy()
    shuffled = adata[:, np.random.default_rng(0).permutation(adata.n_vars)].copy()
    np.testing.assert_allclose(model.predict(shuffled, soft=True), expected, atol=1e-6)
    with pytest.raises(ValueError, match=f"lacks 2 .* genes of the model, such as .*{adata.var_names[0]}"):
        model.predict(adata[:, 2:].copy())
    with pytest.warns(UserWarning, match=r"works on a copy.*query.write_back\(adata\)"):
        query = model_cls.load_query_data(shuffled, model)
    query.train(max_epochs=0, enable_progress_bar=False)
    query.write_back(shuffled)
    np.testing.assert_array_equal(shuffled.obs[model_cls.__name__.lower()].astype(str), model.predict())


def test_a_cell_without_counts_in_the_genes_of_the_model_is_named(adata):
    adata.layers["raw"] = adata.X
    model = fitted(MODELS[0], adata, setup={"layer": "raw"})
    counts = np.ones((3, 201), dtype=np.float32)
    counts[1, :200] = 0
    new = anndata.AnnData(obs=adata.obs[["batch"]].iloc[:3], layers={"raw": counts})
    new.var_names = [*adata.var_names, "another"]
    with pytest.raises(ValueError, match=f"1 cells .* in the 200 genes, such as '{new.obs_names[1]}'") as error:
        model.predict(new)
    kept = eval(str(error.value).split("`")[-2], {"np": np, "adata": new, "model": model})  # the remedy works
    assert len(model.predict(kept)) == 2


def test_a_saved_model_refuses_data_with_genes_in_another_order(model_cls, adata, tmp_path):
    path = str(tmp_path / "m")
    fitted(model_cls, adata).save(path)
    for other in (adata[:, ::-1].copy(), sdc.datasets.simulate_counts(50, 210, n_clusters=4, n_batches=2, seed=1)):
        with pytest.raises(ValueError, match=r"another order, or more of them.*gene_names_"):
            model_cls.load(path, other)
    with pytest.raises(ValueError, match="lacks 1 of the 200 genes"):
        model_cls.load(path, adata[:, 1:].copy())


def test_new_cells_need_no_labels_and_may_be_fewer_than_the_clusters(model_cls, adata):
    raw = adata.copy()
    model = fitted(model_cls, adata, setup={"labels_key": "cell_type"})
    expected = model.predict()
    for labels in (None, "never seen", np.nan):
        new = raw.copy()
        new.obs["cell_type"] = labels
        if labels is None:
            del new.obs["cell_type"]
        np.testing.assert_array_equal(model.predict(new), expected)
    one = raw[:1].copy()
    np.testing.assert_array_equal(model.predict(one), expected[:1])
    del one.obs["cell_type"]
    query = model_cls.load_query_data(one, model)
    query.train(max_epochs=0, enable_progress_bar=False)
    np.testing.assert_array_equal(query.predict(), expected[:1])


def test_an_unknown_batch_needs_query_mapping(model_cls, adata):
    model = fitted(model_cls, adata)
    new = adata[:20].copy()
    new.obs["batch"] = "never seen"
    columns = list(new.obs)
    with pytest.raises(ValueError, match="never seen.*load_query_data"):
        model.predict(new)
    assert list(new.obs) == columns


def test_batches_of_another_type_and_missing_covariates_are_named(adata):
    adata.obs["batch"] = (adata.obs["batch"] == adata.obs["batch"].iloc[0]).astype(int)
    adata.obs["age"] = np.arange(adata.n_obs) / adata.n_obs
    model = fitted(MODELS[0], adata, setup={"continuous_covariate_keys": ["age"]})
    new = adata.copy()
    new.obs["batch"] = new.obs["batch"].astype(str)
    with pytest.raises(ValueError, match="not seen: '0', '1'; it knows 0, 1"):
        model.predict(new)
    new = adata.copy()
    new.obs.loc[new.obs_names[3], "age"] = np.nan
    with pytest.raises(ValueError, match="'age' of `adata.obs` has 1 missing values"):
        model.predict(new)
    del new.obs["age"]
    with pytest.raises(ValueError, match="no column 'age'"):
        model.predict(new)


def test_an_untrained_model_says_so(model_cls, adata):
    model_cls.setup_anndata(adata)
    model = model_cls(adata, n_clusters=3)
    for call in (model.predict, model.get_latent_representation, model.write_back):
        with pytest.raises(RuntimeError, match="train"):
            call()


def test_n_clusters_none_finds_a_number_and_survives_saving(model_cls, adata, tmp_path):
    model = fitted(model_cls, adata, n_clusters=None, pretrain_epochs=40)
    assert 2 <= model.n_clusters <= 12
    assert model.predict(soft=True).shape == (adata.n_obs, model.n_clusters)
    model.save(str(tmp_path / "m"))
    loaded = model_cls.load(str(tmp_path / "m"), adata)
    np.testing.assert_array_equal(loaded.predict(), model.predict())


def test_covariates_and_size_factors_are_accepted(model_cls, adata):
    rng = np.random.default_rng(0)
    adata.obs["kit"] = rng.choice(["a", "b", "c"], adata.n_obs)
    adata.obs["age"] = rng.normal(size=adata.n_obs)
    totals = np.asarray(adata.X.sum(axis=1)).ravel()
    adata.obs["size"] = totals / np.median(totals)
    setup = {
        "categorical_covariate_keys": ["kit"],
        "continuous_covariate_keys": ["age"],
        "size_factor_key": "size",
    }
    model = fitted(model_cls, adata, setup=setup)
    assert np.isfinite(model.get_latent_representation()).all()


def test_query_with_a_new_batch_keeps_the_clusters_of_the_reference(model_cls, adata):
    reference_cells = (adata.obs["batch"] == adata.obs["batch"].iloc[0]).to_numpy()
    reference_data, query_data = adata[reference_cells].copy(), adata[~reference_cells].copy()
    reference = fitted(model_cls, reference_data, pretrain_epochs=60, max_epochs=10)
    before = reference.predict(soft=True)
    query = model_cls.load_query_data(query_data, reference)
    query.train(max_epochs=20, enable_progress_bar=False)
    labels = query.predict()
    assert len(labels) == query_data.n_obs
    assert adjusted_rand_score(query_data.obs["cell_type"], labels) >= 0.8
    joint = np.concatenate([reference.predict(), labels])
    truth = np.concatenate([reference_data.obs["cell_type"], query_data.obs["cell_type"]])
    assert adjusted_rand_score(truth, joint) >= 0.8  # the same names on both sides
    pd.testing.assert_frame_equal(reference.predict(soft=True), before)
    zero_shot = model_cls.load_query_data(query_data, reference)
    zero_shot.train(max_epochs=0, enable_progress_bar=False)
    known = zero_shot.module.state_dict()
    for name, value in reference.module.state_dict().items():
        if known[name].shape == value.shape:
            np.testing.assert_array_equal(known[name].cpu(), value.cpu(), err_msg=name)


def test_fine_tuning_on_second_data_uses_that_data(model_cls, adata):
    first, second = adata[:250].copy(), adata[250:].copy()
    reference = fitted(model_cls, first, pretrain_epochs=40)
    tuned = model_cls.load_query_data(second, reference, unfrozen=True)
    before = {name: value.clone() for name, value in tuned.module.state_dict().items()}
    tuned.train(**(SHORT | {"pretrain_epochs": None}))
    assert len(tuned.predict()) == second.n_obs
    assert any(not value.equal(before[name]) for name, value in tuned.module.state_dict().items())


def test_a_new_category_of_another_covariate_is_refused_by_name(model_cls, adata):
    adata.obs["kit"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")
    reference = fitted(model_cls, adata[:300].copy(), setup={"categorical_covariate_keys": ["kit"]})
    query = adata[300:].copy()
    query.obs["kit"] = "c"
    with pytest.raises(ValueError, match="'kit'.*c"):
        model_cls.load_query_data(query, reference)


SCRIPT = """
import sys, numpy as np, scvi, scdeepclust as sdc
scvi.settings.seed = 3
found = {}
for name in sdc.model.__all__:
    adata = sdc.datasets.simulate_counts(300, 150, n_clusters=4, n_batches=2, depth=120, seed=1)
    cls = getattr(sdc.model, name)
    cls.setup_anndata(adata, batch_key="batch")
    np.random.rand(int(sys.argv[1])); import torch; torch.rand(int(sys.argv[1]))
    model = cls(adata, n_clusters=4)
    model.train(pretrain_epochs=3, max_epochs=2, enable_progress_bar=False, accelerator="cpu")
    found[name] = model.predict(soft=True).to_numpy()
np.savez(sys.argv[2], **found)
"""


def test_the_same_seed_gives_identical_results_in_two_processes(tmp_path):
    paths = [str(tmp_path / f"{draws}.npz") for draws in ("1", "7")]  # what was drawn before must not matter
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, draws, path],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
        )
        for draws, path in zip(("1", "7"), paths, strict=True)
    ]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
    first, second = map(np.load, paths)
    assert set(first) == {model.__name__ for model in MODELS}
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


@pytest.mark.parametrize("n_known", [1, 3])
def test_new_batches_start_as_the_mean_of_the_known_ones(model_cls, adata, n_known):
    codes = np.arange(adata.n_obs) % 5
    adata.obs["batch"] = pd.Categorical.from_codes(codes, list("abcde"))
    known = adata[codes < n_known].copy()
    model_cls.setup_anndata(known, batch_key="batch")
    reference = model_cls(known, n_clusters=4, dispersion="gene-batch")
    reference.train(**SHORT)
    query = model_cls.load_query_data(adata[codes >= 3].copy(), reference)
    old_state = reference.module.state_dict()
    grown = set()
    for name, new in query.module.state_dict().items():
        old = old_state[name]
        if new.shape == old.shape:
            continue
        grown.add(name.split(".")[0])
        if name == "batch_frequencies":
            expected = torch.cat([old, torch.zeros(2)])
        elif name.endswith("log_theta"):
            expected = torch.cat([old, old.mean(dim=0).expand(2, -1)])
        elif n_known == 1:  # a single batch has no column: all start without effect
            expected = torch.cat([old, torch.zeros(len(old), 3)], dim=1)
        else:
            expected = torch.cat([old, old[:, -3:].mean(dim=1, keepdim=True).expand(-1, 2)], dim=1)
        torch.testing.assert_close(new, expected, msg=name)
    assert grown >= {"decoder", "batch_frequencies"}
