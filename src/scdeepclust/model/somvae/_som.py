"""A grid of nodes: neighbourhoods, the terms that lay it into a latent space, and how well it lies there."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scdeepclust.nn import full_precision


class Grid(NamedTuple):
    """A rectangular grid of nodes without wrap-around; node k lies in row ``k // n_cols`` and column ``k % n_cols``.

    Parameters
    ----------
    n_rows, n_cols
        Size of the grid.

    Examples
    --------
    >>> from scdeepclust.model.somvae._som import Grid
    >>> Grid(2, 3).coordinates()[4]
    tensor([1., 1.])
    """

    n_rows: int
    n_cols: int

    @property
    def n_nodes(self) -> int:
        """Number of nodes, K."""
        return self.n_rows * self.n_cols

    def coordinates(self, device: torch.device | None = None) -> Tensor:
        """Row and column of each node, (K, 2) float32."""
        sides = (torch.arange(side, device=device) for side in self)
        row, col = torch.meshgrid(*sides, indexing="ij")
        return torch.stack([row.flatten(), col.flatten()], dim=1).float()

    def squared_distances(self, device: torch.device | None = None) -> Tensor:
        """Squared distances of the nodes on the grid, (K, K)."""
        at = self.coordinates(device)
        return (at.unsqueeze(1) - at.unsqueeze(0)).square().sum(dim=2)

    def adjacency(self, diagonal: bool = False) -> Tensor:
        """Which nodes are neighbours, (K, K) bool: up, down, left, right, and with ``diagonal`` all eight around."""
        squared = self.squared_distances()
        return (squared > 0) & (squared <= (2 if diagonal else 1))


def neighbourhood(squared_distances: Tensor, radius: float) -> Tensor:
    """Gaussian weights of the nodes around each node, (K, K); each row sums to one.

    Nodes beyond an edge do not exist, so the weights at an edge are shared by fewer nodes.
    """
    return torch.softmax(-squared_distances / (2 * radius**2), dim=1)


@full_precision
def node_distances(z: Tensor, codebook: Tensor) -> Tensor:
    """Squared Euclidean distances of latent codes (..., D) to the nodes (K, D), shape (..., K)."""
    cross = z @ codebook.T
    squared = z.square().sum(dim=-1, keepdim=True) + codebook.square().sum(dim=-1) - 2 * cross
    return squared.clamp_min(0)


@full_precision
def som_loss(distances: Tensor, node: Tensor, weights: Tensor) -> Tensor:
    """Mean squared distance of each cell to the nodes around its own, (B,).

    Parameters
    ----------
    distances
        Squared distances (B, K) of detached latent codes to the nodes: only the codebook is moved.
    node
        Node of each cell (B,).
    weights
        Neighbourhood (K, K).
    """
    return (weights[node] * distances).sum(dim=1)


def topographic_error(distances: Tensor, adjacency: Tensor) -> float:
    """Share of the cells whose two nearest nodes are no neighbours on the grid.

    Parameters
    ----------
    distances
        Distances of cells to nodes (B, K).
    adjacency
        Neighbours (K, K), usually all eight around a node.
    """
    return 1 - are_beside(distances, adjacency).float().mean().item()


def are_beside(distances: Tensor, adjacency: Tensor) -> Tensor:
    """Whether the two nearest nodes of each cell are neighbours, (B,) bool; arguments of :func:`topographic_error`."""
    first, second = distances.topk(2, dim=1, largest=False).indices.unbind(dim=1)
    return adjacency[first, second]


# -- transitions ------------------------------------------------------------------------------------------------------


@full_precision
def arrival_loss(expected: Tensor, distances: Tensor) -> Tensor:
    """Cross-entropy between where each cell is expected and where it is, (B,).

    Where it is: a Student-t assignment, in which a cell far from all expected nodes still pulls with a bounded force.
    (The mean squared distance to the expected nodes, as published, grows without bound, and draws the whole map
    together.)

    Parameters
    ----------
    expected
        Probability of each node from the cells before (B, K), held fixed; all zero where nothing leads to a cell.
    distances
        Squared distances (B, K) of the cells to the nodes, in units at which the kernel has fallen to one half.
    """
    return -(expected.detach() * torch.log_softmax(-torch.log1p(distances), dim=1)).sum(dim=1)


def smoothed_transitions(counts: Tensor, pseudo_count: float) -> Tensor:
    """Row-stochastic matrix from (weighted) counts (K, K) with ``pseudo_count`` spread over each row."""
    n_nodes = counts.shape[1]
    return (counts + pseudo_count / n_nodes) / (counts.sum(dim=1, keepdim=True) + pseudo_count)


def stationary_distribution(transitions: Tensor, n_steps: int = 1000) -> Tensor:
    """Share of time that a chain spends in each state in the long run, (K,), from a uniform start.

    The chain is made lazy (it stays with probability 1/2), which changes nothing but periodicity.
    """
    share = torch.full((len(transitions),), 1 / len(transitions), dtype=transitions.dtype)
    for _ in range(n_steps):
        share = (share + share @ transitions) / 2
    return share / share.sum()
