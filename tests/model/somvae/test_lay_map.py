"""Size, place and regions of a map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import connected_components

from scdeepclust.model.somvae._lay_map import (
    batch_som,
    choose_grid,
    fill_dead_nodes,
    lay_map,
    vote_regions,
    with_means,
)
from scdeepclust.model.somvae._som import Grid, node_distances, topographic_error
from scdeepclust.train import nearest


@pytest.fixture
def sheet():
    """Points on a bent sheet in 6 dimensions, twice as long as wide, with their place on it."""
    rng = np.random.default_rng(0)
    place = rng.random((1500, 2)) * [2, 1]
    flat = np.column_stack([place, 0.3 * np.sin(3 * place[:, 0]), np.zeros((1500, 3))])
    return flat + rng.normal(0, 0.02, (1500, 6)), place


def test_grid_follows_the_number_of_cells_and_the_shape_of_the_data(sheet):
    points, _ = sheet
    n_rows, n_columns = choose_grid(points, 5)
    assert n_columns / n_rows == pytest.approx(2, abs=0.4)
    assert n_rows * n_columns == pytest.approx(1500 / 10, rel=0.15)
    assert np.prod(choose_grid(points[:60], 8)) >= 0.9 * 24  # three nodes a cluster
    assert np.prod(choose_grid(points[:4], 2)) <= 6
    many = np.random.default_rng(0).normal(size=(50_000, 5))
    assert np.prod(choose_grid(many, 10)) == pytest.approx(400, rel=0.05)


def test_batch_som_unfolds_a_sheet(sheet):
    points, place = sheet
    grid = Grid(6, 12)
    codebook = batch_som(points, grid)
    distances = node_distances(torch.tensor(points), torch.tensor(codebook))
    assert topographic_error(distances, grid.adjacency(diagonal=True)) < 0.05
    columns = distances.argmin(1).numpy() % 12
    assert abs(np.corrcoef(columns, place[:, 0])[0, 1]) > 0.97


def test_a_small_radius_is_needed_for_accuracy_and_a_large_start_for_order(sheet):
    points, _ = sheet
    error = [np.square(points - c[nearest(points, c)]).sum() for c in (batch_som(points, Grid(6, 12), final_radius=r)
             for r in (0.5, 2.0))]  # fmt: skip
    assert error[0] < 0.6 * error[1]


def test_dead_nodes_take_half_of_the_fullest_neighbour_and_keep_the_order():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(c, 0.1, (100, 2)) for c in ((0, 0), (5, 0))])
    grid = Grid(1, 6)
    codebook = np.array([[0, 0], [0.01, 0], [2.5, 0], [2.6, 0], [5, 0], [5.01, 0]], dtype=float)
    filled = fill_dead_nodes(points, codebook, grid)
    hits = np.bincount(nearest(points, filled), minlength=6)
    assert (hits > 10).all()
    assert (np.diff(filled[:, 0]) > -0.2).all()
    np.testing.assert_array_equal(codebook[2], [2.5, 0])  # the argument is left alone


def test_the_giver_keeps_the_other_half():
    points = np.array([[-1.0], [-1.0], [1.0], [1.0]])
    filled = fill_dead_nodes(points, np.array([[0.0], [3.0]]), Grid(1, 2))
    np.testing.assert_array_equal(filled, [[-1.0], [1.0]])


def test_points_that_coincide_cannot_fill_a_node():
    points = np.zeros((10, 2))
    codebook = np.array([[0.0, 0], [1, 0], [2, 0], [3, 0]])
    np.testing.assert_array_equal(fill_dead_nodes(points, codebook, Grid(1, 4)), codebook)


def test_regions_follow_the_votes_and_are_connected():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(c, 0.3, (200, 3)) for c in np.eye(3) * 4])
    labels = np.repeat([0, 1, 2], 200)
    grid = Grid(5, 6)
    codebook, node = lay_map(points, labels, grid)
    cluster = vote_regions(node, labels, codebook, grid)
    assert (cluster[node] == labels).mean() > 0.99
    for k in range(3):
        own = np.flatnonzero(cluster == k)
        assert connected_components(grid.adjacency(diagonal=True).numpy()[np.ix_(own, own)])[0] == 1


def test_a_part_that_lies_apart_joins_the_region_around_it():
    grid = Grid(1, 5)
    codebook = np.arange(5.0)[:, None]
    node = np.array([0] * 9 + [1] * 9 + [2] * 5 + [3] * 9 + [4] * 3)
    labels = np.array([0] * 9 + [0] * 9 + [1] * 5 + [1] * 9 + [0] * 3)  # label 0 also on node 4
    np.testing.assert_array_equal(vote_regions(node, labels, codebook, grid), [0, 0, 1, 1, 1])


def test_regions_may_meet_at_a_corner():
    labels = np.repeat([0, 1, 1, 0], 5)
    node = np.repeat([0, 1, 2, 3], 5)
    np.testing.assert_array_equal(vote_regions(node, labels, np.eye(4), Grid(2, 2)), [0, 1, 1, 0])


def test_a_large_part_stays_a_cluster_where_two_others_are_closer():
    grid = Grid(1, 4)
    codebook = np.array([[0.0], [5.0], [5.5], [10.0]])
    node, labels = np.repeat([0, 1, 2, 3], 20), np.repeat([0, 1, 2, 0], 20)  # label 0 lies at both ends
    cluster = vote_regions(node, labels, codebook, grid)
    assert cluster[1] == cluster[2]
    assert len(np.unique(cluster)) == 3
    assert cluster[0] == 0


def test_attached_means_spread_as_the_points_do_within_clusters():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 500)
    points = rng.normal(size=(500, 4)) * 3 + np.eye(3, 4)[labels] * [1, 2, 5, 0]
    attached = with_means(points, labels)
    np.testing.assert_array_equal(attached[:, :4], points)
    means = np.stack([points[labels == k].mean(axis=0) for k in range(3)])
    within = np.mean([np.square(p - means[k]).sum() for p, k in zip(points, labels, strict=True)])
    np.testing.assert_allclose(attached[:, 4:].var(axis=0).sum(), within)
    direction = (means - points.mean(axis=0))[labels]
    cosine = (direction * attached[:, 4:]).sum(1) / np.linalg.norm(direction, axis=1)
    np.testing.assert_allclose(cosine, np.linalg.norm(attached[:, 4:], axis=1))
    np.testing.assert_array_equal(with_means(points, np.zeros(500, dtype=int))[:, 4:], 0)


def test_points_of_a_cluster_stay_together_on_the_map(monkeypatch):
    """The labels split a direction that a map of two dimensions has no room for."""
    from scdeepclust.model.somvae import _lay_map as _map

    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (1000, 3)) * [3, 2, 1]
    labels = (points[:, 2] > 0).astype(int)
    grid = Grid(6, 9)

    def purity():
        codebook, node = lay_map(points, labels, grid)
        assert codebook.shape == (54, 3)
        votes = np.zeros((54, 2))
        np.add.at(votes, (node, labels), 1)
        return votes.max(axis=1).sum() / len(points)

    with_labels = purity()
    monkeypatch.setattr(_map, "with_means", lambda points, labels: points)
    assert with_labels > purity() + 0.05


def test_many_points_are_laid_by_a_sample(monkeypatch, sheet):
    from scdeepclust.train import _init

    monkeypatch.setattr(_init, "MAX_POINTS", 300)
    points, _ = sheet
    grid = Grid(4, 8)
    codebook, node = lay_map(points, np.zeros(len(points), dtype=int), grid)
    distances = node_distances(torch.tensor(points), torch.tensor(codebook))
    assert topographic_error(distances, grid.adjacency(diagonal=True)) < 0.1
    np.testing.assert_array_equal(node, distances.argmin(1).numpy())


def test_a_node_without_cells_joins_the_closer_side():
    grid = Grid(1, 3)
    node, labels = np.array([0, 0, 2, 2]), np.array([0, 0, 1, 1])
    for middle, expected in ((0.5, 0), (1.5, 1)):
        codebook = np.array([[0.0], [middle], [2.0]])
        assert vote_regions(node, labels, codebook, grid)[1] == expected
