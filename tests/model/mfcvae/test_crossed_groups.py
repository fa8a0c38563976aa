"""The search for groups that are crossed with the main clusters."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from scdeepclust.model.mfcvae import _crossed_groups as _facets
from scdeepclust.model.mfcvae._crossed_groups import _additive_effects, _assign, crossed_groups, shared_information
from scdeepclust.train import kmeans_labels, means_and_sizes


def crossed_points(n_clusters: int, n_groups: int, seed: int, n: int = 600):
    rng = np.random.default_rng(seed)
    c, s = rng.integers(n_clusters, size=n), rng.integers(n_groups, size=n)
    a, b = rng.normal(scale=4, size=(n_clusters, 10)), rng.normal(scale=2, size=(n_groups, 10))
    return a[c] + b[s] + rng.normal(size=(n, 10)), c, s


@pytest.mark.parametrize(("n_groups", "seed"), [(2, 0), (3, 1), (4, 2)])
def test_crossed_groups_are_found_with_their_number(n_groups, seed):
    points, clusters, groups = crossed_points(6, n_groups, seed)
    found = crossed_groups(points, 6)
    assert adjusted_rand_score(groups, found.labels) > 0.9
    assert normalized_mutual_info_score(clusters, found.labels) < 0.05
    assert found.ratio < 0.9


def test_ordinary_clusters_are_not_crossed():
    rng = np.random.default_rng(0)
    labels = rng.integers(7, size=600)
    points = rng.normal(scale=4, size=(7, 10))[labels] + rng.normal(size=(600, 10))
    for n_clusters in (6, 7):
        assert crossed_groups(points, n_clusters).ratio > 1


def test_the_search_is_reproducible():
    points, _, _ = crossed_points(4, 2, 0)
    np.testing.assert_array_equal(crossed_groups(points, 4, seed=3).labels, crossed_groups(points, 4, seed=3).labels)


def test_effects_are_those_of_weighted_least_squares():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 2)), rng.normal(size=(2, 2))
    c, s = rng.integers(3, size=50), rng.integers(2, size=50)
    weights = rng.uniform(0.5, 2, size=50)
    found_a, found_b = _additive_effects(a[c] + b[s], weights, c, s, 3, 2)
    np.testing.assert_allclose(found_a[c] + found_b[s], a[c] + b[s], atol=1e-4)
    clusters, groups, distances = _assign(a[c] + b[s], found_a, found_b)
    np.testing.assert_array_equal(clusters, c)
    np.testing.assert_array_equal(groups, s)
    np.testing.assert_allclose(distances, 0, atol=1e-6)


def test_shared_information():
    assert shared_information(np.outer([1, 2, 3], [4, 5])) == pytest.approx(0, abs=1e-12)
    assert shared_information(np.diag([1.0, 2.0])) == pytest.approx(1)
    assert shared_information(np.array([[3.0, 4.0]])) == 1


def test_the_ratio_is_to_as_many_free_means_of_ordinary_clusters(monkeypatch):
    """4 clusters and 2 groups have 4 + 2 - 1 free means; restated from the effects that were found."""
    monkeypatch.setattr(_facets, "N_STARTS", 20)
    points, _, _ = crossed_points(4, 2, 0)
    centers, sizes = means_and_sizes(points, kmeans_labels(points, 60, n_init=3, seed=0))
    ratio, effects = _facets._best_crossing(centers, sizes, 4, 2, seed=0)
    clusters, groups, distances = _assign(centers, *effects)
    table = np.zeros((4, 2))
    np.add.at(table, (clusters, groups), sizes)
    error = (sizes @ distances) * (1 + _facets.DEPENDENCE_PENALTY * shared_information(table))
    ordinary = KMeans(5, n_init=10, random_state=0).fit(centers, sample_weight=sizes).inertia_
    assert ratio == pytest.approx(error / ordinary, rel=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_groups_may_be_the_stronger_signal(seed):
    """Groups that spread several times as much as the clusters are still the groups: there are fewer of them."""
    rng = np.random.default_rng(seed)
    clusters, groups = rng.integers(5, size=600), rng.integers(3, size=600)
    points = np.concatenate([6 * np.eye(5)[clusters], 20 * np.eye(3)[groups]], axis=1) + rng.normal(size=(600, 8))
    found = crossed_groups(points, 5)
    assert adjusted_rand_score(groups, found.labels) > 0.95
    assert found.ratio < 1
