"""Several clusterings become one."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

import scdeepclust as sdc


def labelled(**columns) -> anndata.AnnData:
    n = len(next(iter(columns.values())))
    return anndata.AnnData(obs=pd.DataFrame(columns, index=[f"cell{i}" for i in range(n)]).astype(str))


@given(st.lists(st.integers(0, 4), min_size=2, max_size=40), st.permutations(range(5)), st.permutations(range(5)))
@settings(max_examples=50, deadline=None)
def test_names_of_clusters_do_not_matter(labels, first, second):
    labels = np.array(labels)
    found = sdc.tl.consensus(labelled(a=np.array(first)[labels], b=np.array(second)[labels]), ["a", "b"])
    assert adjusted_rand_score(labels, found["consensus"]) == 1
    assert (found["agreement"] == 1).all()
    sizes = found["consensus"].value_counts()
    assert [sizes[str(k)] for k in range(len(sizes))] == sorted(sizes, reverse=True)


def test_errors_that_are_not_shared_are_outvoted():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 2000)
    noisy = {f"run{i}": np.where(rng.random(2000) < 0.15, rng.integers(0, 4, 2000), truth) for i in range(5)}
    found = sdc.tl.consensus(labelled(**noisy), list(noisy))
    best_single = max(adjusted_rand_score(truth, labels) for labels in noisy.values())
    assert adjusted_rand_score(truth, found["consensus"]) > best_single + 0.1
    lowest = found["agreement"] < found["agreement"].quantile(0.1)
    wrong = pd.crosstab(found["consensus"], truth).idxmax(axis=1)[found["consensus"]].to_numpy() != truth
    assert wrong[lowest].mean() > 5 * wrong.mean()


def test_a_split_cluster_counts_for_the_one_it_was_split_from():
    found = sdc.tl.consensus(labelled(a=list("0000011"), b=list("0000011"), c=list("0002211")), ["a", "b", "c"])
    assert found["consensus"].tolist() == list("0000011")
    assert (found["agreement"] == 1).all()


def test_probabilities_vote_where_they_are_stored():
    adata = labelled(a=["0", "0", "1"], b=["0", "1", "1"])
    adata.obsm["a_probabilities"] = np.array([[1, 0], [0.55, 0.45], [0, 1]])
    adata.obsm["b_probabilities"] = np.array([[1, 0], [0.1, 0.9], [0, 1]])
    found = sdc.tl.consensus(adata, ["a", "b"])
    together = found["consensus"].iloc[1] == found["consensus"].iloc[2]
    assert together  # 1.35 votes against 0.65
    assert found["agreement"].tolist() == [1, 0.5, 1]


def test_columns_of_empty_clusters_are_left_out():
    adata = labelled(a=["0", "0", "2"], b=["0", "0", "1"])
    adata.obsm["a_probabilities"] = np.array([[0.8, 0.1, 0.1], [0.8, 0.1, 0.1], [0.1, 0.0, 0.9]])
    assert sdc.tl.consensus(adata, ["a", "b"])["consensus"].tolist() == ["0", "0", "1"]


@pytest.mark.parametrize("names", [["2", "1", "0"], ["T", "B", "NK"], ["7", "8", "9"]])
def test_renamed_labels_keep_their_own_probabilities(names):
    codes = np.random.default_rng(0).integers(0, 3, 60)
    adata = labelled(a=np.array(names)[codes], b=codes, c=codes)
    sure, unsure = np.eye(3)[codes], 0.5 * np.eye(3)[codes] + 0.25 * (1 - np.eye(3)[codes])
    adata.obsm["a_probabilities"], adata.obsm["b_probabilities"] = sure, unsure
    assert (sdc.tl.consensus(adata, ["a", "b", "c"])["agreement"] == 1).all()
    # of two clusters that were joined, no column is the right one
    adata.obs["a"] = np.where(codes == 0, "x", "y")
    assert sdc.tl.consensus(adata, ["a", "b", "c"])["agreement"].min() < 1


def test_bad_keys():
    adata = labelled(a=["0", "1"], b=["0", "1"])
    with pytest.raises(ValueError, match="at least 2"):
        sdc.tl.consensus(adata, ["a"])
    with pytest.raises(ValueError, match="'c'"):
        sdc.tl.consensus(adata, ["a", "c"])
    adata.obs["b"] = pd.Categorical.from_codes([0, -1], ["0"])
    with pytest.raises(ValueError, match="1 cells"):
        sdc.tl.consensus(adata, ["a", "b"])


def test_votes_come_from_the_columns_of_the_clusters_that_have_cells():
    """Clustering a uses "0" and "2": the second vote is in the third column."""
    adata = labelled(a=["0", "0", "2", "2"], b=["0", "0", "1", "0"])
    adata.obsm["a_probabilities"] = np.array([[1, 0, 0], [1, 0, 0], [0, 0, 1], [0.2, 0.0, 0.8]])
    adata.obsm["b_probabilities"] = np.array([[1, 0], [1, 0], [0, 1], [0.7, 0.3]])
    found = sdc.tl.consensus(adata, ["a", "b"])
    assert found["consensus"].tolist() == ["0", "0", "1", "1"]  # the last by 1.1 votes to 0.9
    assert found["agreement"].tolist() == [1, 1, 1, 0.5]
