from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scdeepclust.datasets import pbmc68k_reduced, simulate_counts
from scdeepclust.datasets._pbmc import _counts_from_log1p


def assert_counts(adata):
    for matrix in (adata.X, adata.layers["counts"]):
        assert isinstance(matrix, sparse.csr_matrix)
        assert matrix.dtype == np.float32
        assert np.all(matrix.data == np.round(matrix.data))
        assert matrix.data.min() >= 1
        assert matrix.sum(axis=1).min() >= 1
    assert not np.shares_memory(adata.X.data, adata.layers["counts"].data)


# --- pbmc68k_reduced


def test_pbmc_reproduces_what_scanpy_stores():
    import scanpy as sc

    adata, stored = pbmc68k_reduced(), sc.datasets.pbmc68k_reduced()
    assert_counts(adata)
    assert adata.X.nnz == 174_400
    assert adata.X.max() == 259
    dense = adata.X.toarray().astype(np.float64)
    printed = np.round(np.log1p(1e4 * dense / stored.obs["n_counts"].to_numpy(np.float64)[:, None]), 3)
    np.testing.assert_allclose(printed, stored.raw.X.toarray(), atol=1.01e-3)
    # the kept genes cannot hold more UMI than the cell has
    assert np.all(dense.sum(axis=1) <= adata.obs["n_counts"])
    assert list(adata.obs["cell_type"]) == list(stored.obs["bulk_labels"])
    assert adata.obs["cell_type"].nunique() == 10
    assert adata.obs["batch"].nunique() == 8
    assert adata.obs["batch"].iloc[0] == stored.obs_names[0][-1]


def test_recovery_is_exact_on_counts_stored_the_same_way():
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(0.5, (30, 40)).astype(np.float32))
    library = rng.integers(1000, 5000, 30)
    stored = counts.multiply(1e4 / library[:, None]).tocsr()
    stored.data = np.round(np.log1p(stored.data), 3).astype(np.float32)
    assert (_counts_from_log1p(stored, library) != counts).nnz == 0


@pytest.mark.parametrize("damage", ["scaled", "other target sum", "ambiguous"])
def test_recovery_refuses_what_it_cannot_decide(damage):
    counts = sparse.csr_matrix(np.arange(1, 41, dtype=np.float32).reshape(4, 10))
    library = np.full(4, 3000.0)
    stored = counts.copy()
    if damage == "ambiguous":  # so deep a cell that neighbouring counts print alike
        stored.data = np.round(np.log1p(5000 + stored.data), 3)
        library = np.full(4, 1e4)
    else:
        stored.data = np.round(np.log1p(stored.data * (1e4 if damage == "scaled" else 1e6 / 7) / 3000), 3)
        if damage == "scaled":
            stored.data = stored.data / 1.7
    with pytest.raises(ValueError, match="cannot be recovered"):
        _counts_from_log1p(stored, library)


# --- simulate_counts


def test_defaults_look_like_single_cell_counts():
    adata = simulate_counts()
    assert adata.shape == (1000, 1000)
    assert_counts(adata)
    assert 0.87 <= 1 - adata.X.nnz / 1e6 <= 0.93
    sizes = adata.obs["cell_type"].value_counts(sort=False)
    assert list(sizes.index) == [f"type_{i}" for i in range(5)]
    assert sizes["type_0"] > 3 * sizes["type_4"]
    assert adata.obs["batch"].nunique() == 1
    assert list(adata.obs.columns) == ["cell_type", "batch"]


def test_one_seed_one_result():
    options = {"n_clusters": 3, "n_batches": 2, "n_facet_groups": 2, "n_time_points": 3, "n_markers": 5}
    first, again, other = (simulate_counts(700, 80, **options, seed=s) for s in (3, 3, 4))
    assert (first.X != again.X).nnz == 0
    assert first.obs.equals(again.obs)
    assert (first.X != other.X).nnz > 0


def test_mean_and_variance_are_those_of_the_negative_binomial():
    adata = simulate_counts(
        20_000, 30, n_clusters=2, cluster_proportions=[0.5, 0.5], n_markers=3, depth=90, inverse_dispersion=1.5, seed=5
    )
    counts, totals = adata.X.toarray().astype(np.float64), np.asarray(adata.X.sum(axis=1)).ravel()
    library_variance = np.exp(0.35**2) - 1  # squared variation coefficient of the lognormal library size
    for label in ("type_0", "type_1"):
        x = counts[adata.obs["cell_type"] == label]
        mean, variance = x.mean(axis=0), x.var(axis=0)
        # x | l ~ NB(l m, theta) and l has mean 1 and variance v: var = m + m^2 ((1 + v)(1 + 1/theta) - 1)
        expected = mean + mean**2 * ((1 + library_variance) * (1 + 1 / 1.5) - 1)
        np.testing.assert_allclose(np.log(variance / expected), 0, atol=0.25)
        assert abs(np.median(np.log(variance / expected))) < 0.05
    np.testing.assert_allclose(totals.mean(), 90 * np.exp(0.35**2 / 2), rtol=0.02)


def test_markers_rise_in_their_own_cluster_as_much_as_stated():
    adata = simulate_counts(6000, 200, n_clusters=3, n_markers=10, depth=400, inverse_dispersion=50.0, seed=2)
    truth = adata.varm["true_log_fold_changes"]
    others = adata.var["marker_of"] == "none"
    assert others.sum() == 170
    assert np.all(truth[others] == 0)
    share = {t: np.asarray(adata[adata.obs["cell_type"] == t].X.sum(axis=0)).ravel() for t in truth.columns}
    # unmarked genes are the common yardstick: the shares themselves are compositional
    level = {t: np.log(s + 0.5) - np.log(s[others].sum()) for t, s in share.items()}
    seen = np.minimum.reduce(list(share.values())) > 100
    for t, u in (("type_0", "type_1"), ("type_1", "type_2"), ("type_2", "type_0")):
        measured = (level[t] - level[u])[seen]
        np.testing.assert_allclose(measured, (truth[t] - truth[u])[seen], atol=0.35)
        marked = (adata.var["marker_of"] == t).to_numpy() & seen
        assert marked.sum() >= 3
        assert np.all(truth[t][marked] >= 1.0)


