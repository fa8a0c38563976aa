from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scvi
from sklearn.metrics import adjusted_rand_score

import scdeepclust as sdc
from scdeepclust.tl._n_clusters import _changes

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


@pytest.fixture(autouse=True)
def _seed():
    scvi.settings.seed = 0
    yield
    scvi.settings.seed = None


def test_a_model_with_another_number_of_clusters_tells_the_right_one():
    adata = sdc.datasets.simulate_counts(400, 150, n_clusters=4, marker_log_fold_change=3.5, depth=500, seed=1)
    sdc.model.SCDeepCluster.setup_anndata(adata)
    model = sdc.model.SCDeepCluster(adata, n_clusters=3, n_latent=8)
    with pytest.raises(RuntimeError, match="train"):
        sdc.tl.estimate_n_clusters(model)
    model.train(pretrain_epochs=100, max_epochs=5, **QUIET)
    table = sdc.tl.estimate_n_clusters(model)
    assert list(table.index) == list(range(1, len(table) + 1))
    assert table["rank"].eq(1).idxmax() == 4
    assert (table["p"].diff()[1:] >= 0).all()  # more clusters never have more evidence
    assert (table.loc[table.index <= 4, "p"] <= 0.05).all()
    assert table.loc[4, "merges"] == ""
    # the cluster of the model that holds two types is the one to split
    truth, labels = adata.obs["cell_type"], model.predict()
    mixed = pd.crosstab(labels, truth).gt(20).sum(axis=1).idxmax()
    assert table.loc[4, "splits"] == mixed
    assert table.loc[1, "merges"] == "0+1+2"
    # and it is the number that a model without one finds
    found = sdc.model.SCDeepCluster(adata, n_latent=8)
    found.train(pretrain_epochs=100, max_epochs=5, **QUIET)
    assert found.n_clusters == 4
    assert adjusted_rand_score(truth, found.predict()) > 0.9


def test_changes_say_what_is_merged_and_what_is_split():
    labels = np.repeat([0, 1, 2, 3], [10, 10, 20, 5])
    assert _changes(labels, np.repeat([0, 1, 2, 3], [10, 10, 20, 5])) == {"merges": "", "splits": ""}
    assert _changes(labels, np.repeat([0, 2, 3], [20, 20, 5])) == {"merges": "0+1", "splits": ""}
    assert _changes(labels, np.repeat([0, 1, 2, 4, 3], [10, 10, 12, 8, 5])) == {"merges": "", "splits": "2"}
    # a few cells on the other side are neither
    assert _changes(labels, np.repeat([0, 1, 2, 3], [12, 8, 19, 6])) == {"merges": "", "splits": ""}


def test_the_plot_marks_the_shortlist_and_where_the_evidence_ends():
    table = pd.DataFrame(
        {"separation": [np.nan, 9.0, 5.0, 2.0], "p": [0.0, 0.0, 1e-9, 0.8], "rank": [0, 2, 1, 0]},
        index=pd.Index([1, 2, 3, 4], name="n_clusters"),
    )
    ax = sdc.pl.n_clusters(table)
    assert ax.get_yscale() == "log"
    assert [text.get_text() for text in ax.texts] == ["3", "2"]
    assert [text.get_weight() for text in ax.texts] == ["bold", "normal"]
    with_evidence, without = (points.get_offsets().data.tolist() for points in ax.collections)
    assert with_evidence == [[2.0, 9.0], [3.0, 5.0]]
    assert without == [[4.0, 2.0]]
    with pytest.raises(ValueError, match="estimate_n_clusters"):
        sdc.pl.n_clusters(table.drop(columns="rank"))
    plt.close("all")
