"""What the five models share: start of the clusters, getters, write_back, and the checks around them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.model.base import BaseModelClass

from scdeepclust._keys import ResultKeys
from scdeepclust.nn import Dispersion, GeneLikelihood
from scdeepclust.train import (
    Initialiser,
    PhasedTrainingMixin,
    digest,
    keep_threads,
)

from ._cells import check_flags
from ._checks import check_alpha, check_choice, check_init, check_n_clusters, row_blocks
from ._confidence import Confidence, ConfidenceMixin
from ._data import Indices
from ._inherited import InheritedGetters
from ._merge import MergeMixin
from ._query import QueryMappingMixin
from ._results import check_key, fit_parameters, write_results
from ._start import hash_of_names
from ._streamed import own_registry


class ClusteringModel(
    MergeMixin, ConfidenceMixin, PhasedTrainingMixin, QueryMappingMixin, InheritedGetters, BaseModelClass
):
    """Base of all models: counts in an AnnData object in, clusters out.

    A model sets ``_module_cls`` and writes ``_phases`` and whatever getters are its own. Its module offers
    ``inference`` (with ``z`` in its outputs), ``log_assignments(inference_outputs, covariates)`` and
    ``reorder_clusters(order)``.
    """

    _module_cls: type

    def __init__(
        self,
        adata: AnnData | None,
        n_clusters: int | None,
        module_kwargs: dict[str, Any],
        registry: dict | None,
        *,
        init: Initialiser | Sequence = "merge",
        n_init: int = 3,
        alpha: float = 0.05,
        seed: int | None = None,
    ):
        check_seed(seed)
        check_alpha(alpha)
        check_choice("gene_likelihood", module_kwargs["gene_likelihood"], get_args(GeneLikelihood))
        check_choice("dispersion", module_kwargs["dispersion"], get_args(Dispersion))
        if adata is not None:
            self._check_is_set_up(adata)
        if registry is not None:
            registry = own_registry(registry, type(self).__name__)
        super().__init__(adata, registry)
        n_obs = self.summary_stats.n_cells
        if registry is None:  # a trained model may get other and fewer cells than those its clusters were found in
            check_n_clusters(n_clusters, n_obs)
            check_init(init, n_obs, n_clusters)
        self._own_seed = seed
        if self._seed is not None:
            # the result must not depend on what was drawn before
            torch.manual_seed(self._seed)
        cat_covs = self.registry_["field_registries"].get(REGISTRY_KEYS.CAT_COVS_KEY, {}).get("state_registry", {})
        self.module = self._module_cls(
            self.summary_stats.n_vars,
            n_clusters=n_clusters or 0,
            n_batch=self.summary_stats.n_batch,
            n_cats_per_cov=tuple(cat_covs.get("n_cats_per_key", ())),
            n_continuous_cov=self.summary_stats.get("n_extra_continuous_covs", 0),
            **module_kwargs,
        )
        genes = self.registry_["field_registries"][REGISTRY_KEYS.X_KEY]["state_registry"]["column_names"]
        self.gene_names_ = np.asarray(genes).astype(str)
        self.n_active_: int | None = None
        self.finds_n_clusters_ = n_clusters is None
        self.initial_labels_: np.ndarray | None = None
        self._init = init
        self._n_init = n_init
        self._alpha = alpha
        self._model_summary_string = f"{type(self).__name__} with n_clusters: {n_clusters}, " + ", ".join(
            f"{name}: {value}" for name, value in module_kwargs.items()
        )

    @property
    def is_trained(self) -> bool:
        """Whether the model has been trained: a model that was saved in an early phase of a fit has not."""
        return self.is_trained_ and self.phase_ is None

    @is_trained.setter
    def is_trained(self, value: bool) -> None:
        self.is_trained_ = value

    def _check_if_trained(self, warn: bool = True, message: str | None = None) -> None:
        """Raise (or warn) unless the clusters are there."""
        if self.phase_ is not None:
            message = (
                f"This model was saved in phase {self.phase_!r} of its fit, before its clusters were there. Run "
                "`model.train()`, which goes on with that phase."
            )
        elif self.is_trained_:
            return
        message = message or "This model is not trained. Run `model.train()` first."
        if not warn:
            raise RuntimeError(message)
        warnings.warn(message, stacklevel=3)

    def minify_adata(self, *args, **kwargs) -> None:
        """There are no minified models here.

        Raises
        ------
        NotImplementedError
            Always.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no minified mode: its getters read the counts. `write_back` stores labels, "
            "probabilities and embedding in AnnData; `model.save(path)` without `save_anndata` keeps the model small."
        )

    def _make_data_loader(self, *args, **kwargs):
        """As in scvi-tools, where every getter comes through; other libraries may have changed torch's threads."""
        keep_threads()
        return super()._make_data_loader(*args, **kwargs)

    def _data_identity(self) -> dict[str, Any]:
        layer = self.registry_["setup_args"]["layer"]
        totals = [np.asarray(block.sum(axis=1, dtype=np.float64)) for block in row_blocks(self.adata, layer)]
        batch = np.asarray(self.adata_manager.get_from_registry(REGISTRY_KEYS.BATCH_KEY), dtype=np.int64)
        return {
            "genes": digest("\n".join(map(str, self.adata.var_names)).encode()),
            "number of cells": self.adata.n_obs,
            "counts": digest(np.concatenate(totals).tobytes()),
            "batches": digest(batch.tobytes()),
        }

    # -- clusters -----------------------------------------------------------------------------------------------------

    def _end_training(self, train_indices: np.ndarray) -> None:
        """Number the clusters by size (largest is "0") and count those that have cells."""
        probabilities = self._probabilities()
        sizes = np.bincount(probabilities.argmax(axis=1), minlength=probabilities.shape[1])
        order = np.argsort(-sizes, kind="stable")
        self.n_active_ = int((sizes > 0).sum())
        if not self._keeps_reference_clusters:
            self.restarts_ = None
            self.module.reorder_clusters(torch.as_tensor(order, device=self.device))
            self._renumber_start("labels", order)
            self._warn_if_degenerate(probabilities)

    def _warn_if_degenerate(self, probabilities: np.ndarray) -> None:
        """Say so when the clustering went wrong; a model adds the ways its own method is known for."""
        n_empty = self.n_clusters - (self.n_active_ or 0)
        if n_empty:
            warnings.warn(
                f"{n_empty} of {self.n_clusters} clusters have no cells. Ask for fewer "
                "clusters, or look at `initial_labels_`.",
                stacklevel=2,
            )

    def _probabilities(
        self,
        adata: AnnData | None = None,
        indices: Indices = None,
        batch_size: int | None = None,
        dataloader: Iterable | None = None,
    ) -> np.ndarray:
        """Assignment probabilities, (n, K) float32."""
        blocks = []
        for tensors in self._minibatches(adata, indices, batch_size, dataloader):
            outputs = self._encode(tensors)
            with torch.inference_mode():
                log_q = self.module.log_assignments(outputs, self.module.covariates(tensors))
            blocks.append(log_q.float().exp().cpu().numpy())
        return np.concatenate(blocks)

    @property
    def n_clusters(self) -> int:
        """Number of clusters, empty ones included; 0 before training if it is to be found."""
        return self.module.n_clusters

    def predict(
        self,
        adata: AnnData | None = None,
        indices: Indices = None,
        soft: bool = False,
        batch_size: int | None = None,
        dataloader: Iterable | None = None,
    ) -> np.ndarray | pd.DataFrame:
        """Cluster of each cell.

        Parameters
        ----------
        adata
            Data of the same genes; by default the data of the model. Genes in another order are put into order.
        indices
            Cells: row numbers, names, a mask or a slice; all by default.
        soft
            Return probabilities instead of labels.
        batch_size
            Cells per minibatch.
        dataloader
            Minibatches of scvi-tools to take instead of ``adata``, such as ``datamodule.inference_dataloader()``. Cells
            keep its order, and have row numbers for names.

        Returns
        -------
        Labels "0" to "K-1" as an array of strings, the largest cluster of the training data first; with ``soft`` a
        DataFrame of probabilities, cells x clusters, indexed by ``obs_names``.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If genes are missing, batches are unknown or the data are no counts.
        """
        self._check_if_trained(warn=False)
        check_flags(soft=soft)
        if dataloader is None:
            cells, rows = self._cells(adata, indices)
            probabilities, names = self._probabilities(cells, rows, batch_size), cells.obs_names[rows]
        else:
            probabilities = self._probabilities(adata, indices, dataloader=dataloader)
            names = pd.RangeIndex(len(probabilities)).astype(str)
        if not soft:
            return probabilities.argmax(axis=1).astype(str)
        return pd.DataFrame(probabilities, index=names, columns=[str(k) for k in range(self.n_clusters)])

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Indices = None,
        batch_size: int | None = None,
        dataloader: Iterable | None = None,
    ) -> np.ndarray:
        """Latent embedding of each cell (the posterior mean where there is a posterior).

        Parameters
        ----------
        adata, indices, batch_size, dataloader
            As in :meth:`predict`.

        Returns
        -------
        Array of shape (n_cells, n_latent), float32.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        """
        self._check_if_trained(warn=False)
        return self._latent(adata, indices, batch_size, dataloader)

    def _latent(self, adata=None, indices=None, batch_size=None, dataloader=None) -> np.ndarray:
        minibatches = self._minibatches(adata, indices, batch_size, dataloader)
        blocks = [self._encode(tensors)["z_mean"] for tensors in minibatches]
        return torch.cat(blocks).float().cpu().numpy()

    def get_latent_library_size(
        self, adata: AnnData | None = None, indices: Indices = None, give_mean=True, batch_size: int | None = None
    ) -> np.ndarray:
        """Library size of each cell: observed, not latent (its total count, or from ``size_factor_key``).

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`predict`.
        give_mean
            Has no effect, because there is no distribution; for code written for scVI.

        Returns
        -------
        Array of shape (n_cells, 1), in counts.
        """
        blocks = [self._encode(tensors)["log_library"] for tensors in self._minibatches(adata, indices, batch_size)]
        return torch.cat(blocks).exp().reshape(-1, 1).cpu().numpy()

    # -- results into AnnData -----------------------------------------------------------------------------------------

    def write_back(
        self, adata: AnnData | None = None, key_added: str | None = None, *, confidence: Confidence | None = None
    ) -> None:
        """Write labels, confidence, embedding, probabilities and the parameters of the fit into ``adata``.

        This is the only method that writes into an AnnData object. What an earlier call wrote under the same key is
        removed.

        Parameters
        ----------
        adata
            Where to write; by default the data of the model. Cells are assigned to the clusters of the model.
        key_added
            Stem of the names; by default the name of the model in lower case. With ``"gmvae"``: ``obs["gmvae"]``,
            ``obs["gmvae_confidence"]``, ``obsm["X_gmvae"]``, ``obsm["gmvae_probabilities"]``, ``uns["gmvae"]``, and of
            cells that were not of the fit ``obs["gmvae_novelty"]`` (:meth:`get_novelty`).
        confidence
            What the confidence is of: ``"repeat"`` (the probability that an independent repeat gives the same cluster)
            or ``"posterior"`` (the highest assignment probability), as in :meth:`get_confidence`. By default the
            first, or with a warning the second where the model has no cells to look for clusters in.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If ``confidence="repeat"`` and the model has no cells to look for clusters in, and has not done so before.
        """
        self._check_if_trained(warn=False)
        target = self.adata if adata is None else adata
        if target is None:
            raise ValueError("`adata` is needed: this model was loaded without data.")
        keys = ResultKeys(check_key(key_added, self))
        if confidence is None:
            confidence = "repeat" if self._knows_repeats else "posterior"
            if not self._knows_repeats:
                warnings.warn(
                    f"The confidence is the highest assignment probability: {self._without_repeats()}", stacklevel=2
                )
        check_choice("confidence", confidence, get_args(Confidence))
        # everything is computed before anything is written, so that a failure leaves `adata` as it was
        cells = self._validate_anndata(adata)
        results = self._results(cells, keys, self._confidences(cells, confidence=confidence))
        parameters = next(value for slot, name, value in results if (slot, name) == ("uns", keys.uns))
        parameters["confidence"] = confidence
        is_new = cells is not self.adata or self._keeps_reference_clusters
        if is_new and self._knows_repeats and self._restarts()["names"] != hash_of_names(cells):
            results.append(("obs", keys.novelty, self._novelty(cells)))
        if len(results[0][2]) != target.n_obs:
            raise ValueError(f"`adata` has {target.n_obs} cells, but there are results of {len(results[0][2])}.")
        write_results(target, keys.key, results)

    def _results(self, adata: AnnData, keys: ResultKeys, confidences: list[np.ndarray]) -> list[tuple[str, str, Any]]:
        """What :meth:`write_back` writes, as (slot, name, value); a model adds its own."""
        probabilities = self._probabilities(adata)
        names = [str(k) for k in range(self.n_clusters)]
        labels = pd.Categorical.from_codes(probabilities.argmax(axis=1), categories=names)
        return [
            ("obs", keys.labels, labels.remove_unused_categories()),
            ("obs", keys.confidence, confidences[0]),
            ("obsm", keys.embedding, self._latent(adata)),
            ("obsm", keys.probabilities, probabilities),
            ("uns", keys.uns, self._parameters()),
        ]

    def _parameters(self) -> dict[str, Any]:
        """Parameters and scalars of the fit, in types that h5ad can hold."""
        return fit_parameters(self) | {"n_clusters": self.n_clusters, "n_active": self.n_active_}


def check_seed(seed: int | None) -> None:
    """Raise a ValueError unless the seed is None or one that every generator takes."""
    if seed is not None and (not isinstance(seed, Integral) or not 0 <= seed < 2**32):
        raise ValueError(f"`seed` must be a whole number from 0 to 2**32 - 1, or None; found {seed!r}.")


if TYPE_CHECKING:
    ModelPart = ClusteringModel
else:
    # A part of a model, in a file of its own: type checkers see what it may call, and at run time it inherits nothing,
    # so that the class line of a model names all that the model is made of.
    ModelPart = object
