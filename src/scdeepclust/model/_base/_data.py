"""From an AnnData object to minibatches: registration, checks, statistics of the training data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.model.base import BaseModelClass
from torch import Tensor

from scdeepclust.train import CountsManager, Minibatch, to_device

from ._checks import (
    check_anndata,
    check_new_cells,
    check_obs_keys,
    gene_statistics,
    match_genes,
    proportion_statistics,
)
from ._docs import shared_docs
from ._fields import registered_fields
from ._module import TARGET_TOTAL

Indices = Sequence[int] | np.ndarray | None

# Cells per minibatch where nothing is learnt: large enough for fast matrix products, small enough for memory.
INFERENCE_BATCH = 1024


class CountDataMixin(BaseModelClass):
    """Registered counts, and minibatches of them."""

    gene_names_: np.ndarray

    @classmethod
    @shared_docs
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: list[str] | None = None,
        continuous_covariate_keys: list[str] | None = None,
        **kwargs,
    ) -> None:
        """Register the counts and covariates of ``adata`` with this model.

        Parameters
        ----------
        %(setup)s
        **kwargs
            Passed on by scvi-tools when a saved model is loaded.

        Raises
        ------
        ValueError
            If the data are no counts or a key is missing; see the message for the remedy. ``adata`` is then unchanged.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        is_query = bool(kwargs.get("source_registry"))
        check_anndata(adata, layer, for_trained=is_query)
        keys: dict[str, str | list[str] | None] = {
            "batch_key": batch_key,
            "labels_key": None if is_query else labels_key,  # a query may come without labels
            "size_factor_key": size_factor_key,
            "categorical_covariate_keys": categorical_covariate_keys,
            "continuous_covariate_keys": continuous_covariate_keys,
        }
        check_obs_keys(adata, keys)
        fields = registered_fields(
            layer, batch_key, labels_key, size_factor_key, categorical_covariate_keys, continuous_covariate_keys
        )
        manager = CountsManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    def _validate_anndata(self, adata: AnnData | None = None, copy_if_view: bool = True) -> AnnData:
        """Registered data with the genes of the model in its order, or a clear error."""
        if adata is None and self.adata is None:
            raise ValueError("`adata` is needed: this model was loaded without data.")
        if adata is not None and adata is not self.adata:
            adata = match_genes(adata, self.gene_names_)
            # before anything of scvi-tools looks at it, because that writes into `adata` first and raises then
            check_new_cells(adata, self.registry_, type(self).__name__)
        return super()._validate_anndata(adata, copy_if_view=copy_if_view)

    def _begin_training(self) -> None:
        """Statistics of the training data; a model that has them (loaded, or a mapped query) keeps them."""
        if self.module.knows_data:
            return
        layer = self.registry_["setup_args"]["layer"]
        mean, sd, median_total = gene_statistics(self.adata, layer, TARGET_TOTAL)
        n_trials = 1.0
        if self.module.gene_likelihood == "beta_binomial":
            mean, sd, n_trials = proportion_statistics(self.adata, layer)
        batch = self.adata_manager.get_from_registry(REGISTRY_KEYS.BATCH_KEY)
        frequencies = np.bincount(np.asarray(batch).ravel(), minlength=self.summary_stats.n_batch) / len(batch)
        self.module.set_data_statistics(mean, sd, median_total, frequencies, n_trials)

    def _minibatches(
        self, adata: AnnData | None = None, indices: Indices = None, batch_size: int | None = None
    ) -> Iterator[Minibatch]:
        """Minibatches on the device of the model, in the order of the cells."""
        adata = self._validate_anndata(adata)
        loader = self._make_data_loader(
            adata=adata, indices=indices, batch_size=batch_size or INFERENCE_BATCH, load_sparse_tensor=True
        )
        for tensors in loader:
            yield to_device(tensors, self.device)

    @torch.inference_mode()
    def _encode(self, tensors: Minibatch) -> dict[str, Tensor]:
        """Outputs of ``module.inference`` for one minibatch, without noise."""
        self.module.eval()
        return self.module.inference(**self.module._get_inference_input(tensors))
