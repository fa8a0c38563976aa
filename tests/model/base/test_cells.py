"""Which cells a getter reads: changed in place, of others, chosen in any way; and what it leaves behind."""

from __future__ import annotations

import gc
import pickle
import weakref

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

import scdeepclust as sdc

MODELS = sdc.model.__all__

# Getters whose values are draws for some models: they are called, their values are not compared.
DRAWN = ("expression", "parameters")
SLOTS = ("obs", "var", "obsm", "varm", "obsp", "layers", "uns")


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


def traces(adata) -> bytes:
    """All that a call could change."""
    x = adata.X.toarray() if hasattr(adata.X, "toarray") else adata.X
    return x.tobytes() + pickle.dumps(
        [{key: getattr(adata, slot)[key] for key in getattr(adata, slot)} for slot in SLOTS]
    )


def getters(model):
    """The getters of a model that take cells, as calls with them."""
    calls = {
        "predict": lambda a, **k: model.predict(a, soft=True, **k),
        "latent": lambda a, **k: model.get_latent_representation(a, **k),
        "library": lambda a, **k: model.get_latent_library_size(a, **k),
        "expression": lambda a, **k: model.get_normalized_expression(a, **k),
        "gates": lambda a, **k: model.get_gates(a, **k).toarray(),
        "facets": lambda a, **k: model.get_facets(a, **k),
        "facet probabilities": lambda a, **k: model.get_facet_probabilities(1, a, **k),
        "facet representation": lambda a, **k: model.get_facet_representation(1, a, **k),
        "facet kl": lambda a, **k: model.get_facet_kl(a, **k),
        "nodes": lambda a, **k: model.get_nodes(a, **k),
        "parameters": lambda a, **k: model.get_likelihood_parameters(a, give_mean=True, n_samples=2, **k)["mean"],
    }
    own = {"gates": "get_gates", "nodes": "get_nodes"}
    own |= dict.fromkeys(["facets", "facet probabilities", "facet representation", "facet kl"], "get_facets")
    return {key: call for key, call in calls.items() if hasattr(model, own.get(key, "predict"))}


# -- the data of the model, changed in place ---------------------------------------------------------------------------


def test_own_genes_in_another_order_are_put_into_order(loaded, name):
    model = loaded(name)
    before = {key: np.asarray(call(None)) for key, call in getters(model).items() if key not in DRAWN}
    model.adata._inplace_subset_var(model.adata.var_names[::-1])
    for key, expected in before.items():
        after = np.asarray(getters(model)[key](None))
        if expected.dtype.kind == "f":
            np.testing.assert_allclose(after, expected, atol=1e-4, err_msg=key)
        else:
            assert (after[:, 0] == expected[:, 0]).all(), key
    model.write_back(key_added="mine", confidence="posterior")
    np.testing.assert_array_equal(model.adata.obs["mine"].astype(str), model.predict())
    with pytest.raises(ValueError, match="other genes than at `setup_anndata`, or in another order"):
        model.train(max_epochs=1, enable_progress_bar=False)


def filter_genes(adata):
    sc.pp.filter_genes(adata, min_cells=int(np.sort(np.asarray((adata.X > 0).sum(axis=0)).ravel())[5]) + 1)


