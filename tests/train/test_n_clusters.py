from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scvi
from sklearn.metrics import adjusted_rand_score

import scdeepclust as sdc
from scdeepclust.train import count_table
from scdeepclust.train._init import n_communities
from scdeepclust.train._n_clusters import merge_path, shortlist

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


@pytest.fixture(autouse=True)
def _seed():
    scvi.settings.seed = 0
    yield
    scvi.settings.seed = None


def blobs(sizes: list[int], distance: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centers = distance * rng.normal(size=(len(sizes), 8))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return centers[labels] + rng.normal(size=(len(labels), 8)), labels


@pytest.mark.parametrize("sizes", [[200, 200, 200], [400, 200, 100, 60, 40], [120] * 8])
def test_compact_groups_are_counted(sizes):
    points, labels = blobs(sizes, distance=8.0)
    assert n_communities(points) == len(sizes)
    table = count_table(points, max_clusters=20)
    assert table["rank"].eq(1).idxmax() == len(sizes)
    assert table["gap"].idxmax() == len(sizes)
    assert table.loc[len(sizes), "stability"] > 0.99
    _, all_labels = merge_path(points, 20)
    assert adjusted_rand_score(labels, all_labels[len(sizes) - 2]) == 1.0


def test_labels_of_the_path_have_the_number_of_clusters_and_are_nested():
    points, _ = blobs([100, 100, 100], distance=2.0)
    separation, all_labels = merge_path(points, 15)
    assert (np.diff(separation) <= 0).all()
    for k, labels in enumerate(all_labels, start=2):
        assert set(labels) == set(range(k))
    for fewer, more in zip(all_labels, all_labels[1:], strict=False):
        assert (pd.crosstab(more, fewer).gt(0).sum(axis=1) == 1).all()


def test_separation_does_not_depend_on_scale_or_number_of_cells():
    points, _ = blobs([200, 300, 250], distance=6.0)
    separation, _ = merge_path(points, 3)
    scaled, _ = merge_path(50 * points + 7, 3)
    np.testing.assert_allclose(scaled, separation, rtol=1e-6)
    twice, _ = merge_path(np.concatenate([points, points]), 3)
    np.testing.assert_allclose(twice[:2], separation[:2], rtol=0.05)


def test_the_shortlist_starts_with_the_guess_and_leaves_neighbours_out():
    gap = pd.Series([0.2, 0.3, 0.4, 0.7, 0.1, 0.9, 0.2], index=np.arange(2, 9))
    assert shortlist(gap, guess=7) == [7, 5, 4]


@pytest.mark.parametrize("model_cls", [sdc.model.GMVAE, sdc.model.SCDeepCluster], ids=lambda cls: cls.__name__)
def test_a_model_with_another_number_of_clusters_tells_the_right_one(model_cls, adata):
    model_cls.setup_anndata(adata, batch_key="batch")
    model = model_cls(adata, n_clusters=9)
    with pytest.raises(RuntimeError, match="train"):
        sdc.tl.estimate_n_clusters(model)
    model.train(pretrain_epochs=60, max_epochs=0, **QUIET)
    table = sdc.tl.estimate_n_clusters(model, max_clusters=15, n_repeats=2)
    assert list(table.index) == list(range(2, 16))
    assert 4 in table.index[table["rank"] > 0]
    assert abs(table["rank"].eq(1).idxmax() - 4) <= 2
    assert table["stability"].between(-0.1, 1).all()
    with pytest.raises(ValueError, match="`max_clusters`=60 needs at least 480 cells"):
        sdc.tl.estimate_n_clusters(model, max_clusters=60)


def test_the_plot_marks_the_shortlist():
    table = pd.DataFrame(
        {"separation": [0.5, 0.2, 0.01], "gap": [0.9, 3.0, 0.2], "stability": [1.0, 0.9, 0.5], "rank": [2, 1, 0]},
        index=pd.Index([2, 3, 4], name="n_clusters"),
    )
    ax = sdc.pl.n_clusters(table)
    assert ax.get_yscale() == "log"
    assert [text.get_text() for text in ax.texts] == ["3", "2"]
    assert [text.get_weight() for text in ax.texts] == ["bold", "normal"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), table["separation"])
    with pytest.raises(ValueError, match="estimate_n_clusters"):
        sdc.pl.n_clusters(table.drop(columns="rank"))


def test_the_cost_of_a_merge_grows_with_the_root_of_the_sizes():
    """Three groups: by Ward's criterion (without the root) the two small ones would be merged first."""
    sizes, places = np.array([200, 50, 50]), np.array([0.0, 3.0, 6.6])
    truth = np.repeat([0, 1, 2], sizes)
    points = (places[truth] + np.tile([-0.05, 0.05], 150))[:, None]  # six sites, as many as micro-clusters
    separation, (labels,) = merge_path(points, 2)
    assert adjusted_rand_score(np.minimum(truth, 1), labels) < adjusted_rand_score(truth == 2, labels) == 1
    joined = np.average(places[:2], weights=sizes[:2])

    def cost(n, m, distance):
        return np.sqrt(n * m / (n + m) / 300) * distance**2 / points.var()

    np.testing.assert_allclose(separation, [cost(250, 50, 6.6 - joined), cost(200, 50, 3.0)], rtol=1e-6)


def test_the_shortlist_stays_within_a_factor_of_two_of_the_guess():
    gap = pd.Series(0.1, index=np.arange(2, 21)) + pd.Series({2: 1.0, 11: 2.0, 20: 3.0, 3: 0.5, 10: 0.4}).reindex(
        np.arange(2, 21), fill_value=0.0
    )
    assert shortlist(gap, guess=5) == [5, 3, 10]
