"""From an AnnData object to minibatches: registration, checks, statistics of the training data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.model.base import BaseModelClass
from torch import Tensor

from scdeepclust.train import CountsManager, Minibatch, is_collection, to_device

from ._cells import RegisteredCells, cell_rows, check_batch_size, register_cells, same_genes
from ._checks import (
    check_anndata,
    check_cells,
    check_is_anndata,
    check_new_obs,
    check_obs_keys,
    check_size_factor_scale,
)
from ._docs import shared_docs
from ._fields import numbers, registered_fields, unchanged_on_error
from ._matrix import count_matrix, fingerprint, gene_statistics, proportion_statistics, row_blocks
from ._module import TARGET_TOTAL

Indices = Sequence[int] | Sequence[str] | np.ndarray | slice | None

# Cells per minibatch where nothing is learnt: large enough for fast matrix products, small enough for memory.
INFERENCE_BATCH = 1024


class CountDataMixin(BaseModelClass):
    """Registered counts, and minibatches of them."""

    gene_names_: np.ndarray
    registry_: dict

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
        source = kwargs.get("source_registry")
        check_anndata(adata, layer, for_trained=source is not None)
        keys: dict[str, str | Sequence[str] | None] = {
            "batch_key": batch_key,
            "labels_key": None if source else labels_key,  # new cells may come without labels
            "size_factor_key": size_factor_key,
            "categorical_covariate_keys": categorical_covariate_keys,
            "continuous_covariate_keys": continuous_covariate_keys,
        }
        check_obs_keys(adata, keys)
        if source:
            check_new_obs(adata, source, cls.__name__, may_grow=kwargs.get("extend_categories", False))
        fields = registered_fields(
            layer, batch_key, labels_key, size_factor_key, categorical_covariate_keys, continuous_covariate_keys
        )
        manager = CountsManager(fields=fields, setup_method_args=setup_method_args)
        with unchanged_on_error(adata):
            manager.register_fields(adata, **kwargs)
        manager.checked = fingerprint(count_matrix(adata, layer))
        cls.register_manager(manager)

    @classmethod
    def _check_is_set_up(cls, adata: AnnData) -> None:
        """Raise a ValueError unless these data, as they are, were registered with this class."""
        check_is_anndata(adata)
        try:
            manager = cls._get_most_recent_anndata_manager(adata)
        except ValueError:  # a copy of what was registered
            manager = None
        if manager is None:
            raise ValueError(
                f"`adata` is not set up for {cls.__name__}. Run `{cls.__name__}.setup_anndata(adata, ...)`."
            )
        registered = manager.registry["field_registries"][REGISTRY_KEYS.X_KEY]["state_registry"]["column_names"]
        if not same_genes(adata, np.asarray(registered)):
            raise ValueError(
                "`adata` has other genes than at `setup_anndata`, or in another order. Run "
                f"`{cls.__name__}.setup_anndata(adata, ...)` again."
            )

    # -- whose cells --------------------------------------------------------------------------------------------------

    def _validate_anndata(self, adata: AnnData | None = None, copy_if_view: bool = True) -> AnnData:
        """Checked and registered cells with the genes of the model in its order, or a clear error.

        Nothing is written into data that are not the model's own, and nothing of them is kept.
        """
        if adata is None and self.adata is None:
            raise ValueError("`adata` is needed: this model was loaded without data.")
        adata = self.adata if adata is None else adata
        if isinstance(adata, RegisteredCells):
            return adata
        check_is_anndata(adata)
        if adata is not self.adata:
            return self._registered(adata)
        try:
            return adata if self._own_cells_hold() else self._registered(adata)
        except ValueError as error:
            raise ValueError(f"{error} (The data of the model were changed since `setup_anndata`.)") from None

    def _registered(self, adata: AnnData) -> AnnData:
        if is_collection(adata):
            return super()._validate_anndata(adata)
        cells = register_cells(adata, self.gene_names_, self.registry_, type(self).__name__)
        self._check_size_factors(cells, cells.totals)
        return cells

    def _own_cells_hold(self) -> bool:
        """Whether the data of the model still have its genes in its order, and counts; they are read again if not."""
        adata, manager = self.adata, self.adata_manager
        if not same_genes(adata, self.gene_names_):
            return False
        layer = self.registry_["setup_args"].get("layer")
        if (mark := fingerprint(count_matrix(adata, layer))) != manager.checked:
            check_cells(adata, layer, for_trained=True)
            manager.checked = mark
        if not manager.is_registered():  # another model was set up with these data since
            check_new_obs(adata, self.registry_, type(self).__name__)
            with unchanged_on_error(adata):
                manager.register_again()
        return True

    def _check_own_cells(self) -> None:
        """Raise a ValueError unless the model can be trained on its data as they are now."""
        if not self._own_cells_hold():
            raise ValueError(
                "`adata` of the model has other genes than at `setup_anndata`, or in another order. Put them back with "
                "`adata = adata[:, model.gene_names_].copy()`, then load the saved model with it, or set up a new one."
            )

    def _check_size_factors(self, cells: AnnData, totals: np.ndarray) -> None:
        key = self.registry_["setup_args"].get("size_factor_key")
        if key is not None and self.module.knows_data:
            known = float(self.module.median_size_factor), float(self.module.median_total)
            check_size_factor_scale(numbers(cells.obs[key]), totals, *known)

    def get_anndata_manager(self, adata: AnnData | None, required: bool = False) -> AnnDataManager | None:
        """The registration of these data, as in scvi-tools."""
        if isinstance(adata, RegisteredCells):
            return CountsManager.over(adata, adata.fields, adata.registry)
        if adata is not None and adata is self.adata:
            return self.adata_manager
        return super().get_anndata_manager(adata, required)

    def _set_adata(self, adata: AnnData) -> None:
        """Take other data for the model's own."""
        check_is_anndata(adata)
        if not same_genes(adata, self.gene_names_):
            raise ValueError("`adata` has other genes than the model: use `adata[:, model.gene_names_].copy()`.")
        type(self).setup_anndata(adata, source_registry=self.registry_, **self.registry_["setup_args"])
        self._adata = adata
        self._adata_manager = self._get_most_recent_anndata_manager(adata, required=True)
        self._register_manager_for_instance(self._adata_manager)
        self.registry_ = self._adata_manager.registry
        self.summary_stats = self._adata_manager.summary_stats

    adata = property(BaseModelClass.adata.fget, _set_adata, doc=BaseModelClass.adata.__doc__)

    # -- training data ------------------------------------------------------------------------------------------------

    def _begin_training(self) -> None:
        """Statistics of the training data; a model that has them (loaded, or a mapped query) keeps them."""
        self._check_own_cells()
        setup = self.registry_["setup_args"]
        layer, key = setup["layer"], setup.get("size_factor_key")
        if self.module.knows_data:
            if key is not None:
                totals = [np.asarray(block.sum(axis=1)).ravel() for block in row_blocks(self.adata, layer)]
                self._check_size_factors(self.adata, np.concatenate(totals))
            return
        factors = None if key is None else numbers(self.adata.obs[key]).astype(np.float64)
        median_factor = 1.0 if factors is None else float(np.median(factors))
        relative = None if factors is None else factors / median_factor
        mean, sd, median_total = gene_statistics(self.adata, layer, TARGET_TOTAL, relative)
        n_trials = 1.0
        if self.module.gene_likelihood == "beta_binomial":
            mean, sd, n_trials = proportion_statistics(self.adata, layer)
        batch = self.adata_manager.get_from_registry(REGISTRY_KEYS.BATCH_KEY)
        frequencies = np.bincount(np.asarray(batch).ravel(), minlength=self.summary_stats.n_batch) / len(batch)
        self.module.set_data_statistics(mean, sd, median_total, frequencies, n_trials, median_factor)

    # -- minibatches --------------------------------------------------------------------------------------------------

    def _cells(self, adata: AnnData | None, indices: Indices) -> tuple[AnnData, np.ndarray]:
        """Checked and registered cells, and the rows that are asked for."""
        cells = self._validate_anndata(adata)
        return cells, cell_rows(indices, cells.obs_names)

    def _make_data_loader(
        self, adata: AnnData, indices: Indices = None, batch_size: int | None = None, *args, **kwargs
    ):
        """As in scvi-tools; every getter comes by here, whoever wrote it."""
        check_batch_size(batch_size)
        return super()._make_data_loader(adata, cell_rows(indices, adata.obs_names), batch_size, **kwargs)

    def _minibatches(
        self, adata: AnnData | None = None, indices: Indices = None, batch_size: int | None = None
    ) -> Iterator[Minibatch]:
        """Minibatches on the device of the model, in the order of the cells."""
        adata = self._validate_anndata(adata)
        batch_size = INFERENCE_BATCH if batch_size is None else batch_size
        loader = self._make_data_loader(adata=adata, indices=indices, batch_size=batch_size, load_sparse_tensor=True)
        for tensors in loader:
            yield to_device(tensors, self.device)

    @torch.inference_mode()
    def _encode(self, tensors: Minibatch) -> dict[str, Tensor]:
        """Outputs of ``module.inference`` for one minibatch, without noise."""
        self.module.eval()
        return self.module.inference(**self.module._get_inference_input(tensors))
