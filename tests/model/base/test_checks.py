"""Errors of the input: they name the argument, what was found and the remedy, and leave the data alone."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from malformed import fails, small
from scipy.sparse import csr_matrix

from scdeepclust.model import SCDeepCluster
from scdeepclust.model._base._matrix import check_counts, gene_statistics


@pytest.mark.parametrize("as_format", [np.asarray, csr_matrix], ids=["dense", "sparse"])
@pytest.mark.parametrize(
    ("value", "match"),
    [(0.5, "not whole numbers, such as 0.5"), (-1, "negative"), (np.nan, "NaN"), (np.inf, "infinite")],
)
def test_values_that_are_no_counts(as_format, value, match):
    adata = small()
    x = adata.X.copy()
    x[2, 1] = value
    adata.X = as_format(x)
    fails(adata, f"`adata.X` has .*{match}")
    adata.layers["l"], adata.X = adata.X, np.ones((4, 3), dtype=np.float32)
    fails(adata, r"`adata.layers\['l'\]` has", layer="l")
    SCDeepCluster.setup_anndata(adata)


def test_cells_without_counts():
    x = np.ones((4, 3))
    x[1] = 0
    fails(small(x), "1 cells without any count.*such as 'c1'.*filter_cells")


def test_shapes_names_and_keys():
    fails(small(np.ones((1, 3))), "has 1 cells")
    fails(anndata.AnnData(np.ones((3, 0), dtype=np.float32)), "no genes")
    twice = small()
    twice.var_names = ["a", "a", "b"]
    fails(twice, "duplicated gene names, such as 'a'.*var_names_make_unique")
    fails(small(), "`layer`.*'counts'", layer="counts")
    fails(small(), "`batch_key`.*'donor'", batch_key="donor")
    fails(small(), "`continuous_covariate_keys`.*'age'", continuous_covariate_keys=["age"])
    fails(small(age=[1, 2, 3, 4]), r"must be a list of columns; found 'age'", continuous_covariate_keys="age")
    for ages in (["1", "2", "old", "3"], [1.0, 2.0, np.inf, 3.0]):
        fails(small(age=ages), "'age'.*finite numbers.*categorical_covariate_keys", continuous_covariate_keys=["age"])
    fails(small(t=list("abab")), "`batch_key` and `labels_key` are both 't'", batch_key="t", labels_key="t")
    fails(small(d=["x", None, "y", "x"]), "'d'.*1 missing", batch_key="d")
    for sizes in ([1.0, 2.0, 0.0, 1.0], [1.0, 2.0, np.inf, 1.0]):
        fails(small(s=sizes), "`size_factor_key`.*'s'.*positive", size_factor_key="s")
    fails(small(d=list("xyxy")), "both have 'd'", batch_key="d", categorical_covariate_keys=["d"])
    with pytest.raises(ValueError, match=r"view.*copy\(\)"):
        SCDeepCluster.setup_anndata(small()[:3])


def test_entries_stored_twice():
    x = csr_matrix((np.ones(5, dtype=np.float32), [0, 0, 1, 2, 0], [0, 2, 3, 4, 5]), shape=(4, 3))
    adata = small()
    adata.X = x
    fails(adata, "more than once.*sum_duplicates")


@pytest.mark.parametrize("n_clusters", [1, 0, -2, 5, 2.5, "3", True])
def test_impossible_numbers_of_clusters(n_clusters):
    adata = small()
    SCDeepCluster.setup_anndata(adata)
    with pytest.raises(ValueError, match=f"`n_clusters` must be .*between 2 and .*4.*{n_clusters}"):
        SCDeepCluster(adata, n_clusters=n_clusters)


@pytest.mark.parametrize("argument", ["gene_likelihood", "dispersion", "init", "targets"])
def test_unknown_choices_list_the_known_ones(argument):
    adata = small()
    SCDeepCluster.setup_anndata(adata)
    with pytest.raises(ValueError, match=f"`{argument}` must be one of .*'nonsense'"):
        SCDeepCluster(adata, n_clusters=2, **{argument: "nonsense"})


def test_given_start_labels_must_fit():
    adata = small()
    SCDeepCluster.setup_anndata(adata)
    with pytest.raises(ValueError, match="`init` has 3 labels for 4 cells"):
        SCDeepCluster(adata, n_clusters=2, init=["a", "b", "a"])
    with pytest.raises(ValueError, match="`init` has 2 different labels, but `n_clusters` is 3"):
        SCDeepCluster(adata, n_clusters=3, init=["a", "b", "a", "b"])
    with pytest.raises(ValueError, match="`init` has 1 missing"):
        SCDeepCluster(adata, n_clusters=2, init=["a", "b", "a", None])


counts = hnp.arrays(np.int64, st.tuples(st.integers(2, 30), st.integers(1, 12)), elements=st.integers(0, 10**6))


@given(counts)
def test_whole_numbers_are_counts_and_anything_moved_off_them_is_not(x):
    check_counts(x.astype(np.float64), "x")
    x = x.astype(np.float64)
    x.flat[-1] += 0.25
    with pytest.raises(ValueError, match="not whole"):
        check_counts(x, "x")


@settings(deadline=None)
@given(counts, st.booleans())
def test_streamed_gene_statistics_equal_those_of_the_whole_matrix(x, sparse):
    x[:, 0] += 1  # no empty cells
    mean, sd, median = gene_statistics(anndata.AnnData(csr_matrix(x) if sparse else x), None, 1e4)
    totals = x.sum(axis=1, keepdims=True)
    y = np.log1p(x * (1e4 / totals))
    np.testing.assert_allclose(mean, y.mean(axis=0), rtol=1e-6, atol=1e-9)
    expected = y.std(axis=0)
    wide = expected > 1e-4  # below, one-pass variances are rounding noise
    np.testing.assert_allclose(sd[wide], expected[wide], rtol=1e-3)
    assert median == np.median(totals)
    assert (sd > 0).all()
