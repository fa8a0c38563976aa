from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scdeepclust.tl import score_clusters

SCORES = ["ARI", "NMI", "accuracy", "purity", "homogeneity", "completeness"]


def frame(found, known):
    return pd.DataFrame({"found": list(found), "known": list(known)})


def score(found, known):
    return score_clusters(frame(found, known), "found", label_key="known").loc["found"]


def test_perfect_whatever_the_names():
    row = score("2220011", "aaabbcc")
    assert np.allclose(row[SCORES], 1)
    assert np.allclose(row[["f1[a]", "f1[b]", "f1[c]"]], 1)
    assert (row["n_clusters"], row["n_labels"], row["n_cells"]) == (3, 3, 7)


def test_values_worked_out_by_hand():
    # contingency: a: 3 in "0", 1 in "1"; b: 1 in "1", 3 in "2"
    row = score("00011222", "aaaabbbb")
    assert row["accuracy"] == 6 / 8
    assert row["purity"] == 7 / 8
    # pairs together in both 3 + 3, in types 6 + 6, in clusters 3 + 1 + 3, of 28
    expected = 12 * 7 / 28
    assert row["ARI"] == pytest.approx((6 - expected) / ((12 + 7) / 2 - expected))
    h_label = np.log(2)
    h_cluster = -2 * 3 / 8 * np.log(3 / 8) - 1 / 4 * np.log(1 / 4)
    h_label_given_cluster = 1 / 4 * np.log(2)
    information = h_label - h_label_given_cluster
    assert row["homogeneity"] == pytest.approx(information / h_label)
    assert row["completeness"] == pytest.approx(information / h_cluster)
    assert row["NMI"] == pytest.approx(2 * information / (h_label + h_cluster))
    assert row["f1[a]"] == row["f1[b]"] == pytest.approx(2 * 3 / (4 + 3))


def test_one_cluster_for_all():
    row = score("0000", "aaab")
    assert row["ARI"] == 0
    assert row["purity"] == row["accuracy"] == 0.75
    assert (row["homogeneity"], row["completeness"]) == (0, 1)
    assert row["f1[b]"] == pytest.approx(2 / 5)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_accuracy_is_the_best_of_all_matchings(pairs):
    found, known = zip(*pairs, strict=True)
    row = score(found, known)
    # every way of giving the clusters different types; surplus clusters get a type that nobody has
    best = max(np.mean([m[f] == k for f, k in pairs]) for m in itertools.permutations([0, 1, 2, 3, -1, -2, -3, -4], 4))
    assert row["accuracy"] == pytest.approx(best)
    majority = sum(max(sum((f, k) == (c, t) for f, k in pairs) for t in set(known)) for c in set(found))
    assert row["purity"] == pytest.approx(majority / len(pairs))
    assert row["accuracy"] <= row["purity"] + 1e-12
    assert (row[["accuracy", "purity", "NMI", "homogeneity", "completeness"]].between(-1e-9, 1 + 1e-9)).all()


def test_per_batch_rows(adata):
    adata.obs["good"] = adata.obs["cell_type"].cat.codes.astype(str)
    adata.obs["bad"] = np.where(adata.obs["batch"] == "batch_0", adata.obs["good"], "x")
    adata = adata[(adata.obs["cell_type"] != "type_3") | (adata.obs["batch"] == "batch_0")]
    scores = score_clusters(adata, ["good", "bad"], label_key="cell_type", batch_key="batch")
    assert list(scores.index) == list(itertools.product(["good", "bad"], ["all", "batch_0", "batch_1"]))
    assert np.allclose(scores.loc["good", "ARI"], 1)
    assert scores.loc[("bad", "batch_0"), "ARI"] == 1
    assert scores.loc[("bad", "batch_1"), "ARI"] == 0
    assert 0 < scores.loc[("bad", "all"), "ARI"] < 1
    assert scores.loc["good", "n_labels"].tolist() == [4, 4, 3]  # unused categories are not counted
    assert scores["f1[type_3]"].isna().tolist() == [False, False, True] * 2
    assert scores.loc["good", "n_cells"].iloc[0] == scores.loc["good", "n_cells"].iloc[1:].sum() == adata.n_obs


def test_cells_without_a_label_are_left_out():
    row = score(["0", "0", "1", "1"], ["a", "a", "b", None])
    assert row["ARI"] == 1
    assert row["n_cells"] == 3


def test_keys_may_be_one_or_several():
    data = frame("0011", "aabb").assign(other=list("0101"))
    scores = score_clusters(data, ["found", "other"], label_key="known")
    assert list(scores.index) == ["found", "other"]
    assert scores.loc["other", "ARI"] < 0 < scores.loc["found", "ARI"]
    assert list(scores.columns) == [*SCORES, "n_clusters", "n_labels", "n_cells", "f1[a]", "f1[b]"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keys": "nothing", "label_key": "known"}, "keys: obs has no column 'nothing'; it has found, known"),
        ({"keys": "found", "label_key": "truth"}, "label_key: obs has no column 'truth'"),
        ({"keys": "found", "label_key": "known", "batch_key": "lane"}, "batch_key: obs has no column 'lane'"),
        ({"keys": [], "label_key": "known"}, "keys is empty"),
        ({"keys": "empty", "label_key": "known"}, "'empty' has no label for 4 cells"),
        ({"keys": "found", "label_key": "empty"}, "holds no known label"),
        ({"keys": "found", "label_key": "known", "batch_key": "clash"}, "a batch named 'all'"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    data = frame("0011", "aabb").assign(empty=None, clash=["all", "b", "b", "b"])
    with pytest.raises(ValueError, match=message):
        score_clusters(data, arguments.pop("keys"), **arguments)
