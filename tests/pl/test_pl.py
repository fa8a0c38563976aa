from __future__ import annotations

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from scdeepclust import pl


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture
def result(adata):
    """What `write_back` leaves, without a model."""
    codes = adata.obs["cell_type"].cat.codes
    adata.obs["sys"] = pd.Categorical(codes.astype(str), categories=list("01234"))  # cluster "4" is empty
    adata.obs["sys_confidence"] = np.linspace(0, 1, adata.n_obs)
    adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(adata.n_obs, 2)) + 4 * codes.to_numpy()[:, None]
    return adata


@pytest.fixture
def trained():
    """A model that was trained for 4 + 2 epochs, as far as a drawing can see."""

    def frame(name, values):
        return pd.DataFrame({name: values}, index=pd.RangeIndex(len(values), name="epoch"))

    logged = {
        "pretrain_train_loss": [9.0, 8.0, 7.0, 6.0],
        "pretrain_validation_loss": [9.5, 8.5, 7.5, 6.5],
        "pretrain_lr": [0.1] * 4,
        "train_loss": [5.0, 4.0],
        "validation_loss": [5.5, 4.5],
        "clustering_kl_train": [0.3, 0.2],
        "lr": [0.01] * 2,
    }
    history = {name: frame(name, values) for name, values in logged.items()}
    return SimpleNamespace(phases_=[("pretrain", 4), ("clustering", 2)], history=history)


def lines(ax):
    """Curves of a panel, without the lines that mark phases."""
    return {(tuple(x), tuple(y)) for x, y in (line.get_data() for line in ax.lines) if len(x) == len(set(x))}


# --- history


def test_history_counts_epochs_through_the_phases(trained):
    axes = pl.history(trained)
    assert [ax.get_title() for ax in axes] == ["loss", "clustering_kl", "lr"]
    assert lines(axes[0]) == {
        ((1, 2, 3, 4), (9.0, 8.0, 7.0, 6.0)),
        ((5, 6), (5.0, 4.0)),
        ((1, 2, 3, 4), (9.5, 8.5, 7.5, 6.5)),
        ((5, 6), (5.5, 4.5)),
    }
    assert lines(axes[1]) == {((5, 6), (0.3, 0.2))}


def test_history_tells_phases_and_held_out_cells_apart(trained):
    loss, _, lr = pl.history(trained)
    assert [(text.get_text(), text.get_position()[0]) for text in loss.texts] == [
        ("pretrain", 2.5),
        ("clustering", 5.5),
    ]
    borders = [line.get_xdata()[0] for line in loss.lines if len(set(line.get_xdata())) == 1]
    assert borders == [4.5]
    colors = {line.get_ydata()[0]: line.get_color() for line in loss.lines}
    assert colors[9.0] == colors[5.0] != colors[9.5] == colors[5.5]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["train", "validation"]
    assert lr.get_legend() is None


def test_history_of_a_model_with_one_phase(trained):
    trained.phases_ = [("clustering", 2)]
    trained.history = {"elbo_train": pd.DataFrame({"elbo_train": [2.0, 1.0]})}
    (ax,) = pl.history(trained)
    assert ax.get_title() == "elbo"
    assert lines(ax) == {((1, 2), (2.0, 1.0))}


def test_history_draws_where_it_is_told(trained):
    _, axes = plt.subplots(1, 2)
    before = plt.get_fignums()
    assert pl.history(trained, ["lr", "loss"], ax=axes) == list(axes)
    assert axes[0].get_title() == "lr"
    assert pl.history(trained, "loss", ax=axes[0]) == [axes[0]]
    assert plt.get_fignums() == before


def test_history_errors(trained):
    with pytest.raises(ValueError, match=r"speed was not logged; there is loss, clustering_kl, lr"):
        pl.history(trained, "speed")
    with pytest.raises(ValueError, match="1 axes for 3 quantities"):
        pl.history(trained, ax=plt.gca())
    with pytest.raises(ValueError, match="call `model.train\\(\\)` first"):
        pl.history(SimpleNamespace(phases_=[], history=None))


# --- embedding


def cells(ax):
    """The one collection that has a point for each cell, as (positions, colours)."""
    (points,) = [c for c in ax.collections if len(c.get_offsets()) == 400]
    return np.asarray(points.get_offsets()), points.get_facecolors()


def test_confidence_sets_the_opacity_of_each_cell(result):
    ax = pl.confidence(result, "sys")
    positions, colors = cells(ax)
    for i in (0, 17, 399):
        at = np.flatnonzero((positions == result.obsm["X_umap"][i]).all(axis=1))
        assert len(at) == 1
        np.testing.assert_allclose(colors[at[0], 3], max(result.obs["sys_confidence"].iloc[i], 0.08))
    names = {text.get_text(): text.get_position() for text in ax.texts}
    assert set(names) == {"0", "1", "2", "3"}  # the empty cluster has no place
    for name, position in names.items():
        expected = np.median(result.obsm["X_umap"][result.obs["sys"] == name], axis=0)
        np.testing.assert_allclose(position, expected, atol=0.5)
    assert ax.get_legend().get_title().get_text() == "confidence"


