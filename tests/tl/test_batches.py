from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import scdeepclust as sdc


@pytest.fixture(scope="module")
def cells():
    """Four types in two batches, and clusters that are right, or corrected too little or too much."""
    adata = sdc.datasets.simulate_counts(
        900, 300, n_clusters=4, n_batches=2, depth=800, marker_log_fold_change=2, seed=0
    )
    kinds, batch = adata.obs["cell_type"].astype(str), adata.obs["batch"].astype(str)
    adata.obs["right"] = kinds
    adata.obs["too_little"] = kinds + "/" + batch
    adata.obs["coarse"] = kinds.replace({"type_1": "type_0"})
    rng = np.random.default_rng(0)
    place = pd.factorize(kinds)[0][:, None] * np.array([[20.0, 0.0]])
    adata.obsm["X_right"] = place + rng.normal(size=(900, 2))
    adata.obsm["X_apart"] = adata.obsm["X_right"] + 20 * np.outer(batch == "batch_1", [0, 1])
    return adata


def test_right_clusters_have_no_verdict(cells):
    table = sdc.tl.check_batches(cells, "right", "batch")
    assert (table["verdict"] == "").all()
    assert table["mixing"].between(0.9, 1.1).all()
    assert list(table.index) == ["type_0", "type_1", "type_2", "type_3"]
    np.testing.assert_array_equal(table["n_cells"], cells.obs["right"].value_counts()[table.index])
    share = (cells.obs.loc[cells.obs["right"] == "type_0", "batch"] == table.loc["type_0", "batch"]).mean()
    assert table.loc["type_0", "share"] == pytest.approx(share)
    assert table.loc["type_0", "expected"] == pytest.approx((cells.obs["batch"] == table.loc["type_0", "batch"]).mean())


def test_batches_that_lie_side_by_side_are_seen(cells):
    table = sdc.tl.check_batches(cells, "right", "batch", use_rep="X_apart")
    assert (table["mixing"] < 0.1).all()
    assert (table["verdict"] == "batches lie side by side").all()


def test_types_that_were_split_by_batch_have_a_twin(cells):
    table = sdc.tl.check_batches(cells, "too_little", "batch")
    for name, row in table.iterrows():
        kind, batch = name.split("/")
        assert row["twin"] == f"{kind}/batch_{1 - int(batch[-1])}"
        assert row["verdict"] == f"split from {row['twin']} by batch {batch}"
    # one type is right and tells how much batches make
    mixed = cells[:].copy()
    mixed.obs["some"] = mixed.obs["too_little"].where(mixed.obs["right"] != "type_0", "type_0")
    twins = sdc.tl.check_batches(mixed, "some", "batch")["twin"]
    assert twins["type_1/batch_0"] == "type_1/batch_1"
    assert twins["type_0"] == ""


def test_a_cluster_of_two_types_is_seen_inside_of_each_batch(cells):
    table = sdc.tl.check_batches(cells, "coarse", "batch")
    assert table.loc["type_0", "groups_in"] == "batch_0, batch_1"
    assert "holds two groups" in table.loc["type_0", "verdict"]
    assert (table.loc[["type_2", "type_3"], "groups_in"] == "").all()


def test_types_of_one_batch_each_that_were_joined_differ_more_than_batches_do(cells):
    kinds, batch = cells.obs["right"], cells.obs["batch"]
    kept = cells[~((kinds == "type_0") & (batch == "batch_1")) & ~((kinds == "type_1") & (batch == "batch_0"))].copy()
    table = sdc.tl.check_batches(kept, "coarse", "batch")
    assert table["shift"].idxmax() == "type_0"
    assert table.loc["type_0", "verdict"] == "its batches differ more than elsewhere"
    assert table.loc["type_0", "groups_in"] == ""  # neither batch has two
    # as clusters of their own they are no twins
    alone = sdc.tl.check_batches(kept, "right", "batch")
    assert (alone.loc[["type_0", "type_1"], "twin"] == "").all()
    assert alone.loc["type_0", "verdict"] == "of batch batch_0 alone"


def test_one_population_holds_no_two_groups_in_any_batch():
    adata = sdc.datasets.simulate_counts(1600, 200, n_clusters=2, n_batches=3, depth=500, seed=3)
    adata = adata[adata.obs["cell_type"] == "type_0"].copy()
    assert sdc.tl.check_batches(adata, "cell_type", "batch")["groups_in"].tolist() == [""]


def test_cells_without_a_label_and_counts_in_a_layer(cells):
    some = cells.copy()
    some.layers["counts"], some.X = some.X.copy(), np.log1p(some.X.toarray())
    some.obs["part"] = some.obs["right"].where(np.arange(900) % 10 > 0)
    table = sdc.tl.check_batches(some, "part", "batch", layer="counts")
    assert table["n_cells"].sum() == 810


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing", "batch"), "`key`: there is no column 'nothing'"),
        (("right", "nothing"), "`batch_key`: there is no column 'nothing'"),
        (("batch", "one"), "`batch_key`: column 'one' of `adata.obs` holds a single batch"),
    ],
)
def test_columns_that_are_missing_are_named(cells, arguments, message):
    cells.obs["one"] = "a"
    with pytest.raises(ValueError, match=message):
        sdc.tl.check_batches(cells, *arguments)


def test_batches_are_drawn_with_the_verdicts(cells):
    table = sdc.tl.check_batches(cells, "coarse", "batch")
    ax = sdc.pl.batches(cells, "coarse", "batch", table)
    assert [text.get_text() for text in ax.texts] == ["holds two groups in batch_0, batch_1"]
    widths = np.array([[bar.get_width() for bar in bars] for bars in ax.containers])
    np.testing.assert_allclose(widths.sum(axis=0), 1)
    np.testing.assert_allclose(sorted(widths[:, 0]), sorted(cells.obs["batch"].value_counts(normalize=True)))
    with pytest.raises(ValueError, match="`table` must be the result of `tl.check_batches`"):
        sdc.pl.batches(cells, "right", "batch", table.drop(columns="verdict"))
    cells.obs["many"] = np.arange(900) % 20
    assert len(sdc.pl.batches(cells, "right", "many").containers) == 13
    plt.close("all")