CHANGES = {
    "genes filtered": (filter_genes, "lacks .* of the 60 genes"),
    "logged": (sc.pp.log1p, "not whole numbers"),
    "normalised": (lambda a: sc.pp.normalize_total(a, target_sum=1e4), "not whole numbers"),
    "logged behind the back": (lambda a: np.log1p(a.X.data, out=a.X.data), "not whole numbers"),
    "scaled": (lambda a: setattr(a, "X", np.asarray(a.X.toarray() - 1)), "negative"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_own_data_that_are_no_counts_of_these_genes_any_more_are_refused_everywhere(loaded, name, change):
    model = loaded(name)
    alter, match = CHANGES[change]
    alter(model.adata)
    before = traces(model.adata)
    for key, call in getters(model).items():
        with pytest.raises(ValueError, match=f"{match}.*changed since `setup_anndata`"):
            call(None)
        assert traces(model.adata) == before, key
    with pytest.raises(ValueError, match=match):
        model.write_back(confidence="posterior")
    with pytest.raises(ValueError, match=match if "genes" not in change else "other genes"):
        model.train(max_epochs=1, enable_progress_bar=False)


def test_cells_that_were_filtered_in_place_are_left_out(loaded):
    model = loaded("SCDeepCluster")
    expected = model.predict(soft=True)
    model.adata._inplace_subset_obs(np.arange(120) % 3 > 0)
    pd.testing.assert_frame_equal(model.predict(soft=True), expected[np.arange(120) % 3 > 0], atol=1e-6)


def test_genes_changed_between_setup_and_model_are_refused(tiny):
    adata = tiny.copy()
    sdc.model.GMVAE.setup_anndata(adata)
    adata._inplace_subset_var(adata.var_names[:50])
    with pytest.raises(ValueError, match=r"other genes than at `setup_anndata`.*setup_anndata\(adata, ...\)` again"):
        sdc.model.GMVAE(adata, n_clusters=3)
    with pytest.raises(ValueError, match="not set up for IDC"):
        sdc.model.IDC(adata, n_clusters=3)


def test_another_model_on_the_same_data_does_not_take_its_batches(tiny):
    """Both write `_scvi_batch`; the codes a model trains on are its own."""
    adata = tiny.copy()
    sdc.model.SCDeepCluster.setup_anndata(adata, batch_key="batch")
    model = sdc.model.SCDeepCluster(adata, n_clusters=3, n_hidden=16, n_latent=4)
    codes = adata.obs["_scvi_batch"].copy()
    sdc.model.GMVAE.setup_anndata(adata)
    assert not adata.obs["_scvi_batch"].equals(codes)
    model.train(pretrain_epochs=1, max_epochs=0, enable_progress_bar=False, accelerator="cpu")
    assert adata.obs["_scvi_batch"].equals(codes)
    np.testing.assert_allclose(model.module.batch_frequencies, codes.value_counts(normalize=True).sort_index())


# -- other data --------------------------------------------------------------------------------------------------------


def test_no_getter_leaves_anything_in_data_that_are_not_the_models(loaded, tiny, name):
    model = loaded(name)
    for new in (tiny.copy(), tiny[:, ::-1].copy(), model.adata.copy(), tiny[5:60]):
        before, is_view = traces(new), new.is_view
        for key, call in getters(model).items():
            call(new)
            assert traces(new) == before, key
            assert new.is_view == is_view
        model.differential_expression(new, idx1=np.arange(20), silent=True)
        assert traces(new) == before
    without = loaded(name, False)
    without.predict(new)
    assert without.adata is None
    assert traces(new) == before


def test_nothing_is_left_when_a_getter_fails(loaded, tiny, name):
    model = loaded(name)
    for column, value in (("batch", "new"), ("kit", "c"), ("age", np.inf), ("batch", None), ("batch", 3)):
        new = tiny.copy()
        new.obs[column] = value
        before = traces(new)
        for call in getters(model).values():
            with pytest.raises(ValueError, match=column):
                call(new)
        assert traces(new) == before


@pytest.mark.parametrize(("column", "value"), [("batch", "new"), ("kit", "c"), ("age", np.nan), ("batch", 1)])
def test_a_model_is_not_loaded_with_data_it_cannot_describe(loaded, tiny, column, value):
    new = tiny.copy()
    new.obs[column] = value
    before = traces(new)
    with pytest.raises(ValueError, match=f"{column}.*"):
        loaded("GMVAE", new)
    assert traces(new) == before
    if value == "new":
        with pytest.raises(ValueError, match=r"batches the model has not seen: 'new'.*GMVAE.load_query_data"):
            loaded("GMVAE", new)


def test_other_data_are_not_kept(loaded, tiny, name):
    """Also where a copy with the genes of the model had to be made."""
    model = loaded(name)
    new = tiny[:, ::-1].copy()
    gc.collect()
    n_before = sum(issubclass(type(thing), anndata.AnnData) for thing in gc.get_objects())
    for call in getters(model).values():
        call(new)
    ref = weakref.ref(new)
    gc.collect()
    assert sum(issubclass(type(thing), anndata.AnnData) for thing in gc.get_objects()) == n_before
    del new
    gc.collect()
    assert ref() is None


def test_backed_data_with_other_genes_or_as_a_view(loaded, tiny, tmp_path, name):
    model = loaded(name)
    expected = model.predict(soft=True).to_numpy()
    tiny[:, ::-1].copy().write_h5ad(tmp_path / "a.h5ad")
    on_disk = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    np.testing.assert_allclose(model.predict(on_disk, soft=True), expected, atol=1e-5)
    np.testing.assert_allclose(model.predict(on_disk[10:30], soft=True), expected[10:30], atol=1e-5)
    with pytest.raises(ValueError, match=r"to_memory\(\)"):
        type(model).setup_anndata(on_disk[10:30])


# -- rows --------------------------------------------------------------------------------------------------------------


def chosen_rows(adata):
    """The same rows chosen in all ways, as {words: (indices, rows)}."""
    mask = np.arange(adata.n_obs) % 7 == 2
    rows = [5, 3, 17]
    return {
        "list": (rows, rows),
        "small integers": (np.array(rows, dtype=np.uint8), rows),
        "negative": ([-1, 0], [119, 0]),
        "twice": ([4, 4], [4, 4]),
        "names": (list(adata.obs_names[rows]), rows),
        "index": (adata.obs_names[rows], rows),
        "one name": (adata.obs_names[7], [7]),
        "one number": (7, [7]),
        "mask": (mask, np.flatnonzero(mask)),
        "list of truth values": (mask.tolist(), np.flatnonzero(mask)),
        "column": (pd.Series(mask, index=adata.obs_names), np.flatnonzero(mask)),
        "nullable column": (pd.Series(mask, dtype="boolean"), np.flatnonzero(mask)),
        "slice": (slice(3, 30, 4), np.arange(3, 30, 4)),
    }


def test_rows_can_be_chosen_in_every_way_in_every_getter(loaded, tiny, tmp_path, name):
    """Also from a file, which reads rows in another order than they are asked for."""
    model = loaded(name)
    tiny.write_h5ad(tmp_path / "a.h5ad")
    on_disk = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    for key, call in getters(model).items():
        if key in DRAWN:
            continue
        everything = call(None)
        for data in (None, on_disk):
            for words, (indices, rows) in chosen_rows(tiny).items():
                found = call(data, indices=indices)
                if isinstance(everything, pd.DataFrame):
                    pd.testing.assert_frame_equal(found, everything.iloc[rows], atol=1e-4, obj=f"{key}, {words}")
                else:
                    np.testing.assert_allclose(found, everything[rows], atol=1e-4, err_msg=f"{key}, {words}")


@pytest.mark.parametrize(
    ("indices", "match"),
    [
        ([], "chooses no cells"),
        (slice(5, 5), "chooses no cells"),
        (np.zeros(120, dtype=bool), "chooses no cells"),
        ([3, 120], "row 120 is out of range for 120 cells"),
        ([-121], "row -121 is out of range"),
        ([True, False], "found a mask of 2"),
        (["nobody"], "1 names are not in `adata.obs_names`, such as 'nobody'"),
        ([1.5], "found values such as 1.5"),
        ([[1, 2]], r"found an array of shape \(1, 2\)"),
        (slice("a", "b"), "chooses no cells"),
    ],
)
def test_rows_that_are_not_there_are_named(loaded, indices, match):
    model = loaded("MFCVAE")
    for call in getters(model).values():
        with pytest.raises(ValueError, match=f"`indices`.*{match}"):
            call(None, indices=indices)
    with pytest.raises(ValueError, match=f"`donors`.*{match}"):
        model.swap_facets(1, [1], indices)


@pytest.mark.parametrize("batch_size", [0, -3, 2.5, "all", True])
def test_impossible_batch_sizes(loaded, name, batch_size):
    model = loaded(name)
    for call in getters(model).values():
        with pytest.raises(ValueError, match=f"`batch_size` must be .*{batch_size}"):
            call(None, batch_size=batch_size)


def test_arguments_of_inherited_getters(loaded, name):
    model = loaded(name)
    for weights_of in (model.get_normalized_expression, model.differential_expression):
        with pytest.raises(ValueError, match="`weights='importance'` assumes a standard normal prior"):
            weights_of(weights="importance")
    with pytest.raises(ValueError, match="`transform_batch`: there is no batch 'x'; found 'batch0'|'x'"):
        model.get_normalized_expression(transform_batch="x")
    with pytest.raises(ValueError, match="`gene_list`: 1 genes are not in the model, such as 'x'"):
        model.get_normalized_expression(gene_list=["x"])
    with pytest.raises(ValueError, match="`groupby` must be a column"):
        model.differential_expression(groupby="x")
    with pytest.raises(ValueError, match="`group1`: there is no group 'x'"):
        model.differential_expression(groupby="batch", group1="x")
    with pytest.raises(ValueError, match="`idx1`: the query"):
        model.differential_expression(idx1="x == 3")
