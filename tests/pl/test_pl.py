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
    assert list(axes) == [ax.get_title() for ax in axes.values()] == ["loss", "clustering_kl"]
    assert lines(axes["loss"]) == {
        ((1, 2, 3, 4), (9.0, 8.0, 7.0, 6.0)),
        ((5, 6), (5.0, 4.0)),
        ((1, 2, 3, 4), (9.5, 8.5, 7.5, 6.5)),
        ((5, 6), (5.5, 4.5)),
    }
    assert lines(axes["clustering_kl"]) == {((5, 6), (0.3, 0.2))}


def test_history_tells_phases_and_held_out_cells_apart(trained):
    loss, lr = pl.history(trained, ["loss", "lr"]).values()
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


def test_history_leaves_out_what_is_flat_or_told_already(trained):
    """Flat in every phase, or the course of an earlier panel up to offset and scale; unless it is asked for."""
    loss = trained.history["train_loss"].iloc[:, 0]
    trained.history |= {
        "weight": pd.DataFrame({"weight": [1.0, 1.0]}),
        "elbo_train": pd.DataFrame({"elbo_train": 3 * loss + 100}),
        "elbo_validation": pd.DataFrame({"elbo_validation": 3 * trained.history["validation_loss"].iloc[:, 0] + 100}),
        "entropy_train": pd.DataFrame({"entropy_train": -loss}),
    }
    for mode in ("train", "validation"):
        first = trained.history[f"pretrain_{mode}_loss"].iloc[:, 0]
        trained.history[f"pretrain_elbo_{mode}"] = pd.DataFrame({"e": 3 * first + 100})
    assert list(pl.history(trained)) == ["loss", "clustering_kl", "entropy"]
    assert list(pl.history(trained, ["lr", "elbo", "weight"])) == ["lr", "elbo", "weight"]
    trained.history = {"lr": pd.DataFrame({"lr": [0.1, 0.1]})}
    assert list(pl.history(trained)) == ["lr"]  # nothing else to show


def test_history_shows_what_happens_after_a_steep_start(trained):
    trained.phases_ = [("fit", 50)]
    values = np.r_[1000.0, np.linspace(3, 2, 49)]
    trained.history = {"elbo_train": pd.DataFrame({"elbo_train": values})}
    low, high = pl.history(trained)["elbo"].get_ylim()
    assert low < 2
    assert 3 < high < 4
    trained.history = {"elbo_train": pd.DataFrame({"elbo_train": np.linspace(10, 2, 50)})}
    assert pl.history(trained)["elbo"].get_ylim()[1] > 10  # no steep start: all of it


def test_history_of_a_model_with_one_phase(trained):
    trained.phases_ = [("clustering", 2)]
    trained.history = {"elbo_train": pd.DataFrame({"elbo_train": [2.0, 1.0]})}
    (ax,) = pl.history(trained).values()
    assert ax.get_title() == "elbo"
    assert lines(ax) == {((1, 2), (2.0, 1.0))}


def test_history_draws_where_it_is_told(trained):
    _, axes = plt.subplots(1, 2)
    before = plt.get_fignums()
    assert pl.history(trained, ["lr", "loss"], ax=axes) == {"lr": axes[0], "loss": axes[1]}
    assert axes[0].get_title() == "lr"
    assert pl.history(trained, "loss", ax=axes[0]) == {"loss": axes[0]}
    assert plt.get_fignums() == before


def test_history_errors(trained):
    with pytest.raises(ValueError, match=r"speed was not logged; there is loss, clustering_kl, lr"):
        pl.history(trained, "speed")
    with pytest.raises(ValueError, match="1 axes for 3 quantities"):
        pl.history(trained, ["loss", "lr", "clustering_kl"], ax=plt.gca())
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
    assert list(pl.overview(result, "sys")) == ["sys", "sys_confidence"]
    panels = pl.overview(result, "sys", label_key="cell_type")
    assert list(panels) == ["sys", "sys_confidence", "cell_type"]
    assert [ax.get_title() for ax in panels.values()] == ["sys", "confidence of sys", "cell_type"]


