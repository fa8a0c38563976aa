from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import scdeepclust as sdc
from scdeepclust.tl import _integration
from scdeepclust.tl._integration import _neighbors, _with_totals


@pytest.fixture
def embedded(adata):
    """Types apart and batches together, types apart but batches too, and noise; one batch has three cells."""
    rng = np.random.default_rng(0)
    types = np.eye(4)[adata.obs["cell_type"].cat.codes] * 5
    batch = adata.obs["batch"].astype(str).to_numpy()
    batch[:3] = "tiny"
    adata.obs["batch"] = batch
    shift = 8.0 * (batch[:, None] == np.unique(batch))
    adata.obsm["good"] = types @ rng.normal(size=(4, 8)) + rng.normal(size=(adata.n_obs, 8))
    adata.obsm["batchy"] = np.c_[adata.obsm["good"], shift + rng.normal(size=shift.shape)]
    adata.obsm["noise"] = rng.normal(size=(adata.n_obs, 8))
    adata.obs["found"] = adata.obs["cell_type"].astype(str).replace({"type_3": "type_2"})
    return adata


@pytest.mark.slow
def test_scores_rank_embeddings_as_they_were_made(embedded):
    embeddings = {"noise": None, "batchy": None, "good": "found"}
    table = sdc.tl.benchmark_integration(embedded, embeddings, batch_key="batch", label_key="cell_type")
    assert table.index[0] == "good"
    assert table.loc["good", "Bio conservation"] > table.loc["noise", "Bio conservation"] + 0.2
    assert table.loc["good", "Batch correction"] > table.loc["batchy", "Batch correction"] + 0.2
    assert table.loc["batchy", "iLISI"] < 0.2 < table.loc["good", "iLISI"]
    # an adjusted Rand index of noise may fall a little below 0
    assert table.drop(columns=["Own ARI", "Own NMI"]).stack().between(-0.1, 1 + 1e-6).all()
    expected = sdc.tl.score_clusters(embedded, "found", label_key="cell_type")
    np.testing.assert_allclose(table.loc["good", "Own ARI"], expected.loc["found", "ARI"])
    assert table.loc[["noise", "batchy"], "Own ARI"].isna().all()
    ax = sdc.pl.benchmark_table(table)
    assert len(ax.get_yticklabels()) == 4


def test_principal_components_and_bare_labels_have_a_row(embedded, monkeypatch, capsys):
    sizes = []

    def scores(points, labels, batch):
        sizes.append(len(points))
        return {"cLISI": float(points.var()), "iLISI": 0.5}

    monkeypatch.setattr(_integration, "_scores", scores)
    embedded.obs["bare"] = embedded.obs["cell_type"]
    before = set(embedded.obsm), set(embedded.uns)
    options = {"batch_key": "batch", "label_key": "cell_type", "max_cells": 200}
    table = sdc.tl.benchmark_integration(embedded, {"good": "found"}, labels=["bare"], **options)
    assert set(table.index) == {"good", "X_pca", "bare"}
    assert table.loc["bare", "Own ARI"] == 1
    assert table.loc["bare"].drop(["Own ARI", "Own NMI"]).isna().all()
    assert table.loc["good", "Own ARI"] < 1
    assert np.isnan(table.loc["X_pca", "Own ARI"])
    assert sizes == [table.attrs["n_cells"]] * 2
    assert f"on {sizes[0]} of 400 cells" in capsys.readouterr().err
    assert (set(embedded.obsm), set(embedded.uns)) == before
    with pytest.raises(ValueError, match="`labels`.*'nothing'"):
        sdc.tl.benchmark_integration(embedded, ["good"], labels="nothing", **options)
    with pytest.raises(ValueError, match="`max_cells` must be at least 100"):
        sdc.tl.benchmark_integration(embedded, ["good"], **(options | {"max_cells": 5}))


