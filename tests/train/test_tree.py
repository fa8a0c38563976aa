from __future__ import annotations

import numpy as np
import pytest
from scipy.cluster.hierarchy import is_valid_linkage
from sklearn.metrics import adjusted_rand_score

from scdeepclust.train import (
    cut,
    gap,
    least_p_below,
    mean_gap,
    members,
    separation_linkage,
    sides,
    split_p_values,
)
from scdeepclust.train._tree import EMPTIER, FURTHER, one_population

# A uniform population that is cut in two and measured again without error.
UNIFORM = 12**0.5


def halves(points: np.ndarray, noise: float, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Two noisy measurements of the same points, twice."""
    rng = np.random.default_rng(seed)
    return [tuple(points + noise * rng.normal(size=points.shape) for _ in range(2)) for _ in range(2)]


def cut_at_the_mean(x: np.ndarray) -> float:
    """Separation of one population that is cut in two and measured again without error."""
    points = np.column_stack([x, np.zeros((len(x), 2))])
    return gap(points, points, x > x.mean()).separation


def test_one_population_cut_in_two_has_what_the_theory_says():
    rng = np.random.default_rng(0)
    x = rng.normal(size=200_000)
    below, above = x[x < 0], x[x > 0]
    assert cut_at_the_mean(x) == pytest.approx((above.mean() - below.mean()) / above.std(), rel=1e-2)
    assert cut_at_the_mean(x) == pytest.approx(2 * np.sqrt(2 / np.pi) / np.sqrt(1 - 2 / np.pi), rel=1e-2)  # 2.65
    assert cut_at_the_mean(rng.uniform(size=200_000)) == pytest.approx(UNIFORM, rel=1e-2)


@pytest.mark.parametrize("draw", ["normal", "uniform", "exponential", "lognormal"])
@pytest.mark.parametrize("quantile", [0.05, 0.1, 0.5, 0.9])
def test_a_tail_does_not_look_far_away(draw, quantile):
    x = getattr(np.random.default_rng(1), draw)(size=20_000)
    points = x[:, None]
    assert gap(points, points, x > np.quantile(x, quantile)).separation < UNIFORM + 0.15


def test_separation_is_the_distance_over_the_root_of_the_mean_variance():
    rng = np.random.default_rng(0)
    side = np.repeat([False, True], [3000, 500])
    points = np.where(side[:, None], rng.normal(12, 2, (3500, 1)), rng.normal(0, 1, (3500, 1)))
    assert gap(points, points, side).separation == pytest.approx(12 / np.sqrt((1 + 4) / 2), rel=0.05)
    assert gap(7 * points + 3, 7 * points + 3, side).separation == pytest.approx(gap(points, points, side).separation)
    # the other half judges: where it says nothing of the sides, they are not apart
    assert gap(points, rng.permutation(points), side).separation < 0.2


def test_sides_come_from_the_half_that_is_measured_not_from_the_labels():
    rng = np.random.default_rng(0)
    side = rng.random(4000) < 0.5
    points = rng.normal(size=(4000, 5))  # labels that no half of the counts knows of
    assert gap(points, rng.normal(size=(4000, 5)), side).separation < 0.15
    assert 0.5 < (sides(points, side) == side).mean() < 0.6


def test_the_middle_is_the_share_of_cells_in_the_middle_third():
    x = np.random.default_rng(0).uniform(-1, 1, 100_000)  # the sides have their means at -1/2 and 1/2
    points = np.column_stack([x, np.zeros((len(x), 2))])
    assert gap(points, points, x > 0).middle == pytest.approx(1 / 6, abs=0.005)
    two = np.where(x > 0, 5.0, -5.0) + x
    assert gap(np.column_stack([two, 0 * x]), np.column_stack([two, 0 * x]), x > 0).middle == 0


def test_a_side_of_a_few_cells_is_no_evidence():
    points = np.concatenate([np.zeros((100, 3)), 50 + np.zeros((2, 3))])
    assert gap(points, points, np.arange(102) >= 100) == (0.0, 1.0)


def blobs(centers: np.ndarray, n: int = 150, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(centers)), n)
    return centers[labels] + rng.normal(size=(len(labels), centers.shape[1])), labels


def test_the_tree_joins_what_is_one_and_keeps_what_is_two():
    truth = 12.0 * np.eye(4)[:3]
    points, labels = blobs(truth)
    # each group cut in two along its first dimension
    split = 2 * labels + (points[:, 3] > 0)
    linkage = separation_linkage(split, halves(points, 0.1))
    assert is_valid_linkage(linkage)
    assert (np.diff(linkage[:, 2]) >= 0).all()
    assert linkage[-1, 3] == 6
    p = split_p_values(split, linkage, halves(points, 0.1))
    np.testing.assert_array_equal(p <= 0.05, [False, False, False, True, True])
    group = cut(linkage, least_p_below(linkage, p) > 0.05)
    assert adjusted_rand_score(labels, group[split]) == 1.0
    assert set(map(frozenset, members(linkage)[-1:])) == {frozenset(range(6))}


def test_both_ends_of_a_gradient_are_joined_with_its_middle():
    x = np.random.default_rng(0).uniform(size=3000)
    points = np.column_stack([30 * x, np.zeros((3000, 2))])
    thirds = np.digitize(x, [0.2, 0.8])  # two small ends, which size and distance would join first
    assert mean_gap(halves(points, 0.1), thirds != 1, thirds[thirds != 1] == 2).separation > 10
    linkage = separation_linkage(thirds, halves(points, 0.1))
    assert split_p_values(thirds, linkage, halves(points, 0.1)).min() > 0.05


def test_cut_undoes_splits_and_what_is_below_them():
    linkage = np.array([[0, 1, 2.0, 2], [2, 3, 5.0, 2], [4, 5, 9.0, 4]])
    np.testing.assert_array_equal(cut(linkage, np.array([False, False, False])), [0, 1, 2, 3])
    np.testing.assert_array_equal(cut(linkage, np.array([True, False, False])), [0, 0, 1, 2])
    np.testing.assert_array_equal(cut(linkage, np.array([True, True, False])), [0, 0, 1, 1])
    np.testing.assert_array_equal(cut(linkage, np.array([False, False, True])), [0, 0, 0, 0])


def test_a_split_stands_where_one_below_it_does():
    linkage = np.array([[0, 1, 2.0, 2], [2, 3, 5.0, 2], [4, 5, 9.0, 4]])
    np.testing.assert_allclose(least_p_below(linkage, np.array([0.4, 0.01, 0.3])), [0.4, 0.01, 0.01])
    np.testing.assert_allclose(least_p_below(linkage, np.array([0.4, 0.5, 0.3])), [0.4, 0.5, 0.3])


@pytest.mark.parametrize("noise", [0.05, 1.0])
@pytest.mark.parametrize("n", [60, 2000])
def test_what_is_drawn_is_one_population_with_the_noise_of_the_cells(n, noise):
    """Independently of how it is drawn: uniform cells with the same noise, cut in the middle."""
    rng = np.random.default_rng(n)

    def uniform() -> np.ndarray:
        return np.column_stack([rng.uniform(-(3**0.5), 3**0.5, n), 0.1 * rng.normal(size=(n, 2))])

    expected = []
    for _ in range(20):
        pair = [uniform()] * 2
        pair = tuple(cells + noise * rng.normal(size=cells.shape) for cells in pair)
        expected.append(mean_gap([pair], np.ones(n, bool), (pair[0] + pair[1])[:, 0] > 0))
    # two groups with the covariance of the uniform cells: what is drawn must not know that they are two
    groups = uniform()
    groups[:, 0] = np.where(np.arange(n) < n / 2, -1.0, 1.0)
    first, second = (groups + noise * rng.normal(size=groups.shape) for _ in range(2))
    drawn = np.mean(one_population(first, second, groups[:, 0] > 0, rng), axis=0)
    apart, middle = np.mean(expected, axis=0)
    assert drawn[0] == pytest.approx(apart, abs=0.15 if n > 1000 else 0.6)
    assert drawn[1] == pytest.approx(middle, abs=0.01 if n > 1000 else 0.05)


def test_two_groups_have_a_small_p_however_noisy_and_few_and_one_has_not():
    rng = np.random.default_rng(0)
    for n, noise, distance in ((60, 0.3, 10.0), (2000, 2.0, 12.0), (2000, 0.3, 7.0)):
        side = np.arange(n) < n // 2
        points = rng.normal(size=(n, 4)) + distance * np.outer(side, np.eye(4)[0])
        linkage = separation_linkage(side.astype(int), halves(points, noise))
        assert split_p_values(side.astype(int), linkage, halves(points, noise))[0] < 1e-3
    # with two groups, an eighth of them and no noise: one population, ends of a gradient and a skewed one
    arc = lambda size: np.cos(rng.uniform(0, np.pi, size))  # noqa: E731  # half a circle, seen from the side
    for draw in (rng.normal, rng.uniform, rng.exponential, arc):
        points = np.column_stack([draw(size=1500), 0.2 * rng.normal(size=(1500, 3))])
        for quantile in (0.5, 0.125):
            side = points[:, 0] < np.quantile(points[:, 0], quantile)
            linkage = separation_linkage(side.astype(int), halves(points, 0.1))
            assert split_p_values(side.astype(int), linkage, halves(points, 0.1))[0] > 0.05


def test_a_split_needs_both_distance_and_an_empty_middle():
    rng = np.random.default_rng(0)
    n = 3000
    sign = rng.choice([-1, 1], n)
    # far apart, but with many cells in between; and nothing in between, but long tails and no distance to speak of
    bridged = np.where(rng.random(n) < 0.45, rng.uniform(-5, 5, n), 5 * sign + 0.3 * rng.normal(size=n))
    tails = sign * (1 + rng.exponential(1.5, n))
    for x, is_far, is_empty in ((bridged, True, False), (tails, False, True)):
        points = np.column_stack([x, 0.2 * rng.normal(size=(n, 2))])
        measured, side = halves(points, 0.05), x > 0
        found = mean_gap(measured, np.ones(n, bool), side)
        assert (found.separation > FURTHER * UNIFORM + 0.3) == is_far
        assert (found.middle < 0.8 * EMPTIER / 6) == is_empty  # a uniform population has a sixth there
        linkage = np.array([[0, 1, found.separation, 2]])
        assert split_p_values(side.astype(int), linkage, measured)[0] > 0.05


def test_p_is_corrected_for_the_number_of_splits():
    points, labels = blobs(9.0 * np.eye(5)[:4])
    linkage = separation_linkage(labels, halves(points, 0.1))
    p = split_p_values(labels, linkage, halves(points, 0.1))
    assert p.shape == (3,)
    assert ((0 <= p) & (p <= 1)).all()
    alone = split_p_values((labels > 0).astype(int), np.array([[0.0, 1.0, 3.0, 2.0]]), halves(points, 0.1))
    assert alone.shape == (1,)
    assert EMPTIER < 1 < FURTHER
