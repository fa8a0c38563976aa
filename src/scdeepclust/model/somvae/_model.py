"""SOMVAE: an autoencoder of counts whose latent space is quantised by a self-organising map.

Fortuin, Hüser, Locatello, Strathmann, Rätsch, "SOM-VAE: interpretable discrete representation learning on time
series", ICLR (2019). An encoder gives each cell a code z; the nearest node of a grid gives z_q; both are decoded into
counts. Nodes that lie beside each other on the grid are kept beside each other in the latent space, so that the grid
is a map of cell states; regions of the map are the clusters. With time, a Markov chain over the nodes says where
cells go next, and pulls cells towards where those before them are expected to arrive.

What differs from the paper, and why:

* Counts and their likelihoods; an autoencoder pretrained on noisy input first. Training everything from random
  weights gives nodes of good quality on a map without any order.
* The map is laid by a batch self-organising map on *denoised expression* (the profile the decoder expects, averaged
  over batches) with the mean of a cell's start cluster attached; its radius shrinks to a size that keeps the order, and
  dead nodes take half of a neighbour's cells. The codebook starts at the means of the nodes' cells in the latent space,
  and each cell is drawn to the node it was laid on. Drawn to the nearest node instead, as published, cells wander off
  while the codes move.
* Clusters are connected regions of the map, by the vote of start labels found in the same denoised expression; parts
  of a label that lie apart merge with regions they touch.
* All eight neighbours, by a Gaussian, instead of four with equal weight; nodes beyond an edge do not exist instead of
  being zero.
* Distances are in units of the median squared distance of a cell to its node, and the weights relative to a
  reconstruction per entry of the count matrix, so that one set of weights serves all data.
* One decoder for z and z_q. The published code makes two by accident.
* Time as weighted pairs of cells (``_cell_pairs.py``) instead of the order of rows in a minibatch:
  single cells are destroyed by being measured. The transition matrix is that of the counted transitions, which is its
  maximum-likelihood estimate, renewed after each epoch. The smoothness term does not change the matrix, and is a
  cross-entropy of a Student-t assignment instead of a squared distance, which draws the whole map together.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from anndata import AnnData
from scvi.module.base import LossOutput
from torch import Tensor, nn

from scdeepclust._keys import CELL_INDEX
from scdeepclust.model._base import AutoencoderModule, ClusteringModel, shared_docs
from scdeepclust.nn import (
    Covariates,
    Dispersion,
    GeneLikelihood,
)
from scdeepclust.train import Initialiser, Phase, RefreshTargets, epochs_for_steps, nearest, pretraining_epochs

from ._lay_map import FINAL_RADIUS, choose_grid, fill_dead_nodes, lay_map, vote_regions
from ._map_results import MapGetters
from ._som import Grid, arrival_loss, neighbourhood, node_distances, som_loss
from ._transitions import TransitionGetters

# Shares of cells whose two nearest nodes are no neighbours, and of nodes without cells, that call for a warning.
FOLDED = 0.3
MANY_DEAD = 0.3

# Cells whose nodes are summed at once, as a matrix of cells x nodes.
BLOCK_ROWS = 16_384


class SOMVAEModule(AutoencoderModule):
    """The equations of SOMVAE.

    Parameters
    ----------
    n_input
        Number of genes.
    n_clusters
        Number of clusters; 0 if it is set later by :meth:`start_map`.
    grid
        Rows and columns of the map; (0, 0) if it is set later by :meth:`start_map`.
    commitment_weight
        Weight of the distance of a cell to its node, relative to a reconstruction per entry of the count matrix.
    som_weight
        Weight of the distance of the nodes around to the cell.
    smoothness_weight
        Weight of the cross-entropy between where the cells before are expected to arrive, and the place of a cell.
    **kwargs
        As in :class:`AutoencoderModule`.
    """

    def __init__(
        self,
        n_input: int,
        *,
        n_clusters: int,
        grid: tuple[int, int] = (0, 0),
        commitment_weight: float = 0.1,
        som_weight: float = 0.1,
        smoothness_weight: float = 0.03,
        **kwargs,
    ):
        super().__init__(n_input, **kwargs)
        self.n_clusters = n_clusters
        self.commitment_weight = commitment_weight
        self.som_weight = som_weight
        self.smoothness_weight = smoothness_weight
        self.register_buffer("scale", torch.zeros(()))  # 0: the map is not laid yet
        self.grid = Grid(*grid)
        self.codebook = nn.Parameter(torch.zeros(self.grid.n_nodes, self.n_latent))
        self.register_buffer("node_cluster", torch.zeros(self.grid.n_nodes, dtype=torch.long))
        # expected arrivals (n, K) of each cell while the map is trained with time, zero where nothing leads to a cell
        self.arrivals: Tensor | None = None
        # node each cell was laid on (n,), -1 where there is none, while the phase that was started from them runs
        self.start_nodes: Tensor | None = None

    def distances(self, z: Tensor) -> Tensor:
        """Squared distances of latent codes (B, D) to the nodes, in units of the spread of a node, (B, K)."""
        return node_distances(z, self.codebook) / self.scale

    def log_assignments(self, inference_outputs: dict, covariates: Covariates) -> Tensor:
        """Log-probability of each cluster, (B, n_clusters): Student-t in the distance to its nearest node.

        The likeliest cluster is therefore always that of the nearest node.
        """
        distances = self.distances(inference_outputs["z_mean"])
        clusters = self.node_cluster.expand_as(distances)
        nearest = torch.full((len(distances), self.n_clusters), torch.inf, device=distances.device)
        nearest = nearest.scatter_reduce(1, clusters, distances, "amin")
        return torch.log_softmax(-torch.log1p(nearest), dim=1)

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict,
        generative_outputs: dict,
        phase: str = "map",
        kl_weight: float = 1.0,
    ) -> LossOutput:
        """Negative log-likelihood per cell, decoded from z; in phase ``"map"`` plus that from z_q and the map terms."""
        counts, log_library = inference_outputs["counts"], inference_outputs["log_library"]
        reconstruction = -self.log_likelihood(counts, generative_outputs["heads"], log_library)  # (B,)
        if phase != "map":
            return LossOutput(loss=reconstruction.mean(), reconstruction_loss=reconstruction)
        covariates = self.covariates(tensors)
        z = self.encode_without_noise(inference_outputs["u"], covariates)  # (B, D)
        node = self._target_nodes(z, tensors[CELL_INDEX])  # (B,)
        z_q = self.codebook[node]
        of_node = -self.log_likelihood(counts, self.decoder(z_q, covariates), log_library)
        terms = {"node_reconstruction": of_node.mean()} | self.map_terms(z, node, tensors[CELL_INDEX])
        weighted = self.commitment_weight * terms["commitment"] + self.som_weight * terms["som"]
        weighted = weighted + self.smoothness_weight * terms.get("smoothness", 0.0)
        loss = reconstruction.mean() + terms["node_reconstruction"] + self.n_input * weighted
        return LossOutput(loss=loss, reconstruction_loss=reconstruction, extra_metrics=terms)

    def _target_nodes(self, z: Tensor, cells: Tensor) -> Tensor:
        """Node that each cell is drawn to (B,): the one it was laid on, or the nearest where it was not laid on any."""
        nearest = self.distances(z.detach()).argmin(dim=1)
        if self.start_nodes is None:
            return nearest
        self.start_nodes = self.start_nodes.to(cells.device)
        start = self.start_nodes[cells]
        return torch.where(start >= 0, start, nearest)

    def map_terms(self, z: Tensor, node: Tensor, cells: Tensor) -> dict[str, Tensor]:
        """Means over cells, in units of the spread of a node.

        ``commitment`` moves cells to their node, ``som`` moves the nodes around a cell to it (its own the most), and
        ``smoothness`` moves cells and nodes to where the cells before are expected to arrive.
        """
        to_node = (z - self.codebook[node].detach()).square().sum(dim=1)
        squared = self.grid.squared_distances(z.device)
        around = som_loss(self.distances(z.detach()), node, neighbourhood(squared, FINAL_RADIUS))
        terms = {"commitment": to_node.mean() / self.scale, "som": around.mean()}
        if self.arrivals is not None:
            self.arrivals = self.arrivals.to(cells.device)
            terms["smoothness"] = arrival_loss(self.arrivals[cells], self.distances(z)).mean()
        return terms

    @torch.no_grad()
    def start_map(self, z: Tensor, node: Tensor, grid: Grid, node_cluster: Tensor, n_clusters: int) -> None:
        """Set each node to the mean of its cells; one without cells to the mean of its neighbours.

        Parameters
        ----------
        z, node
            Latent codes (n, D) and node of each (n,).
        grid
            The grid.
        node_cluster
            Cluster of each node (K,).
        n_clusters
            Number of clusters.
        """
        cells, sums = z.new_zeros(grid.n_nodes), z.new_zeros(grid.n_nodes, z.shape[1])
        for rows, nodes in zip(z.split(BLOCK_ROWS), node.split(BLOCK_ROWS), strict=True):
            one_hot = nn.functional.one_hot(nodes, grid.n_nodes).to(z.dtype)
            cells += one_hot.sum(dim=0)
            sums += one_hot.T @ rows
        # so narrow a neighbourhood leaves a node that has cells where its cells are
        weights = neighbourhood(grid.squared_distances(z.device), 0.25)
        mass = weights @ cells
        codebook = weights @ sums / mass.clamp_min(1e-30).unsqueeze(1)
        self.grid = grid
        self.codebook = nn.Parameter(codebook)
        self.node_cluster = node_cluster
        self.n_clusters = n_clusters
        self.scale.copy_((z - codebook[node]).square().sum(dim=1).median().clamp_min(1e-12))

    @torch.no_grad()
    def reorder_clusters(self, order: Tensor) -> None:
        """Renumber the clusters: new cluster j is old cluster ``order[j]``."""
        self.node_cluster.copy_(order.argsort()[self.node_cluster])


@shared_docs
class SOMVAE(TransitionGetters, MapGetters, ClusteringModel):
    """A map of cell states whose regions are the clusters, with transitions over time :cite:p:`Fortuin19`.

    Parameters
    ----------
    %(adata)s
    n_clusters
        Number of clusters, each a connected region of the map. None finds the number, which may be 1, as in the other
        models.
    grid
        Rows and columns of the map. None chooses them: about ``5 sqrt(cells)`` nodes, at least 10 cells a node and 3
        nodes a cluster; the longer side along the first principal component.
    %(init)s
    %(likelihood)s
    %(networks)s
    input_noise
        Standard deviation of the noise added to the standardised input in training.
    commitment_weight
        Weight of the distance of a cell to its node, relative to a reconstruction per entry of the count matrix.
    som_weight
        Weight of the distance of the nodes around to the cell, in the same units.
    smoothness_weight
        With time: weight of the cross-entropy between where the cells before a cell are expected to arrive, and its
        place on the map.
    encode_covariates
        Whether batch and covariates enter the encoder too, besides the decoder. Nodes are then cell states rather than
        batches.
    %(n_init)s
    %(alpha)s

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.pbmc68k_reduced()
    >>> sdc.model.SOMVAE.setup_anndata(adata)
    >>> model = sdc.model.SOMVAE(adata, n_clusters=8, grid=(5, 6))
    >>> model.train(pretrain_epochs=2, max_epochs=1, enable_progress_bar=False)
    >>> model.get_som_map().shape[0]
    30
    >>> model.write_back(adata)
    >>> adata.obsm["X_somvae_map"].shape
    (700, 2)
    """

    _module_cls = SOMVAEModule
    _made_by_begin = ("_pairs",)

    def __init__(
        self,
        adata: AnnData | None = None,
        n_clusters: int | None = None,
        *,
        grid: tuple[int, int] | None = None,
        init: Initialiser | Sequence = "merge",
        gene_likelihood: GeneLikelihood = "nb",
        dispersion: Dispersion = "gene",
        n_latent: int = 16,
        n_hidden: int = 128,
        n_layers: int = 2,
        dropout_rate: float = 0.2,
        input_noise: float = 2.0,
        commitment_weight: float = 0.1,
        som_weight: float = 0.1,
        smoothness_weight: float = 0.03,
        encode_covariates: bool = True,
        n_init: int = 3,
        alpha: float = 0.05,
        seed: int | None = None,
        extra_payload_autotune: bool = False,
        registry: dict | None = None,
    ):
        _check_grid(grid, n_clusters)
        module_kwargs = {
            "gene_likelihood": gene_likelihood,
            "dispersion": dispersion,
            "n_latent": n_latent,
            "n_hidden": n_hidden,
            "n_layers": n_layers,
            "dropout_rate": dropout_rate,
            "input_noise": input_noise,
            "commitment_weight": commitment_weight,
            "som_weight": som_weight,
            "smoothness_weight": smoothness_weight,
            "encode_covariates": encode_covariates,
            "grid": grid or (0, 0),
        }
        super().__init__(adata, n_clusters, module_kwargs, registry, init=init, n_init=n_init, alpha=alpha, seed=seed)
        self.transition_counts_: np.ndarray | None = None
        self.init_params_ = self._get_init_params(locals())

    # -- fit ----------------------------------------------------------------------------------------------------------

    @property
    def _has_clusters(self) -> bool:
        return bool(self.module.scale > 0)

    def _phases(self, pretrain_epochs, max_epochs, n_train, batch_size) -> list[Phase]:
        if self._keeps_reference_clusters:
            return self._query_phases(max_epochs, n_train, batch_size)
        if pretrain_epochs is None:
            # a model that has a map goes on from it
            pretrain_epochs = 0 if self._continues else pretraining_epochs(1000, n_train, batch_size, 200)
        if max_epochs is None:
            max_epochs = epochs_for_steps(300, n_train, batch_size, 60)
        starts = self._continue_map if self._continues and not pretrain_epochs else self._start_map
        refresh = RefreshTargets(self._refresh_map, tol=0.0)
        return [
            Phase("pretrain", pretrain_epochs),
            Phase("map", max_epochs, begin=starts, plan_kwargs={"lr": 5e-4}, callbacks=[refresh]),
        ]

    def _start_map(self, train_indices: np.ndarray) -> None:
        """Lay the map on denoised expression, let start labels vote for its regions, take it to the latent space."""
        cells = np.sort(train_indices)
        points = self._denoised_points(cells).astype(np.float64)
        labels = self._start_labels(cells, points)
        grid = self.module.grid
        if not grid.n_nodes:
            grid = Grid(*choose_grid(points, int(labels.max()) + 1))
        self.init_params_["non_kwargs"]["grid"] = tuple(grid)  # loading builds the module from these
        codebook, node = lay_map(points, labels, grid, seed=self._start_seed)
        regions = vote_regions(node, labels, codebook, grid)
        z = torch.as_tensor(self._latent(indices=cells), device=self.device)
        on_device = [torch.as_tensor(values, device=self.device) for values in (node, regions)]
        self.module.start_map(z, on_device[0], grid, on_device[1], int(labels.max()) + 1)
        self.module.start_nodes = self._keep_start("nodes", cells, node)
        self._find_pairs(cells, points)

    def _continue_map(self, train_indices: np.ndarray) -> None:
        self.module.start_nodes = self._kept_start("nodes")
        self._find_pairs(np.sort(train_indices), None)

    @torch.no_grad()
    def _refresh_map(self) -> np.ndarray:
        """Fill nodes that lost all cells, renew the transitions; returns the node of each training cell."""
        cells = np.sort(self.train_indices)
        z, codebook = self._latent(indices=cells), self.module.codebook
        filled = fill_dead_nodes(z, codebook.cpu().numpy(), self.module.grid)
        codebook.copy_(torch.as_tensor(filled, device=self.device))
        node = nearest(z, filled)
        self._count_transitions(node)
        return node

    def _end_training(self, train_indices: np.ndarray) -> None:
        if not self._keeps_reference_clusters:
            self._refresh_map()
        self.module.arrivals = self.module.start_nodes = self._pairs = None
        super()._end_training(train_indices)

    def _warn_if_degenerate(self, probabilities: np.ndarray) -> None:
        super()._warn_if_degenerate(probabilities)
        quality = self.get_map_quality()
        if quality["topographic_error"] > FOLDED:
            warnings.warn(
                f"The map is folded: the two nearest nodes of {quality['topographic_error']:.0%} of the cells are no "
                "neighbours. Use a smaller `grid`, or a larger `som_weight`.",
                stacklevel=2,
            )
        if quality["dead_nodes"] > MANY_DEAD:
            warnings.warn(
                f"{quality['dead_nodes']:.0%} of the nodes have no cells. Use a smaller `grid`.",
                stacklevel=2,
            )


def _check_grid(grid: tuple[int, int] | None, n_clusters: int | None) -> None:
    if grid is None:
        return
    if len(grid) != 2 or any(int(side) != side or side < 1 for side in grid):
        raise ValueError(f"`grid` must be two whole numbers of at least 1 (rows, columns), or None; found {grid!r}.")
    if grid[0] * grid[1] < max(n_clusters or 2, 2):
        raise ValueError(
            f"`grid` has {grid[0] * grid[1]} nodes, too few for {n_clusters or 2} clusters: a cluster is a region of "
            "the map. Use a larger grid; three nodes a cluster are a good start."
        )