def test_the_sample_keeps_shares_and_rare_types():
    types = np.repeat(["a", "b", "rare"], [7000, 2970, 30])
    batch = np.tile(["x", "y"], 5000)
    chosen = _integration._stratified(types, batch, 1000)
    found = pd.Series(types[chosen]).value_counts()
    assert found["a"] == 700
    assert found["b"] == pytest.approx(297, abs=2)
    assert found["rare"] == 30
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(_integration._stratified(types, batch, 10_000), np.arange(10_000))


def test_totals_weigh_means_of_what_every_embedding_has():
    table = pd.DataFrame(
        {"KMeans ARI": [0.2, 0.8], "cLISI": [0.4, 0.6], "iLISI": [0.5, 0.1], "KBET": [np.nan, 1.0],
         "Silhouette batch": [1.0, 0.0]},
        index=["a", "b"],
    )  # fmt: skip
    result = _with_totals(table)
    assert list(result.index) == ["b", "a"]
    np.testing.assert_allclose(result.loc["a", ["Bio conservation", "Batch correction"]].astype(float), [0.3, 0.5])
    np.testing.assert_allclose(result.loc["b", "Total"], 0.6 * 0.7 + 0.4 * 0.1)
    assert result["KBET"].isna().all()


def test_neighbours_start_with_the_cell_itself_also_where_cells_coincide():
    points = np.repeat(np.random.default_rng(0).normal(size=(10, 3)), 6, axis=0)
    for result in _neighbors(points).values():
        np.testing.assert_array_equal(result.indices[:, 0], np.arange(60))
        assert all(len(set(row)) == len(row) for row in result.indices)
        np.testing.assert_allclose(result.distances[:, 1:6], 0, atol=1e-7)


def test_missing_names_are_listed(embedded):
    keys = {"batch_key": "batch", "label_key": "cell_type"}
    with pytest.raises(ValueError, match=r"`embeddings`.*'X_pca'.*'good'"):
        sdc.tl.benchmark_integration(embedded, ["X_pca"], **keys)
    with pytest.raises(ValueError, match="`label_key`.*'kind'"):
        sdc.tl.benchmark_integration(embedded, ["good"], **(keys | {"label_key": "kind"}))
    embedded.obs["one"] = "x"
    with pytest.raises(ValueError, match="`batch_key`.*single value"):
        sdc.tl.benchmark_integration(embedded, ["good"], **(keys | {"batch_key": "one"}))
    with pytest.raises(ValueError, match="both 'batch'"):
        sdc.tl.benchmark_integration(embedded, ["good"], batch_key="batch", label_key="batch")
    with pytest.raises(ValueError, match="`embeddings` is empty"):
        sdc.tl.benchmark_integration(embedded, [], **keys)


def test_the_table_shows_every_score_and_marks_the_best():
    table = pd.DataFrame(
        {"iLISI": [0.5, 0.1], "KBET": [np.nan, np.nan], "Bio conservation": [0.7, 0.8],
         "Batch correction": [0.6, 0.2], "Total": [0.66, 0.56]},
        index=["X_gmvae", "X_pca"],
    )  # fmt: skip
    ax = sdc.pl.benchmark_table(table)
    shown = {text.get_position(): text for text in ax.texts}
    assert shown[(0, 0)].get_text() == "0.50"
    assert (1, 0) not in shown
    assert np.isnan(np.asarray(ax.images[0].get_array().filled(np.nan))[:, 1]).all()
    colors = np.asarray(ax.images[0].get_array().filled(np.nan))
    np.testing.assert_allclose(colors[:, 0], [0.5, 0.1])  # the scores themselves: one scale for all rows and columns
    np.testing.assert_allclose(colors[:, 2], [0.7, 0.8])
    assert ax.images[0].get_clim() == (0, 1.6)
    assert shown[(2, 1)].get_weight() == "bold"
    assert shown[(2, 0)].get_weight() == "normal"
    with pytest.raises(ValueError, match="benchmark_integration"):
        sdc.pl.benchmark_table(table[["iLISI"]])
