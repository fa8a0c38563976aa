"""What a GMVAE tells besides its clusters: latent codes, components, the pieces of its bound, new cells."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi.model.base import VAEMixin

from scdeepclust.model._base import Indices, ModelPart, check_choice, check_draw, check_flags, checked, draw_codes
from scdeepclust.nn import Covariates
from scdeepclust.train import Minibatch


class MixtureGetters(ModelPart):
    """Getters of :class:`GMVAE`."""

    get_elbo = checked(VAEMixin.get_elbo)
    get_marginal_ll = checked(VAEMixin.get_marginal_ll)
    get_reconstruction_error = checked(VAEMixin.get_reconstruction_error)
    get_aggregated_posterior = checked(VAEMixin.get_aggregated_posterior)

    def get_latent_representation(  # type: ignore[override]  # a pair with return_dist
        self,
        adata: AnnData | None = None,
        indices: Indices = None,
        batch_size: int | None = None,
        *,
        latent: Literal["z", "w"] = "z",
        give_mean: bool = True,
        return_dist: bool = False,
        dataloader: Iterable[Minibatch] | None = None,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Latent embedding of each cell.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`predict`.
        latent
            ``"z"``, which the components cluster, or ``"w"``, which moves the components (with ``n_w`` > 0).
        give_mean
            Return the posterior mean instead of one draw.
        return_dist
            Return posterior mean and variance.
        dataloader
            Minibatches to embed instead of those of ``adata``.

        Returns
        -------
        Array of shape (n_cells, n_latent) or (n_cells, n_w), float32; two of them with ``return_dist``.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If ``latent="w"`` and the model has no w.
        """
        self._check_if_trained(warn=False)
        check_flags(give_mean=give_mean, return_dist=return_dist)
        check_choice("latent", latent, ("z", "w") if self.module.n_w else ("z",))
        minibatches = self._minibatches(adata, indices, batch_size, dataloader)
        mean, log_var = f"{latent}_mean", f"{latent}_log_var"
        names = (mean, log_var) if return_dist else (mean if give_mean else latent,)
        blocks: list[list[np.ndarray]] = [[] for _ in names]
        for tensors in minibatches:
            posterior = self._encode(tensors)  # holds the counts: not to be kept
            for name, block in zip(names, blocks, strict=True):
                block.append(posterior[name].float().cpu().numpy())
        first, *others = map(np.concatenate, blocks)
        return (first, np.exp(others[0])) if others else first

    @torch.inference_mode()
    def get_component_parameters(self, w: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Parameters of the mixture prior, in the order of the labels.

        Parameters
        ----------
        w
            Value of w, shape (n_w,), at which to evaluate the components; 0, its prior mean, by default.

        Returns
        -------
        ``"weights"`` (n_clusters,), ``"means"`` and ``"variances"``, each (n_clusters, n_latent).

        Raises
        ------
        RuntimeError
            If the model is not trained.
        """
        self._check_if_trained(warn=False)
        point = np.zeros(self.module.n_w) if w is None else np.asarray(w)
        if point.shape != (self.module.n_w,):
            raise ValueError(f"`w` must have shape ({self.module.n_w},), found {point.shape}.")
        means, log_var = self.module.components(torch.as_tensor(point, dtype=torch.float32, device=self.device))
        values = {"weights": self.module.mixture.log_weights.exp(), "means": means, "variances": log_var.exp()}
        values["variances"] = values["variances"].expand_as(means)
        return {name: value.cpu().numpy() for name, value in values.items()}

    @torch.inference_mode()
    def get_elbo_terms(
        self,
        adata: AnnData | None = None,
        indices: Indices = None,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """Evidence lower bound of each cell and its pieces, in nats, at one draw of the latent variables.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`predict`.

        Returns
        -------
        One row a cell, indexed by ``obs_names``: ``reconstruction`` (log-likelihood), ``kl_latent``,
        ``kl_component``, ``kl_w`` (with ``n_w`` > 0), and ``elbo``, which is the first less the others.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        """
        self._check_if_trained(warn=False)
        cells, rows = self._cells(adata, indices)
        blocks = []
        self.module.eval()
        for tensors in self._minibatches(cells, rows, batch_size):
            terms = self.module(tensors)[2]
            block = {"reconstruction": -terms.reconstruction_loss["reconstruction_loss"], **terms.kl_local}
            blocks.append(pd.DataFrame({name: value.cpu().numpy() for name, value in block.items()}))
        table = pd.concat(blocks, ignore_index=True)
        table["elbo"] = table["reconstruction"] - table.drop(columns="reconstruction").sum(axis=1)
        table.index = cells.obs_names[rows]
        return table

    @torch.inference_mode()
    def sample(
        self,
        n_cells: int = 100,
        *,
        cluster: str | None = None,
        batch: str | None = None,
        library_size: float | None = None,
    ) -> pd.DataFrame:
        """Counts of new cells, drawn from the model.

        Parameters
        ----------
        n_cells
            Number of cells.
        cluster
            Cluster to draw from; by default clusters are drawn by their weights.
        batch
            Batch of the cells; by default batches are drawn by their frequencies.
        library_size
            Expected total count of a cell; by default the median of the training data.

        Returns
        -------
        Counts, cells x genes, float32; the index holds the cluster of each cell. Further covariates are those of the
        first category and 0.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If there is no such cluster or batch.
        """
        self._check_if_trained(warn=False)
        check_draw(n_cells, library_size)
        module, n = self.module, n_cells
        batches = self.registry_["field_registries"]["batch"]["state_registry"]["categorical_mapping"]
        names = [str(k) for k in range(self.n_clusters)]
        k = draw_codes("cluster", cluster, names, module.mixture.log_weights.exp(), n)
        codes = draw_codes("batch", batch, [str(name) for name in batches], module.batch_frequencies, n)
        covariates = Covariates(
            batch=codes.unsqueeze(1),
            categorical=(torch.zeros(n, 1, dtype=torch.long, device=self.device),) * module.n_categorical_cov,
            continuous=torch.zeros(n, module.n_continuous_cov, device=self.device),
        )
        log_library = torch.as_tensor(library_size or module.median_total, device=self.device).log().expand(n)
        module.eval()
        counts = module.generative(module.draw_latent(k), log_library, covariates)["px"].sample()
        return pd.DataFrame(counts.cpu().numpy(), index=np.take(names, k.cpu()), columns=self.gene_names_)
