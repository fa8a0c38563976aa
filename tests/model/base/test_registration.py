"""What is registered of data, whatever the types of their columns and matrices, and what is refused, by name."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scvi
from malformed import fails, small
from scipy.sparse import csr_matrix

import scdeepclust as sdc
from scdeepclust.model import GMVAE, SCDeepCluster

SHORT = {"pretrain_epochs": 2, "max_epochs": 1, "enable_progress_bar": False, "accelerator": "cpu"}


@pytest.fixture(autouse=True)
def _seed():
    scvi.settings.seed = 0
    yield
    scvi.settings.seed = None


def registered(adata, **setup):
    SCDeepCluster.setup_anndata(adata, **setup)
    return SCDeepCluster._get_most_recent_anndata_manager(adata).registry["field_registries"]


def fitted(adata, model_cls=SCDeepCluster, **setup):
    model_cls.setup_anndata(adata, **setup)
    model = model_cls(adata, n_clusters=3, n_hidden=16, n_latent=4)
    model.train(**SHORT)
    return model


# -- categories --------------------------------------------------------------------------------------------------------


def test_categories_without_cells_are_not_registered(tiny):
    expected = fitted(tiny.copy(), batch_key="batch", categorical_covariate_keys=["kit"]).predict(soft=True)
    adata = tiny.copy()
    adata.obs["batch"] = pd.Categorical(adata.obs["batch"], ["gone", *sorted(set(adata.obs["batch"])), "never"])
    adata.obs["kit"] = adata.obs["kit"].cat.add_categories(["never"])
    before = {key: adata.obs[key].copy() for key in ("batch", "kit")}
    model = fitted(adata, batch_key="batch", categorical_covariate_keys=["kit"])
    fields = model.registry_["field_registries"]
    assert list(fields["batch"]["state_registry"]["categorical_mapping"]) == sorted(set(tiny.obs["batch"]))
    assert fields["extra_categorical_covs"]["state_registry"]["n_cats_per_key"] == [2]
    assert model.module.n_batch == 2
    for key, column in before.items():
        pd.testing.assert_series_equal(adata.obs[key], column)
    pd.testing.assert_frame_equal(model.predict(soft=True), expected)
    new = tiny.copy()
    new.obs["batch"] = "never"
    with pytest.raises(ValueError, match="has not seen: 'never'"):
        model.predict(new)
    query = SCDeepCluster.load_query_data(new, model)
    assert query.module.n_batch == 3
    one = adata[adata.obs["batch"] == adata.obs["batch"].iloc[0]].copy()
    assert len(registered(one, batch_key="batch")["batch"]["state_registry"]["categorical_mapping"]) == 1


TYPES = {
    "int": lambda codes: codes,
    "uint8": lambda codes: codes.astype(np.uint8),
    "float": lambda codes: codes.astype(float) + 0.5,
    "bool": lambda codes: codes.astype(bool),
    "Int64": lambda codes: pd.array(codes, dtype="Int64"),
    "boolean": lambda codes: pd.array(codes.astype(bool), dtype="boolean"),
    "string": lambda codes: pd.array(np.where(codes, "b", "a"), dtype="string"),
    "categories of numbers": lambda codes: pd.Categorical(codes),
    "text": lambda codes: np.where(codes, "b", "a").astype(object),
    "dates": lambda codes: pd.to_datetime(np.where(codes, "2026-01-02", "2026-01-01")),
}


@pytest.fixture(scope="module")
def with_text(tiny):
    """Assignments by a model whose batches are text, and the other covariate as well."""
    adata = tiny.copy()
    adata.obs["batch"] = adata.obs["kit"] = np.where(np.arange(120) % 2, "b", "a")
    scvi.settings.seed = 0  # this comes before what each test does
    return fitted(adata, batch_key="batch", categorical_covariate_keys=["kit"]).predict(soft=True)


@pytest.mark.parametrize("kind", TYPES)
def test_batches_of_any_type_give_what_text_gives(tiny, with_text, kind):
    codes = np.arange(120) % 2
    adata = tiny.copy()
    adata.obs["batch"] = adata.obs["kit"] = TYPES[kind](codes)
    model = fitted(adata, batch_key="batch", categorical_covariate_keys=["kit"])
    pd.testing.assert_frame_equal(model.predict(soft=True), with_text)
    pd.testing.assert_frame_equal(model.predict(adata.copy(), soft=True), with_text)
    query = SCDeepCluster.load_query_data(adata[:20].copy(), model)  # one of known batches
    assert query.module.n_batch == 2


@pytest.mark.parametrize(
    ("values", "kinds"),
    [
        ([1, "1", 1, "a"], "numbers and text"),
        ([True, False, "x", "x"], "text and truth values"),
        ([1.5, "a", "b", "a"], "text"),
    ],
)
def test_columns_of_several_types_are_refused(values, kinds):
    for column in (pd.Series(values, dtype=object), pd.Categorical(values)):
        adata = small(d=pd.Series(column).array)
        fails(adata, f"`batch_key`: column 'd' of `adata.obs` mixes .*{kinds}.*astype", batch_key="d")
        fails(adata, "mixes", categorical_covariate_keys=["d"])
        adata.obs["d"] = adata.obs["d"].astype(str)  # the remedy
        SCDeepCluster.setup_anndata(adata, batch_key="d")


@pytest.mark.parametrize(("known", "new"), [([0, 1], ["0", "2"]), (["0", "1"], [0, 2]), ([0.5, 1.5], ["0.5", "x"])])
def test_batches_of_another_type_are_refused_in_a_query(tiny, known, new):
    adata = tiny.copy()
    adata.obs["batch"] = np.array(known)[np.arange(120) % 2]
    model = fitted(adata, batch_key="batch")
    query = tiny.copy()
    query.obs["batch"] = np.array(new)[np.arange(120) % 2]
    for call in (lambda: SCDeepCluster.load_query_data(query, model), lambda: model.predict(query)):
        with pytest.raises(ValueError, match="the model has not seen.*The known ones are (text|numbers): run") as error:
            call()
        assert not [name for name in (*query.obs, *query.uns) if "scvi" in name]
    query.obs["batch"] = query.obs["batch"].iloc[0]
    exec(str(error.value).split("run `")[1].split("`")[0], {"adata": query})
    if new[0] in ("0", "0.5", 0):  # the same batch, of another type
        assert len(model.predict(query)) == 120


def test_new_batches_of_a_query_follow_the_known_ones(tiny):
    adata, query = tiny.copy(), tiny.copy()
    adata.obs["batch"] = np.array([10, 20])[np.arange(120) % 2]
    model = fitted(adata, batch_key="batch")
    query.obs["batch"] = np.array([30, 10, 15])[np.arange(120) % 3]
    query = SCDeepCluster.load_query_data(query, model)
    mapping = query.registry_["field_registries"]["batch"]["state_registry"]["categorical_mapping"]
    assert list(mapping) == [10, 20, 15, 30]
    np.testing.assert_array_equal(mapping[query.adata.obs["_scvi_batch"]], query.adata.obs["batch"])


def test_columns_that_cannot_be_what_they_are_given_as():
    fails(small(d=list("abab")), "`batch_key` must be the name of one column", batch_key=["d"])
    fails(small(d=[1, 2, 3, 4]), "names a column twice", continuous_covariate_keys=["d", "d"])
    fails(small(d=[[1], [1], [2], [2]]), "values that are no categories", batch_key="d")
    fails(small(d=[1, 2, 3, 1e9]), "'d' of `adata.obs` has values as large as 1e", continuous_covariate_keys=["d"])
    fails(small(d=pd.to_datetime(["2026"] * 4)), "finite numbers", continuous_covariate_keys=["d"])
    twice = small(d=list("abab"), e=list("abab"))
    twice.obs.columns = ["d", "d"]
    with pytest.raises(ValueError, match="2 columns 'd'"):
        SCDeepCluster.setup_anndata(twice, batch_key="d")
    with pytest.raises(TypeError, match="`adata` must be an AnnData object, found ndarray"):
        SCDeepCluster.setup_anndata(np.ones((3, 3)))


@pytest.mark.parametrize(
    "ages", [["1", "2.5", "0", "3"], pd.array([1, 2, 0, 3], dtype="Int64"), pd.Categorical([1, 2, 0, 3]), [True] * 4]
)
def test_continuous_covariates_are_numbers_whatever_their_type(ages):
    adata = small(age=ages)
    registered(adata, continuous_covariate_keys=["age"])
    values = adata.obsm["_scvi_extra_continuous_covs"]["age"]
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, np.asarray(pd.Series(ages).astype(object), dtype=np.float32))


# -- matrices ----------------------------------------------------------------------------------------------------------


REFUSED = {
    "object": (lambda x: x.astype(object), "dtype object"),
    "text": (lambda x: x.astype(str), "dtype <U"),
    "complex": (lambda x: x.astype(complex), "dtype complex128"),
    "dates": (lambda x: x.astype("M8[s]"), "dtype datetime64"),
    "masked": (lambda x: np.ma.masked_array(x, mask=x == 3), "masked array with 1 masked"),
    "too large": (lambda x: x * 1e12, "no counts"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("layer", [None, "l"])
def test_matrices_that_hold_no_numbers_are_refused(kind, layer):
    change, match = REFUSED[kind]
    adata, x = small(), np.arange(1, 13).reshape(4, 3)
    if layer is None:
        adata = anndata.AnnData(change(x), obs=adata.obs, var=adata.var)
    else:
        adata.layers[layer] = change(x)
    where = "adata.X" if layer is None else r"adata.layers\['l'\]"
    fails(adata, f"`{where}` .*{match}", layer=layer)


def test_fractions_are_shown_as_they_are_and_rounding_is_named():
    x = np.arange(1, 13, dtype=np.float32).reshape(4, 3)
    x[2, 1] = np.nextafter(np.float32(8), np.float32(7))
    for convert in (np.asarray, csr_matrix):
        adata = small()
        adata.X = convert(x)
        with pytest.raises(ValueError, match=r"such as 7.9999995.*`adata.X = np.rint\(adata.X\)`") as error:
            SCDeepCluster.setup_anndata(adata)
        exec(str(error.value).split("run `")[1].split("`")[0], {"np": np, "adata": adata})
        SCDeepCluster.setup_anndata(adata)
    with pytest.raises(ValueError, match="such as 0.5") as error:
        SCDeepCluster.setup_anndata(small(x / 2))
    assert "rint" not in str(error.value)


def test_the_remedy_names_where_counts_are(tiny):
    tiny = anndata.AnnData(tiny.X, obs=tiny.obs, var=tiny.var)
    logged = tiny.copy()
    logged.X = np.log1p(tiny.X.toarray())
    with pytest.raises(ValueError, match=r"there are none in X, raw and the layers \[\]"):
        SCDeepCluster.setup_anndata(logged)
    adata = logged.copy()
    adata.layers["umi"], adata.layers["scaled"] = tiny.X, logged.X * 2
    for layer in (None, "scaled"):
        with pytest.raises(ValueError, match=r"Counts are in `adata.layers\['umi'\]`: give `layer='umi'`"):
            SCDeepCluster.setup_anndata(adata, layer=layer)
    adata = tiny.copy()
    adata.layers["logged"] = logged.X
    with pytest.raises(ValueError, match="Counts are in `adata.X`: give `layer=None`"):
        SCDeepCluster.setup_anndata(adata, layer="logged")


def test_counts_in_raw_are_named_and_the_remedy_works(tiny, tmp_path):
    tiny = anndata.AnnData(tiny.X, obs=tiny.obs, var=tiny.var)
    adata = tiny.copy()
    adata.raw = tiny
    adata.X = csr_matrix(np.log1p(tiny.X.toarray()))
    adata = adata[:, 10:].copy()
    adata.write_h5ad(tmp_path / "a.h5ad")
    on_disk = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    for data in (adata, on_disk):
        with pytest.raises(ValueError, match="Counts are in `adata.raw.X`") as error:
            SCDeepCluster.setup_anndata(data)
        names = {"adata": data}
        for step in str(error.value).split("`")[3::2]:
            exec(step, names) if step.startswith("adata") else None
        SCDeepCluster.setup_anndata(names["adata"], layer="counts")
        np.testing.assert_array_equal(names["adata"].layers["counts"].toarray(), tiny.X[:, 10:].toarray())


def test_a_registration_that_fails_half_way_leaves_nothing(monkeypatch):
    from scvi.data.fields import NumericalJointObsField

    def broken(self, adata):
        raise RuntimeError("disk full")

    monkeypatch.setattr(NumericalJointObsField, "register_field", broken)
    adata = small(d=list("abab"), age=[1, 2, 3, 4])
    with pytest.raises(RuntimeError, match="disk full"):
        SCDeepCluster.setup_anndata(adata, batch_key="d", continuous_covariate_keys=["age"])
    names = [name for name in (*adata.obs, *adata.obsm, *adata.uns) if "scvi" in name]
    assert not names


# -- size factors ------------------------------------------------------------------------------------------------------


def test_size_factors_on_any_scale_give_the_same_model(tiny):
    """Total counts, as users of scVI give them, and factors about 1; total counts are also the default."""
    totals = np.asarray(tiny.X.sum(axis=1)).ravel()
    results = []
    for factors in (None, totals, totals / np.median(totals), totals / 1e4):
        adata = tiny.copy()
        adata.obs["size"] = 1.0 if factors is None else factors
        model = fitted(adata, GMVAE, size_factor_key=None if factors is None else "size")
        results.append(model.get_latent_representation())
        np.testing.assert_allclose(model.get_latent_library_size().ravel(), totals, rtol=1e-4)
        pd.testing.assert_frame_equal(model.predict(adata.copy(), soft=True), model.predict(soft=True), atol=1e-5)
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=2e-3)


def test_statistics_of_genes_use_the_size_factors(tiny):
    factors = np.random.default_rng(0).uniform(0.3, 3, 120)
    adata = tiny.copy()
    adata.obs["size"] = factors
    model = fitted(adata, size_factor_key="size")
    library = factors / np.median(factors) * np.median(np.asarray(tiny.X.sum(axis=1)))
    y = np.log1p(tiny.X.toarray() / library[:, None] * 1e4)
    np.testing.assert_allclose(model.module.gene_mean, y.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(model.module.gene_sd, y.std(axis=0), rtol=1e-3)


def test_size_factors_of_new_cells_on_another_scale_are_refused(tiny, tmp_path):
    adata, totals = tiny.copy(), np.asarray(tiny.X.sum(axis=1)).ravel()
    adata.obs["size"] = totals
    model = fitted(adata, size_factor_key="size")
    new = adata.copy()
    new.obs["size"] = totals / np.median(totals)
    with pytest.raises(ValueError, match="`size_factor_key`: .* another scale .*median is 1 against"):
        model.predict(new)
    query = SCDeepCluster.load_query_data(new, model)
    with pytest.raises(ValueError, match="`size_factor_key`: .* another scale"):
        query.train(max_epochs=0, enable_progress_bar=False)
    deeper = anndata.AnnData(tiny.X * 50, obs=adata.obs.assign(size=totals * 50), var=adata.var)
    assert len(model.predict(deeper)) == 120
    model.save(str(tmp_path / "m"))
    loaded = SCDeepCluster.load(str(tmp_path / "m"), adata)
    assert float(loaded.module.median_size_factor) == np.median(totals)


# -- the start ---------------------------------------------------------------------------------------------------------


def test_start_labels_that_only_held_out_cells_have_are_found_before_training(tiny):
    from scdeepclust.train import split_cells

    _, held_out, _ = split_cells(120, 0.8, None, 0)
    labels = np.array(tiny.obs["cell_type"], dtype=object)
    labels[held_out[:3]] = "rare"
    adata = tiny.copy()
    adata.obs["guide"] = np.where(np.arange(120) % 2, "x", "y")
    adata.obs.iloc[held_out[:2], adata.obs.columns.get_loc("guide")] = "z"
    for model_cls, arguments, match in (
        (SCDeepCluster, {"n_clusters": 4, "init": labels}, "`init`: no training cell has 'rare'"),
        (sdc.model.IDC, {"init": labels}, "`init`: no training cell has 'rare'"),
        (sdc.model.MFCVAE, {"n_clusters": 3, "guides": "guide"}, "`guides`: no training cell has 'z'"),
    ):
        model_cls.setup_anndata(adata)
        model = model_cls(adata, n_hidden=16, n_latent=4, **arguments)
        with pytest.raises(ValueError, match=match):
            model.train(train_size=0.8, **SHORT)
        assert not model.history
        model.train(**SHORT)


@pytest.mark.parametrize("name", sdc.model.__all__)
@pytest.mark.parametrize(("n_cells", "n_clusters"), [(6, 5), (2, 2)])
def test_nearly_as_many_clusters_as_cells(tiny, name, n_cells, n_clusters):
    model_cls, adata = getattr(sdc.model, name), tiny[:n_cells].copy()
    model_cls.setup_anndata(adata)
    more = {"grid": (3, 3)} if name == "SOMVAE" else {"n_facet_clusters": 2} if name == "MFCVAE" else {}
    model = model_cls(adata, n_clusters=n_clusters, n_hidden=16, n_latent=4, **more)
    if name == "MFCVAE" and n_cells == 2:
        with pytest.raises(ValueError, match="`n_facets`: .* 2 clusters takes 3 cells"):
            model.train(**SHORT)
        return
    model.train(**SHORT)
    assert np.isfinite(model.predict(soft=True)).all(axis=None)
    assert np.isfinite(model.get_latent_representation()).all()
