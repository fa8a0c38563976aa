"""Start labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from scdeepclust.train import _init as init_module
from scdeepclust.train import initial_labels, nearest
from scdeepclust.train._init import merge_centers, merge_costs


def blobs(sizes, seed=0, spread=1.0, distance=8.0, dimensions=5):
    rng = np.random.default_rng(seed)
    centers = distance * np.eye(len(sizes), dimensions)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    return centers[truth] + spread * rng.normal(size=(len(truth), dimensions)), truth


@pytest.mark.parametrize("method", ["merge", "kmeans", "gmm", "leiden"])
def test_every_method_finds_separate_groups(method):
    points, truth = blobs([100, 60, 40])
    labels = initial_labels(points, method, 3)
    assert adjusted_rand_score(truth, labels) == 1
    assert set(labels) == {0, 1, 2}


@pytest.mark.parametrize("method", ["merge", "kmeans", "gmm", "leiden"])
def test_the_same_seed_gives_the_same_labels(method):
    points, _ = blobs([80, 50, 30], spread=4.0)
    first, second = (initial_labels(points, method, 4, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_merging_keeps_a_large_group_whole_where_k_means_splits_it():
    rng = np.random.default_rng(0)
    large = rng.normal(size=(2000, 2)) * [4.0, 1.0]
    small = [rng.normal(size=(200, 2)) * 0.5 + [0, y] for y in (10.0, -10.0)]
    points, truth = np.concatenate([large, *small]), np.repeat([0, 1, 2], [2000, 200, 200])
    merged = adjusted_rand_score(truth, initial_labels(points, "merge", 3))
    kmeans = adjusted_rand_score(truth, initial_labels(points, "kmeans", 3))
    assert merged > kmeans + 0.3


def test_of_several_partitions_the_most_typical_is_taken(monkeypatch):
    points, truth = blobs([100, 60, 40])
    good = np.stack([points[truth == k].mean(axis=0) for k in range(3)])
    odd = np.stack([good[0] - 2, good[0] + 2, good[1:].mean(axis=0)])
    seeds = []

    def centers(points, n_clusters, *, n_init, seed):
        seeds.append(seed)
        return odd if len(seeds) in (1, 3) else good

    monkeypatch.setattr(init_module, "_merged_centers", centers)
    assert adjusted_rand_score(truth, init_module.merged_labels(points, 3)) == 1
    assert len(set(seeds)) == len(seeds) == init_module.N_CANDIDATES


def test_no_number_means_leiden():
    points, truth = blobs([100, 80, 60, 60])
    assert adjusted_rand_score(truth, initial_labels(points, "merge", None)) > 0.5


def test_leiden_joins_communities_where_no_resolution_gives_their_number(monkeypatch):
    points, truth = blobs([100, 80, 60, 60])
    # blobs 2 and 3 are always split together: there are two communities, or four
    points[truth == 3] = points[truth == 2].mean(axis=0) + 0.3 * (points[truth == 3] - points[truth == 3].mean(axis=0))
    points[truth == 3, 0] += 4
    monkeypatch.setattr(
        init_module, "_leiden", lambda graph, resolution, seed: truth if resolution > 0.3 else (truth > 1).astype(int)
    )
    labels = init_module.leiden_labels(points, n_clusters=3)
    np.testing.assert_array_equal(np.unique(labels), [0, 1, 2])
    expected = np.minimum(truth, 2)
    assert adjusted_rand_score(expected, labels) == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(1, 8), st.integers(0, 1000))
def test_merging_keeps_the_total_mean_and_removes_the_cheapest_pair(n_centers, n_keep, seed):
    rng = np.random.default_rng(seed)
    centers, sizes = rng.normal(size=(n_centers, 3)), rng.integers(1, 50, n_centers).astype(float)
    n_keep = min(n_keep, n_centers)
    assert merge_centers(centers, sizes, n_keep).shape == (n_keep, 3)
    one = merge_centers(centers, sizes, 1)
    np.testing.assert_allclose(one[0], np.average(centers, axis=0, weights=sizes))
    if n_centers > 2:
        after = merge_centers(centers, sizes, n_centers - 1)
        cost = {}
        for a in range(n_centers):
            for b in range(a):
                m = sizes[a] * sizes[b] / (sizes[a] + sizes[b])
                factor = m / (m + sizes.sum() / (n_centers - 1))
                cost[a, b] = factor * ((centers[a] - centers[b]) ** 2).sum()
        a, b = min(cost, key=cost.get)
        kept = [i for i in range(n_centers) if i not in (a, b)]
        for i in kept:
            assert np.isclose(after, centers[i]).all(axis=1).any()


def test_large_data_are_sampled_and_all_points_get_labels(monkeypatch):
    monkeypatch.setattr(init_module, "MAX_POINTS", 150)
    points, truth = blobs([300, 200, 100])
    for method in ("merge", "kmeans", "gmm", "leiden"):
        labels = initial_labels(points, method, 3)
        assert len(labels) == 600
        assert adjusted_rand_score(truth, labels) == 1


def test_nearest_is_the_nearest():
    points, _ = blobs([30, 20])
    centers = points[[0, 40]]
    expected = ((points[:, None] - centers) ** 2).sum(-1).argmin(1)
    np.testing.assert_array_equal(nearest(points, centers), expected)


def test_the_cost_of_a_merge_is_that_of_ward_for_small_groups_and_a_distance_for_large_ones():
    centers, sizes = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]]), np.array([10.0, 40.0, 40.0])
    cost = merge_costs(centers, sizes, average=12.0)
    assert cost[0, 1] == cost[1, 0] == pytest.approx(25 * 8 / (8 + 12))  # 10 * 40 / 50 = 8 cells
    assert cost[0, 2] == pytest.approx(1 * 8 / (8 + 12))
    assert cost[1, 2] == pytest.approx(18 * 20 / (20 + 12))


def test_merged_centres_are_moved_to_the_means_of_their_points():
    """Merging leaves centres where whole micro-clusters put them; points at the borders belong to others."""
    points, _ = blobs([300, 200, 100], spread=2.5)
    centers = init_module._merged_centers(points, 3, n_init=3, seed=0)
    node = nearest(points, centers)
    means = np.stack([points[node == k].mean(axis=0) for k in range(3)])
    np.testing.assert_allclose(centers, means, atol=1e-6)