def test_a_cluster_has_one_colour_everywhere(result):
    first = pl.cluster_sizes(result, "sys").patches[2].get_facecolor()
    positions, colors = cells(pl.confidence(result, "sys"))
    in_cluster = (result.obsm["X_umap"][result.obs["sys"] == "2"][:, None] == positions).all(axis=2).any(axis=0)
    assert {tuple(c[:3]) for c in colors[in_cluster]} == {first[:3]}
    result.uns["sys_colors"] = ["red", "lime", "blue", "black", "gray"]  # as scanpy stores them
    assert pl.cluster_sizes(result, "sys").patches[2].get_facecolor() == to_rgba("blue")


def test_many_clusters_have_different_colours(result):
    result.obs["many"] = pd.Categorical((np.arange(result.n_obs) % 21).astype(str))
    patches = pl.cluster_sizes(result, "many").patches
    assert len({patch.get_facecolor() for patch in patches}) == 21


def test_overlapping_names_are_pushed_apart(result):
    result.obsm["X_umap"] = np.random.default_rng(0).normal(size=(result.n_obs, 2))  # all clusters in one place
    ax = pl.confidence(result, "sys")
    ax.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.texts]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])


def test_long_names_go_into_a_legend_that_stays(result):
    result.obs["sys"] = result.obs["sys"].cat.rename_categories(lambda name: f"a long name {name}")
    ax = pl.confidence(result, "sys")
    assert not ax.texts
    legends = [child for child in ax.get_children() if type(child).__name__ == "Legend"]
    shown = [text.get_text() for legend in legends for text in legend.get_texts()]
    assert "a long name 3" in shown
    assert "0.5" in shown


def test_overview_has_a_panel_more_with_known_labels(result):
    titles = [ax.get_title() for ax in pl.overview(result, "sys").axes if ax.get_title()]
    assert titles == ["sys", "confidence of sys"]
    figure = pl.overview(result, "sys", label_key="cell_type")
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == ["sys", "confidence of sys", "cell_type"]


def test_cells_without_a_label_are_grey(result):
    labels = result.obs["cell_type"].astype(object)
    labels.iloc[7] = None
    result.obs["partly"] = labels.astype("category")
    figure = pl.overview(result, "sys", label_key="partly")
    positions, colors = cells(figure.axes[2])
    at = (positions == result.obsm["X_umap"][7]).all(axis=1)
    np.testing.assert_allclose(colors[at][0], to_rgba("#D9D9D9"))


def test_given_axes_are_used_and_adata_is_left_alone(result):
    _, ax = plt.subplots()
    before = (plt.get_fignums(), set(result.uns), set(result.obs))
    assert pl.confidence(result, "sys", ax=ax) is ax
    assert pl.cluster_sizes(result, "sys", ax=ax) is ax
    assert (plt.get_fignums(), set(result.uns), set(result.obs)) == before


def test_embedding_errors(result):
    with pytest.raises(ValueError, match="obs has no column 'gmvae_confidence'"):
        pl.confidence(result, "gmvae")
    with pytest.raises(ValueError, match="obsm has no 'X_tsne'; it has X_umap"):
        pl.confidence(result, "sys", basis="X_tsne")
    with pytest.raises(ValueError, match="obs has no column 'truth'"):
        pl.overview(result, "sys", label_key="truth")


# --- cluster sizes


def test_cluster_sizes_shows_the_numbers(result):
    ax = pl.cluster_sizes(result, "sys")
    expected = result.obs["sys"].value_counts()[list("01234")]
    assert [patch.get_width() for patch in ax.patches] == list(expected)
    assert [label.get_text() for label in ax.get_yticklabels()] == list("01234")
    assert ax.texts[0].get_text() == f"{expected['0']}  ({expected['0'] / 400:.1%})"
    assert ax.yaxis_inverted()


def test_cluster_sizes_of_plain_strings(result):
    result.obs["plain"] = result.obs["sys"].astype(str)
    assert len(pl.cluster_sizes(result, "plain").patches) == 4
    with pytest.raises(ValueError, match=r"obs has no column 'nothing'"):
        pl.cluster_sizes(result, "nothing")


def test_cluster_sizes_of_numbered_clusters(result):
    result.obs["numbers"] = pd.Categorical(np.where(np.arange(result.n_obs) < 100, 7, 3), categories=[7, 3])
    assert [patch.get_width() for patch in pl.cluster_sizes(result, "numbers").patches] == [100, 300]
