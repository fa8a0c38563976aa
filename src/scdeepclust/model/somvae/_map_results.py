"""What a map says: the place of each cell, the nodes, and how well the map lies in the data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scdeepclust._keys import ResultKeys
from scdeepclust.model._base import Indices, ModelPart, all_genes
from scdeepclust.nn import Covariates

from ._som import are_beside


class MapGetters(ModelPart):
    """Getters of :class:`SOMVAE` about its map."""

    @property
    def node_names(self) -> list[str]:
        """Names of the nodes, row by row: ``"r{row}c{column}"``."""
        grid = self.module.grid
        return [f"r{row}c{column}" for row in range(grid.n_rows) for column in range(grid.n_cols)]

    def get_nodes(
        self, adata: AnnData | None = None, indices: Indices = None, batch_size: int | None = None
    ) -> pd.DataFrame:
        """Place of each cell on the map.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`predict`.

        Returns
        -------
        Indexed by ``obs_names``. ``node``: name of the nearest node, ``"r{row}c{column}"``; ``row``, ``column``: its
        place; ``distance``: latent distance to it (1 is the median of the training cells before the map was trained);
        ``x``, ``y``: place between the nodes, the mean of the columns and rows of the nearest node and its eight
        neighbours, weighted by a Student-t kernel.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        """
        self._check_if_trained(warn=False)
        cells, chosen = self._cells(adata, indices)
        at, beside = self.module.grid.coordinates(), self.module.grid.adjacency(diagonal=True)
        parts = []
        for distances in self._node_distances(cells, chosen, batch_size):
            node = distances.argmin(dim=1)
            near = beside[node].float().scatter(1, node.unsqueeze(1), 1.0)
            kernel = near / (1 + distances)
            place = (kernel / kernel.sum(dim=1, keepdim=True)) @ at  # (B, 2)
            parts.append((node, distances.amin(dim=1).sqrt(), place))
        node, distance, place = map(torch.cat, zip(*parts, strict=True))
        row, column = at[node].long().T.numpy()
        return pd.DataFrame(
            {
                "node": pd.Categorical.from_codes(node.numpy(), self.node_names),
                "row": row,
                "column": column,
                "distance": distance.numpy(),
                "x": place[:, 1].numpy(),
                "y": place[:, 0].numpy(),
            },
            index=cells.obs_names[chosen],
        )

    @torch.inference_mode()
    def _node_distances(self, adata=None, indices=None, batch_size=None) -> Iterator[torch.Tensor]:
        """Squared distances of cells to nodes, (B, K), minibatch by minibatch, on the CPU."""
        for tensors in self._minibatches(adata, indices, batch_size):
            yield self.module.distances(self._encode(tensors)["z_mean"]).float().cpu()

    def _nearest_nodes(self, adata=None) -> np.ndarray:
        """Number of the nearest node of each cell, (n,)."""
        return torch.cat([distances.argmin(dim=1) for distances in self._node_distances(adata)]).numpy()

    def get_som_map(self, adata: AnnData | None = None) -> pd.DataFrame:
        """The nodes of the map.

        Parameters
        ----------
        adata
            Cells to count; by default the data of the model.

        Returns
        -------
        Indexed by node, ``"r{row}c{column}"``. ``row``, ``column``; ``cluster`` whose region it lies in; ``hits``:
        number of cells; ``u_distance``: mean latent distance to the nodes beside it, large at borders between regions
        (the U-matrix).

        Raises
        ------
        RuntimeError
            If the model is not trained.
        """
        self._check_if_trained(warn=False)
        hits = np.bincount(self._nearest_nodes(adata), minlength=len(self.node_names))
        grid, codebook = self.module.grid, self.module.codebook.detach()
        apart = self.module.distances(codebook).clamp_min(0).sqrt().cpu()
        beside = grid.adjacency(diagonal=True)
        u_distance = (apart * beside).sum(dim=1) / beside.sum(dim=1).clamp_min(1)
        row, column = grid.coordinates().long().T.numpy()
        return pd.DataFrame(
            {
                "row": row,
                "column": column,
                "cluster": self.module.node_cluster.cpu().numpy().astype(str),
                "hits": hits,
                "u_distance": u_distance.detach().numpy(),
            },
            index=pd.Index(self.node_names, name="node"),
        )

    def get_node_profiles(self) -> pd.DataFrame:
        """Expected share of each gene at each node: the component planes of the map.

        Averaged over batches, at the first category of further covariates and at zero of continuous ones.

        Returns
        -------
        Genes x nodes; columns sum to one.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        """
        self._check_if_trained(warn=False)
        return pd.DataFrame(self._profiles(), index=self.gene_names_, columns=self.node_names)

    @torch.inference_mode()
    def _profiles(self) -> np.ndarray:
        """Expected shares, (G, K)."""
        module = self.module
        module.eval()
        codebook = module.codebook.detach()
        zeros = torch.zeros(len(codebook), 1, dtype=torch.long, device=codebook.device)
        continuous = zeros.float().expand(-1, module.n_continuous_cov) if module.n_continuous_cov else None
        covariates = Covariates(zeros, (zeros,) * module.n_categorical_cov, continuous)
        shares = module.denoised_expression(codebook, covariates).square()
        return (shares / shares.sum(dim=1, keepdim=True)).T.cpu().numpy()

    def get_map_quality(self, adata: AnnData | None = None) -> dict[str, float]:
        """How well the map lies in the data.

        Parameters
        ----------
        adata
            Cells to judge by; by default the data of the model.

        Returns
        -------
        ``quantisation_error``: mean latent distance of a cell to its node, in units of the spread of all cells (root of
        the mean squared distance to their mean); ``topographic_error``: share of the cells whose two nearest nodes are
        not among each other's eight neighbours; ``dead_nodes``: share of the nodes without cells.
        """
        self._check_if_trained(warn=False)
        cells = self._validate_anndata(adata)
        adjacency = self.module.grid.adjacency(diagonal=True)
        parts = [(*d.min(dim=1), are_beside(d, adjacency)) for d in self._node_distances(cells)]
        distance, node, beside = map(torch.cat, zip(*parts, strict=True))
        z = self._latent(cells)
        spread = float(np.sqrt(np.square(z - z.mean(axis=0)).sum(axis=1).mean()))
        to_node = float((distance * self.module.scale.cpu()).sqrt().mean())
        hits = torch.bincount(node, minlength=len(adjacency))
        return {
            "quantisation_error": to_node / max(spread, 1e-12),
            "topographic_error": 1 - beside.float().mean().item(),
            "dead_nodes": float((hits == 0).float().mean()),
        }

    def _results(self, adata: AnnData, keys: ResultKeys, confidences: list[np.ndarray]) -> list[tuple[str, str, Any]]:
        results = super()._results(adata, keys, confidences)
        nodes, node_map = self.get_nodes(adata), self.get_som_map(adata)
        # `adata` may have genes that the model was not trained on
        profiles = self.get_node_profiles().reindex(all_genes(adata).astype(str)).to_numpy(dtype=np.float32)
        parameters = results[-1][2]
        parameters["grid"] = list(self.module.grid)
        parameters["codebook"] = self.module.codebook.detach().cpu().numpy()
        parameters["map"] = node_map.reset_index()
        parameters |= self.get_map_quality(adata) | self._time_results()
        return [
            *results,
            ("obs", keys.node, pd.Categorical(nodes["node"])),
            ("obs", keys.row, nodes["row"].to_numpy()),
            ("obs", keys.column, nodes["column"].to_numpy()),
            ("obs", keys.distance, nodes["distance"].to_numpy()),
            ("obsm", keys.map, nodes[["x", "y"]].to_numpy(dtype=np.float32)),
            ("varm", keys.profiles, profiles),
        ]
