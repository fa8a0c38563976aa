"""What an MFCVAE tells: the clusters, codes and genes of each facet, cells with swapped facets, new cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from scdeepclust._keys import ResultKeys
from scdeepclust.model._base import (
    TARGET_TOTAL,
    ClusteringModule,
    Confidence,
    Indices,
    ModelPart,
    all_genes,
    cell_rows,
    check_choice,
    check_draw,
    draw_codes,
)
from scdeepclust.nn import Covariates


class FacetGetters(ModelPart):
    """Getters of :class:`MFCVAE`."""

    crossing_: dict[int, float]

    @property
    def n_facets(self) -> int:
        """Number of facets, closed ones included."""
        return self.module.n_facets

    def _check_facet(self, facet: int) -> None:
        self._check_if_trained(warn=False)
        if not isinstance(facet, int | np.integer) or facet not in range(self.n_facets):
            raise ValueError(f"`facet` must be between 0 and {self.n_facets - 1}; found {facet!r}.")

    # -- cells --------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _facet_probabilities(self, j: int, adata=None, indices=None, batch_size=None) -> np.ndarray:
        """Assignment probabilities of facet j, (n, K_j) float32."""
        minibatches = self._minibatches(adata, indices, batch_size)
        blocks = [self.module.log_responsibilities(self._encode(tensors), j).float().exp() for tensors in minibatches]
        return torch.cat(blocks).cpu().numpy()

    def get_facets(
        self, adata: AnnData | None = None, indices: Indices = None, batch_size: int | None = None
    ) -> pd.DataFrame:
        """Cluster of each cell in every facet.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`predict`.

        Returns
        -------
        Categorical columns ``facet0`` (what :meth:`predict` returns), ``facet1``, ..., indexed by ``obs_names``; in
        each the largest cluster of the training data is "0".

        Raises
        ------
        RuntimeError
            If the model is not trained.
        """
        self._check_if_trained(warn=False)
        cells, rows = self._cells(adata, indices)
        tables = [self.get_facet_probabilities(j, cells, rows, batch_size) for j in range(self.n_facets)]
        columns = {f"facet{j}": pd.Categorical(table.idxmax(axis=1), list(table)) for j, table in enumerate(tables)}
        return pd.DataFrame(columns, index=tables[0].index)

    def get_facet_confidence(
        self,
        facet: int,
        adata: AnnData | None = None,
        indices: Indices = None,
        batch_size: int | None = None,
        *,
        confidence: Confidence = "repeat",
    ) -> np.ndarray:
        """How far the cluster of each cell in one facet can be relied on.

        Parameters
        ----------
        facet
            Number of the facet; 0 is the main one.
        adata, indices, batch_size
            As in :meth:`predict`.
        confidence
            As in :meth:`get_confidence`. Only the clusters of the main facet are looked for again; in the other facets
            ``"repeat"`` asks how often half of the counts of a cell would put it into its cluster.

        Returns
        -------
        Array of shape (n_cells,), float32.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If there is no such facet.
        """
        self._check_facet(facet)
        check_choice("confidence", confidence, get_args(Confidence))
        cells, rows = self._cells(adata, indices)
        return self._confidences(cells, rows, batch_size, confidence=confidence)[facet]

    def get_facet_probabilities(
        self, facet: int, adata: AnnData | None = None, indices: Indices = None, batch_size: int | None = None
    ) -> pd.DataFrame:
        """Assignment probabilities of one facet.

        Parameters
        ----------
        facet
            Number of the facet; 0 is the main one.
        adata, indices, batch_size
            As in :meth:`predict`.

        Returns
        -------
        Cells x clusters, indexed by ``obs_names``.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If there is no such facet.
        """
        self._check_facet(facet)
        cells, rows = self._cells(adata, indices)
        probabilities = self._facet_probabilities(facet, cells, rows, batch_size)
        return pd.DataFrame(probabilities, index=cells.obs_names[rows], columns=_names(probabilities.shape[1]))

    def get_facet_representation(
        self, facet: int, adata: AnnData | None = None, indices: Indices = None, batch_size: int | None = None
    ) -> np.ndarray:
        """Posterior mean of the code of one facet; :meth:`MFCVAE.get_latent_representation` joins all of them.

        Parameters
        ----------
        facet
            Number of the facet; 0 is the main one.
        adata, indices, batch_size
            As in :meth:`predict`.

        Returns
        -------
        Array of shape (n_cells, size of the facet), float32.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If there is no such facet.
        """
        self._check_facet(facet)
        z = self._latent(adata, indices, batch_size)
        return np.split(z, np.cumsum(self.module.latent_sizes)[:-1], axis=1)[facet]

    @torch.inference_mode()
    def get_facet_kl(
        self, adata: AnnData | None = None, indices: Indices = None, batch_size: int | None = None
    ) -> pd.DataFrame:
        """How much each facet says about each cell: divergence of its code from the prior, in nats.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`predict`.

        Returns
        -------
        Cells x facets, indexed by ``obs_names``. A facet whose mean is near 0 has collapsed, or was left closed.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        """
        self._check_if_trained(warn=False)
        cells, rows = self._cells(adata, indices)
        blocks = []
        for tensors in self._minibatches(cells, rows, batch_size):
            outputs = self._encode(tensors)
            blocks.append(torch.stack([self.module.divergence(outputs, j) for j in range(self.n_facets)], dim=1))
        columns = [f"facet{j}" for j in range(self.n_facets)]
        return pd.DataFrame(torch.cat(blocks).cpu().numpy(), index=cells.obs_names[rows], columns=columns)

    # -- genes --------------------------------------------------------------------------------------------------------

    def get_facet_loadings(self, facet: int) -> pd.DataFrame:
        """Genes of the clusters of one facet, whatever a cell is in the other facets.

        The mean code of each cluster is decoded with every combination of clusters of the other facets, and the
        expression, log1p of expected counts per 10,000, averaged over these by their weights.

        Parameters
        ----------
        facet
            Number of the facet.

        Returns
        -------
        Genes x clusters: difference in log expression from the weighted mean of the clusters (natural log). Zero for a
        facet with one cluster.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If there is no such facet.
        """
        self._check_facet(facet)
        profiles = np.moveaxis(self._profiles(), facet, -2)  # (other facets, K, G)
        weights = [mixture.log_weights.exp().detach().cpu().numpy() for mixture in self.module.mixtures]
        own = weights.pop(facet)
        for other in weights:
            profiles = np.average(profiles, axis=0, weights=other)
        changes = profiles - np.average(profiles, axis=0, weights=own)
        return pd.DataFrame(changes.T, index=self.gene_names_, columns=_names(len(own)))

    @torch.inference_mode()
    def _profiles(self) -> np.ndarray:
        """Log expression of each combination of clusters, (K_0, ..., K_{J-1}, G), averaged over batches."""
        self.module.eval()
        means = [mixture.means for mixture in self.module.mixtures]
        grid = torch.cartesian_prod(*(torch.arange(len(m), device=self.device) for m in means))
        grid = grid.view(len(grid), -1)
        z = torch.cat([m[k] for m, k in zip(means, grid.T, strict=True)], dim=1)
        share = ClusteringModule.denoised_expression(self.module, z, self._first_covariates(len(z))).square()
        return torch.log1p(TARGET_TOTAL * share).view(*map(len, means), -1).cpu().numpy()

    def _first_covariates(self, n: int, batch: Tensor | None = None) -> Covariates:
        """Covariates of n cells of the given batches (the first by default): first categories, and 0."""
        module = self.module
        return Covariates(
            batch=torch.zeros(n, 1, dtype=torch.long, device=self.device) if batch is None else batch.unsqueeze(1),
            categorical=(torch.zeros(n, 1, dtype=torch.long, device=self.device),) * module.n_categorical_cov,
            continuous=torch.zeros(n, module.n_continuous_cov, device=self.device),
        )

    # -- cells that were not seen -------------------------------------------------------------------------------------

    @torch.inference_mode()
    def swap_facets(
        self, facet: int, cells: Sequence[int] | np.ndarray, donors: Sequence[int] | np.ndarray
    ) -> pd.DataFrame:
        """Expression that cells would have if one of their facets were that of another cell.

        Parameters
        ----------
        facet
            Facet to take from the donors; all others stay.
        cells
            Rows of the cells in the data of the model.
        donors
            Rows of the cells that give the facet, as many.

        Returns
        -------
        Expected share of each gene, cells x genes; the index holds the names of ``cells``. Batch and covariates are
        those of ``cells``.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If there is no such facet, or not one donor for each cell.
        """
        self._check_facet(facet)
        adata = self._validate_anndata(None)
        cells, donors = cell_rows(cells, adata.obs_names, "cells"), cell_rows(donors, adata.obs_names, "donors")
        if cells.shape != donors.shape:
            raise ValueError(f"`donors` must name one cell for each of the {cells.size} cells; found {donors.size}.")
        taken = torch.as_tensor(self.get_facet_representation(facet, adata, donors), device=self.device)
        blocks, start = [], 0
        for tensors in self._minibatches(adata, cells):
            codes = list(self._encode(tensors)["z_mean"].split(self.module.latent_sizes, dim=-1))
            codes[facet] = taken[start : start + len(codes[facet])]
            start += len(codes[facet])
            scores = self.module.decoder(torch.cat(codes, dim=-1), self.module.covariates(tensors)).scores
            blocks.append(self.module._share(scores))
        return pd.DataFrame(torch.cat(blocks).cpu().numpy(), index=adata.obs_names[cells], columns=self.gene_names_)

    @torch.inference_mode()
    def sample(
        self,
        n_cells: int = 100,
        *,
        clusters: Mapping[int, str] | None = None,
        batch: str | None = None,
        library_size: float | None = None,
    ) -> pd.DataFrame:
        """Counts of new cells, drawn from the model.

        Parameters
        ----------
        n_cells
            Number of cells.
        clusters
            Cluster to draw from in each facet, for example ``{0: "2", 1: "0"}``; in facets not named, clusters are
            drawn by their weights.
        batch
            Batch of the cells; by default batches are drawn by their frequencies.
        library_size
            Expected total count of a cell; by default the median of the training data.

        Returns
        -------
        Counts, cells x genes, float32; the index has one level a facet, with the cluster of each cell. Further
        covariates are those of the first category and 0.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If there is no such facet, cluster or batch.
        """
        self._check_if_trained(warn=False)
        check_draw(n_cells, library_size)
        if clusters is not None and not isinstance(clusters, Mapping):
            raise ValueError(
                f"`clusters` must be a dictionary such as {{0: '2'}}, facet to cluster; found {clusters!r}."
            )
        clusters = dict(clusters or {})
        for facet in clusters:
            if facet not in range(self.n_facets):
                raise ValueError(f"`clusters`: there is no facet {facet!r}; there are {self.n_facets}.")
        module, n = self.module, n_cells
        module.eval()
        codes, labels = [], {}
        for j, mixture in enumerate(module.mixtures):
            names = _names(mixture.n_components)
            k = draw_codes("clusters", clusters.get(j), names, mixture.log_weights.exp(), n)
            sd = (mixture.clamped_log_var / 2).exp().expand_as(mixture.means)[k]
            codes.append(mixture.means[k] + sd * torch.randn_like(sd))
            labels[f"facet{j}"] = np.take(names, k.cpu())
        batches = self.registry_["field_registries"]["batch"]["state_registry"]["categorical_mapping"]
        batch_codes = draw_codes("batch", batch, [str(name) for name in batches], module.batch_frequencies, n)
        log_library = torch.as_tensor(library_size or module.median_total, device=self.device).log().expand(n)
        outputs = module.generative(torch.cat(codes, dim=-1), log_library, self._first_covariates(n, batch_codes))
        counts = outputs["px"].sample().cpu().numpy()
        return pd.DataFrame(counts, index=pd.MultiIndex.from_frame(pd.DataFrame(labels)), columns=self.gene_names_)

    # -- results into AnnData -----------------------------------------------------------------------------------------

    def _results(self, adata: AnnData, keys: ResultKeys, confidences: list[np.ndarray]) -> list[tuple[str, str, Any]]:
        results = super()._results(adata, keys, confidences)
        genes = all_genes(adata)
        for j in range(self.n_facets):
            probabilities, facet = self.get_facet_probabilities(j, adata), keys.facet(j)
            labels = pd.Categorical(probabilities.idxmax(axis=1), list(probabilities)).remove_unused_categories()
            results += [
                ("obs", facet.labels, labels),
                ("obs", facet.confidence, confidences[j]),
                ("obsm", facet.embedding, self.get_facet_representation(j, adata)),
                ("obsm", facet.probabilities, probabilities.to_numpy()),
                # genes the model has not seen have no loadings
                ("varm", facet.loadings, self.get_facet_loadings(j).reindex(genes)),
            ]
        return results

    def _parameters(self) -> dict[str, Any]:
        return super()._parameters() | {
            "n_facet_clusters": [mixture.n_components for mixture in self.module.mixtures],
            "crossing": {f"facet{j}": float(ratio) for j, ratio in self.crossing_.items()},
        }


def _names(n_clusters: int) -> list[str]:
    return [str(k) for k in range(n_clusters)]
