from __future__ import annotations

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, is_valid_linkage
from sklearn.metrics import adjusted_rand_score

from scdeepclust.train import FLOOR, cut, mean_separation, members, separation, separation_linkage, sides


def halves(points: np.ndarray, noise: float, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Two noisy measurements of the same points, twice."""
    rng = np.random.default_rng(seed)
    return [tuple(points + noise * rng.normal(size=points.shape) for _ in range(2)) for _ in range(2)]


def cut_at_the_mean(x: np.ndarray) -> float:
    """Separation of one population that is cut in two and measured again without error."""
    points = np.column_stack([x, np.zeros((len(x), 2))])
    return separation(points, points, x > x.mean())


def test_one_population_cut_in_two_has_what_the_theory_says():
    rng = np.random.default_rng(0)
    x = rng.normal(size=200_000)
    below, above = x[x < 0], x[x > 0]
    assert cut_at_the_mean(x) == pytest.approx((above.mean() - below.mean()) / above.std(), rel=1e-2)
    assert cut_at_the_mean(x) == pytest.approx(2 * np.sqrt(2 / np.pi) / np.sqrt(1 - 2 / np.pi), rel=1e-2)  # 2.65
    assert cut_at_the_mean(rng.uniform(size=200_000)) == pytest.approx(np.sqrt(12), rel=1e-2)
    assert cut_at_the_mean(rng.uniform(size=200_000)) < FLOOR


@pytest.mark.parametrize("draw", ["normal", "uniform", "exponential", "lognormal"])
@pytest.mark.parametrize("quantile", [0.05, 0.1, 0.5, 0.9])
def test_a_tail_does_not_look_far_away(draw, quantile):
    x = getattr(np.random.default_rng(1), draw)(size=20_000)
    points = x[:, None]
    assert separation(points, points, x > np.quantile(x, quantile)) < FLOOR + 0.1


def test_separation_is_the_distance_over_the_root_of_the_mean_variance():
    rng = np.random.default_rng(0)
    side = np.repeat([False, True], [3000, 500])
    points = np.where(side[:, None], rng.normal(12, 2, (3500, 1)), rng.normal(0, 1, (3500, 1)))
    assert separation(points, points, side) == pytest.approx(12 / np.sqrt((1 + 4) / 2), rel=0.05)
    assert separation(7 * points + 3, 7 * points + 3, side) == pytest.approx(separation(points, points, side))
    # the other half judges: where it says nothing of the sides, they are not apart
    assert separation(points, rng.permutation(points), side) < 0.2


def test_sides_come_from_the_half_that_is_measured_not_from_the_labels():
    rng = np.random.default_rng(0)
    side = rng.random(4000) < 0.5
    points = rng.normal(size=(4000, 5))  # labels that no half of the counts knows of
    assert separation(points, rng.normal(size=(4000, 5)), side) < 0.15
    assert 0.5 < (sides(points, side) == side).mean() < 0.6


def test_a_side_of_a_few_cells_is_no_evidence():
    points = np.concatenate([np.zeros((100, 3)), 50 + np.zeros((2, 3))])
    assert separation(points, points, np.arange(102) >= 100) == 0.0


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
    group = cut(linkage)
    assert adjusted_rand_score(labels, group[split]) == 1.0
    np.testing.assert_array_equal(np.unique(fcluster(linkage, FLOOR, criterion="distance")).size, np.unique(group).size)
    assert set(map(frozenset, members(linkage)[-1:])) == {frozenset(range(6))}


def test_both_ends_of_a_gradient_are_joined_with_its_middle():
    x = np.random.default_rng(0).uniform(size=3000)
    points = np.column_stack([30 * x, np.zeros((3000, 2))])
    thirds = np.digitize(x, [0.2, 0.8])  # two small ends, which size and distance would join first
    assert mean_separation(halves(points, 0.1), thirds != 1, thirds[thirds != 1] == 2) > 10
    assert cut(separation_linkage(thirds, halves(points, 0.1))).max() == 0


def test_cut_by_floor():
    linkage = np.array([[0, 1, 2.0, 20], [2, 3, 5.0, 20], [4, 5, 9.0, 40]])
    np.testing.assert_array_equal(cut(linkage, 1), [0, 1, 2, 3])
    np.testing.assert_array_equal(cut(linkage, 3), [0, 0, 1, 2])
    np.testing.assert_array_equal(cut(linkage, 6), [0, 0, 1, 1])
    np.testing.assert_array_equal(cut(linkage, 10), [0, 0, 0, 0])
