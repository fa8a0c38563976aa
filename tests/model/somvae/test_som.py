"""The equations of the map, restated in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scdeepclust.model.somvae._som import (
    Grid,
    arrival_loss,
    neighbourhood,
    node_distances,
    smoothed_transitions,
    som_loss,
    stationary_distribution,
    topographic_error,
)


@pytest.mark.parametrize("shape", [(3, 4), (1, 5), (4, 2)])
def test_neighbours_are_those_beside_a_node_and_never_beyond_an_edge(shape):
    grid = Grid(*shape)
    four, eight = grid.adjacency().numpy(), grid.adjacency(diagonal=True).numpy()
    for k in range(grid.n_nodes):
        for j in range(grid.n_nodes):
            down, right = abs(k // shape[1] - j // shape[1]), abs(k % shape[1] - j % shape[1])
            assert four[k, j] == (down + right == 1)
            assert eight[k, j] == (max(down, right) == 1)


def test_neighbourhood_is_a_gaussian_that_sums_to_one_at_edges_too():
    grid = Grid(2, 3)
    weights = neighbourhood(grid.squared_distances(), 0.8).numpy()
    at = np.array([(r, c) for r in range(2) for c in range(3)])
    expected = np.exp(-((at[:, None] - at[None]) ** 2).sum(-1) / (2 * 0.8**2))
    np.testing.assert_allclose(weights, expected / expected.sum(1, keepdims=True), rtol=1e-5)


def test_som_loss_is_the_weighted_distance_to_the_nodes_around_the_own_one():
    rng = np.random.default_rng(0)
    z, codebook = rng.normal(size=(5, 3)), rng.normal(size=(6, 3))
    weights = rng.random((6, 6))
    distances = ((z[:, None] - codebook[None]) ** 2).sum(-1)
    node = distances.argmin(1)
    expected = [sum(weights[node[i], k] * distances[i, k] for k in range(6)) for i in range(5)]
    z, codebook, weights = (torch.tensor(x) for x in (z, codebook, weights))
    torch.testing.assert_close(node_distances(z, codebook), torch.tensor(distances))
    got = som_loss(node_distances(z, codebook), torch.tensor(node), weights)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_arrival_loss_is_a_cross_entropy_with_a_student_t_assignment():
    rng = np.random.default_rng(1)
    distances, expected = rng.random((4, 6)) * 9, rng.dirichlet(np.ones(6), size=4)
    expected[2] = 0
    s = 1 / (1 + distances)
    s /= s.sum(1, keepdims=True)
    got = arrival_loss(torch.tensor(expected), torch.tensor(distances))
    np.testing.assert_allclose(got, -(expected * np.log(s)).sum(1), rtol=1e-6)
    assert got[2] == 0


def test_arrival_loss_pulls_a_far_cell_with_a_bounded_force():
    for far in (1e2, 1e4, 1e6):
        place = torch.tensor([[far, 0.0]], requires_grad=True)
        distances = node_distances(place, torch.tensor([[0.0, 0.0], [far, 0.0]]))
        arrival_loss(torch.tensor([[1.0, 0.0]]), distances).sum().backward()
        assert place.grad.abs().max() < 1


def test_topographic_error_counts_cells_whose_two_nearest_nodes_are_apart():
    grid = Grid(1, 4)
    codebook = torch.tensor([[0.0], [1.0], [2.0], [0.1]])  # node 3 is folded back onto node 0
    z = torch.tensor([[0.04], [1.45], [1.6], [0.06]])
    error = topographic_error(node_distances(z, codebook), grid.adjacency(diagonal=True))
    assert error == pytest.approx(0.5)


def test_smoothed_transitions_are_counts_plus_a_pseudo_count_spread_over_the_row():
    counts = torch.tensor([[3.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    expected = [[3.25 / 5, 1.25 / 5, 0.05, 0.05], [0.25] * 4]
    torch.testing.assert_close(smoothed_transitions(counts, 1.0), torch.tensor(expected))


def test_stationary_distribution_is_the_left_eigenvector():
    p = torch.tensor(np.random.default_rng(2).dirichlet(np.ones(5), size=5))
    share = stationary_distribution(p)
    torch.testing.assert_close(share @ p, share)
    assert share.sum().item() == pytest.approx(1)
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])  # a chain with a period
    torch.testing.assert_close(stationary_distribution(swap), torch.tensor([0.5, 0.5]))
