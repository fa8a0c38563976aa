"""Which cell comes after which."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from scdeepclust.model.somvae._cell_pairs import (
    TRANSPORT_CELLS,
    _populations,
    are_sequences,
    cell_pairs,
    count_pairs,
    time_codes,
)
from scdeepclust.tl._time import _permuted, flow_statistics


def test_times_are_coded_in_their_order():
    np.testing.assert_array_equal(time_codes(pd.Series([3.5, 0, 3.5, 1]), "t"), [2, 0, 2, 1])
    days = pd.Series(pd.Categorical(["d10", "d2", "d2"], categories=["d2", "d10"], ordered=True))
    np.testing.assert_array_equal(time_codes(days, "t"), [1, 0, 0])
    np.testing.assert_array_equal(time_codes(pd.Series(["10", "9", "9"], dtype="category"), "t"), [1, 0, 0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pd.Series([1.0, np.nan]), "1 missing"),
        (pd.Series(["late", "early"], dtype="category"), "have no order.*reorder_categories"),
        (pd.Series(["late", "early"], dtype=object), "numbers or ordered categories"),
        (pd.Series([1, 1]), "a single time"),
    ],
)
def test_times_without_order_are_refused_by_name(values, message):
    with pytest.raises(ValueError, match=f"`time_key`.*'when'.*{message}|`time_key`.*{message}"):
        time_codes(values, "when")


def test_sequences_follow_within_a_trajectory_at_neighbouring_times_only():
    time = np.array([0, 2, 1, 0, 2])
    trajectory = np.array([0, 0, 0, 1, 1])  # the second misses time 1
    assert are_sequences(time, trajectory)
    pairs = cell_pairs(time, trajectory, np.zeros((5, 1))).toarray()
    expected = np.zeros((5, 5))
    expected[0, 2] = expected[2, 1] = 1
    np.testing.assert_array_equal(pairs, expected)
    assert not are_sequences(np.array([0, 0]), np.array([1, 1]))
    assert not are_sequences(time, None)


def test_counts_are_sums_of_weights_between_groups():
    pairs = csr_matrix(([0.5, 0.5, 1.0], ([0, 0, 1], [1, 2, 2])), shape=(3, 3))
    np.testing.assert_allclose(count_pairs(pairs, np.array([0, 1, 1]), 3), [[0, 1, 0], [0, 1, 0], [0, 0, 0]])


def test_transport_couples_cells_with_those_close_by_at_the_next_time():
    pytest.importorskip("ot")
    rng = np.random.default_rng(0)
    group, time = rng.integers(3, size=900), rng.integers(3, size=900)
    points = np.eye(3)[group] * 5 + 0.3 * time[:, None] + rng.normal(0, 0.3, (900, 3))
    pairs = cell_pairs(time, None, points)
    rows = np.asarray(pairs.sum(axis=1)).ravel()
    np.testing.assert_allclose(rows[time < 2], 1, rtol=1e-6)
    assert rows[time == 2].max() == 0
    now, later = pairs.nonzero()
    assert (time[later] == time[now] + 1).all()
    counts = count_pairs(pairs, group, 3)
    assert np.trace(counts) / counts.sum() > 0.98
    np.testing.assert_array_equal(cell_pairs(time, None, points).toarray(), pairs.toarray())


def test_transport_stays_within_a_culture():
    pytest.importorskip("ot")
    rng = np.random.default_rng(0)
    time, culture = rng.integers(2, size=200), rng.integers(2, size=200)
    now, later = cell_pairs(time, culture, rng.normal(size=(200, 2))).nonzero()
    assert (culture[now] == culture[later]).all()


def test_without_pot_the_message_says_what_to_install(monkeypatch):
    from scdeepclust.model.somvae._cell_pairs import require_transport

    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(ImportError, match=r"scdeepclust\[time\].*transition_key"):
        require_transport()


def test_direction_is_one_where_nothing_returns_and_zero_where_all_does():
    there = np.array([[5.0, 3.0], [0.0, 5.0]])
    back = np.array([[5.0, 3.0], [3.0, 5.0]])
    assert flow_statistics(there)["direction"] == pytest.approx(1)
    assert flow_statistics(back)["direction"] == pytest.approx(0)
    assert flow_statistics(back)["change"] == pytest.approx(6 / 16)
    joint = back / back.sum()
    expected = sum(p * np.log(p / 0.25) for p in joint.ravel())
    assert flow_statistics(back)["information"] == pytest.approx(expected)
    assert flow_statistics(np.zeros((2, 2)))["direction"] == 0


def test_times_are_permuted_within_trajectories():
    rng = np.random.default_rng(0)
    trajectory = np.array([0, 1, 0, 1, 1, 0])
    time = np.array([0, 7, 1, 8, 9, 2])
    permuted = _permuted(time, trajectory, rng)
    for of in (0, 1):
        assert sorted(permuted[trajectory == of]) == sorted(time[trajectory == of])
    draws = {tuple(_permuted(time, trajectory, rng)) for _ in range(50)}
    assert len(draws) > 10


@pytest.mark.parametrize(("n_now", "n_later"), [(300, 1200), (1200, 300), (1, 700)])
def test_no_coupling_is_larger_than_a_minibatch_and_each_cell_is_in_one(n_now, n_later):
    time = np.repeat([0, 1], [n_now, n_later])
    parts = list(_populations(time, None, np.random.default_rng(0)))
    for side, n in zip(zip(*parts, strict=True), (n_now, n_later), strict=True):
        cells = np.concatenate(side)
        np.testing.assert_array_equal(np.sort(cells), np.flatnonzero(time == time[cells[0]]))
        assert len(cells) == n
        if n_now > 1:  # a lone cell has to meet all of the next time
            assert max(map(len, side)) <= TRANSPORT_CELLS


def test_permutations_that_reach_the_observed_value_count_against_it(monkeypatch):
    """If permuting changes nothing, nothing is more than chance."""
    from types import SimpleNamespace

    import torch

    from scdeepclust.tl import _time

    time, trajectory = np.tile([0, 1, 2], 4), np.repeat(np.arange(4), 3)
    cluster = np.tile([0, 1, 2], 4)
    model = SimpleNamespace(
        _check_if_trained=lambda warn: None,
        _setup_arg=lambda name: name,
        _times=lambda cells: (time, trajectory),
        _nearest_nodes=lambda: cluster,
        _time_pairs=lambda cells, points, times, trajectory: cell_pairs(times, trajectory, np.zeros((12, 1))),
        adata=SimpleNamespace(n_obs=12),
        module=SimpleNamespace(node_cluster=torch.arange(3)),
        n_clusters=3,
    )
    observed = _time.time_control(model, n_permutations=19).loc["direction"]
    assert observed["observed"] == 1
    assert 1 / 20 <= observed["p_value"] < 0.5
    monkeypatch.setattr(_time, "_permuted", lambda time, trajectory, rng: time)
    table = _time.time_control(model, n_permutations=4)
    np.testing.assert_allclose(table["p_value"], 1)
    np.testing.assert_allclose(table["excess"], 0)