def test_names_stand_amid_cells_that_lie_together_and_beside_the_plot_where_they_are_everywhere(result):
    def shown(column):
        ax = pl.overview(result, "sys", label_key=column)[column]
        return {text.get_text() for text in ax.texts}

    assert shown("cell_type") >= set(result.obs["cell_type"].cat.categories)
    result.obs["donor"] = pd.Categorical(np.where(np.arange(result.n_obs) % 2, "d1", "d2"))
    assert not shown("donor") & {"d1", "d2"}


def test_overview_uses_its_colours_and_the_bar_lies_on_nothing(result):
    result.obs["sys_confidence"] = np.linspace(0.9, 1, result.n_obs)
    panels = pl.overview(result, "sys", label_key="cell_type")
    (points,) = [c for c in panels["sys_confidence"].collections if len(c.get_offsets()) == result.n_obs]
    assert points.norm.vmin == pytest.approx(0.901)
    assert points.norm.vmax == 1
    panels.figure.draw_without_rendering()
    (bar,) = panels["sys_confidence"].child_axes
    box = bar.get_tightbbox()
    assert not box.overlaps(panels["cell_type"].get_tightbbox())
    assert not box.overlaps(panels["sys_confidence"].patch.get_window_extent())


def test_cells_without_a_label_are_grey(result):
    labels = result.obs["cell_type"].astype(object)
    labels.iloc[7] = None
    result.obs["partly"] = labels.astype("category")
    positions, colors = cells(pl.overview(result, "sys", label_key="partly")["partly"])
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


# --- what all drawings share


def drawings(result):
    """One call for each drawing that needs no model, and whether it has one panel."""
    table = pd.DataFrame(
        {"iLISI": [0.5], "Bio conservation": [0.7], "Batch correction": [0.6], "Total": [0.66]}, index=["X_pca"]
    )
    curve = pd.DataFrame({"separation": [5.0, 2.0], "p": [0.0, 0.9], "rank": [1, 0]}, index=[2, 3])
    return {
        "benchmark_table": (lambda **options: pl.benchmark_table(table, **options), True),
        "n_clusters": (lambda **options: pl.n_clusters(curve, **options), True),
        "cluster_sizes": (lambda **options: pl.cluster_sizes(result, "sys", **options), True),
        "confidence": (lambda **options: pl.confidence(result, "sys", **options), True),
        "overview": (lambda **options: pl.overview(result, "sys", **options), False),
    }


@pytest.mark.parametrize("name", ["benchmark_table", "n_clusters", "cluster_sizes", "confidence", "overview"])
def test_one_rule_for_what_is_returned_shown_and_saved(name, result, tmp_path, monkeypatch):
    draw, one = drawings(result)[name]
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))
    drawn = draw(save=tmp_path / "drawing.png")
    assert (tmp_path / "drawing.png").read_bytes().startswith(b"\x89PNG")
    assert not shown
    draw(show=True)
    assert shown
    if one:
        assert isinstance(drawn, plt.Axes)
        _, ax = plt.subplots()
        assert draw(ax=ax) is ax
    else:
        assert all(isinstance(ax, plt.Axes) and ax.figure is drawn.figure for ax in drawn.values())
        _, axes = plt.subplots(1, len(drawn))
        assert list(draw(ax=axes).values()) == list(axes)
        with pytest.raises(ValueError, match=f"ax: 1 axes for {len(drawn)} panels"):
            draw(ax=axes[0])


def test_every_drawing_can_be_shown_and_saved():
    import inspect

    for name in set(pl.__all__) - {"LogClusters"}:
        parameters = inspect.signature(getattr(pl, name)).parameters
        assert parameters["ax"].default is parameters["show"].default is parameters["save"].default is None, name
        assert inspect.signature(getattr(pl, name)).return_annotation in ("Axes", "Panels"), name


def test_a_quantity_without_a_course_has_no_panel():
    """Labels that changed once, and were not measured in the first epoch, are no curve."""
    values = {"loss_train": [3.0, 2.0], "label_change_train": [np.nan, 0.1]}
    model = SimpleNamespace(phases_=[("cluster", 2)], history={k: pd.DataFrame({k: v}) for k, v in values.items()})
    assert list(pl.history(model)) == ["loss"]
    panel = pl.history(model, "label_change")["label_change"]
    assert panel.lines[0].get_marker() == "."