def test_batches_differ_and_do_not_depend_on_clusters():
    adata = simulate_counts(4000, 100, n_clusters=2, n_batches=2, n_markers=5, batch_effect=0.5)
    table = adata.obs.groupby(["cell_type", "batch"], observed=True).size().unstack()
    share = table.div(table.sum(axis=1), axis=0)
    assert np.abs(share - 0.5).to_numpy().max() < 0.05
    profile = [np.asarray(adata[adata.obs["batch"] == b].X.sum(axis=0)).ravel() for b in ("batch_0", "batch_1")]
    well_seen = np.minimum(*profile) > 200
    shares = [p[well_seen] / p.sum() for p in profile]
    log_ratio = np.log(shares[0] / shares[1])
    assert 0.4 < log_ratio.std() < 1.1  # the difference of two effects of sd 0.5 has sd 0.7


def test_facet_is_independent_and_has_its_own_markers():
    from sklearn.metrics import adjusted_mutual_info_score

    adata = simulate_counts(3000, 100, n_clusters=3, n_facet_groups=2, n_markers=5)
    assert abs(adjusted_mutual_info_score(adata.obs["cell_type"], adata.obs["facet"])) < 0.01
    truth, facets = adata.varm["true_log_fold_changes"], adata.varm["true_facet_log_fold_changes"]
    assert not np.any((truth != 0).any(axis=1) & (facets != 0).any(axis=1))
    assert list(facets.columns) == ["facet_0", "facet_1"]
    genes = (adata.var["marker_of"] == "facet_1").to_numpy()
    inside = (adata.obs["facet"] == "facet_1").to_numpy()
    assert adata.X[inside][:, genes].mean() > 2 * adata.X[~inside][:, genes].mean()


def test_time_course_follows_its_transition_matrix():
    adata = simulate_counts(30_000, 60, n_clusters=6, n_time_points=5, n_markers=5)
    truth = adata.uns["simulation"]["transition_matrix"]
    np.testing.assert_allclose(truth.sum(axis=1), 1)
    assert set(zip(*np.nonzero(truth.to_numpy() - np.diag(np.diag(truth))), strict=True)) == {
        (0, 1), (1, 2), (1, 3), (2, 4), (3, 5)
    }  # fmt: skip
    states = adata.obs.assign(code=adata.obs["cell_type"].cat.codes).pivot(
        index="trajectory", columns="time", values="code"
    )
    assert states.shape == (6000, 5)
    assert (states[0] == 0).all()
    pairs = np.zeros((6, 6))
    for t in range(4):
        np.add.at(pairs, (states[t], states[t + 1]), 1)
    np.testing.assert_allclose(pairs / pairs.sum(axis=1, keepdims=True), truth, atol=0.03)
    assert not adata.obs["time"].is_monotonic_increasing


def test_a_state_keeps_the_markers_of_its_ancestors():
    adata = simulate_counts(100, 100, n_clusters=5, n_time_points=4, n_markers=5)
    truth = adata.varm["true_log_fold_changes"]
    marked = {t: set(truth.index[truth[t] != 0]) for t in truth.columns}
    assert [len(marked[f"type_{i}"]) for i in range(5)] == [5, 10, 15, 15, 20]
    assert marked["type_0"] < marked["type_1"] < marked["type_2"] < marked["type_4"]
    assert marked["type_2"] & marked["type_3"] == marked["type_1"]


def test_every_cell_has_a_count_even_when_shallow():
    adata = simulate_counts(2000, 20, n_clusters=2, n_markers=2, depth=1.0)
    assert_counts(adata)


def test_result_can_be_written_and_read(tmp_path):
    import anndata

    adata = simulate_counts(60, 50, n_clusters=2, n_facet_groups=2, n_time_points=3, n_markers=3)
    adata.write_h5ad(tmp_path / "simulated.h5ad")
    again = anndata.read_h5ad(tmp_path / "simulated.h5ad")
    assert (again.X != adata.X).nnz == 0
    assert again.uns["simulation"]["n_time_points"] == 3
    np.testing.assert_array_equal(again.varm["true_log_fold_changes"], adata.varm["true_log_fold_changes"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_cells": 1}, "n_cells must be at least 2; got 1"),
        ({"n_clusters": 1}, "n_clusters must be at least 2"),
        ({"n_batches": 0}, "n_batches must be at least 1"),
        ({"n_facet_groups": 1}, "n_facet_groups must be 0"),
        ({"n_time_points": -1}, "n_time_points must be 0"),
        ({"n_genes": 50}, "needs 100 genes, but n_genes=50"),
        ({"depth": 0.0}, "depth must be a positive number"),
        ({"inverse_dispersion": float("nan")}, "inverse_dispersion must be a positive number"),
        ({"cluster_proportions": [0.5, 0.5]}, "cluster_proportions must be 5 positive numbers"),
        ({"cluster_proportions": [1, 1, 1, 1, 0]}, "cluster_proportions must be 5 positive numbers"),
        ({"cluster_proportions": [1] * 5, "n_time_points": 3}, "n_time_points too"),
    ],
)
def test_errors_name_the_argument(options, message):
    with pytest.raises(ValueError, match=message):
        simulate_counts(**options)
