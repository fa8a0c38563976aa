"""What the five models share: setup, start of the clusters, getters, write_back, and the checks around them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS, settings
from scvi.data.fields import (
    CategoricalJointObsField,
    CategoricalObsField,
    LayerField,
    NumericalJointObsField,
    NumericalObsField,
)
from scvi.model.base import BaseModelClass, RNASeqMixin
from torch import Tensor

from scdeepclust._compat import package_versions
from scdeepclust._keys import ResultKeys
from scdeepclust.nn import Dispersion, GeneLikelihood
from scdeepclust.train import (
    CountsManager,
    Initialiser,
    Minibatch,
    PhasedTrainingMixin,
    to_device,
)

from ._base_module import TARGET_TOTAL
from ._checks import (
    check_anndata,
    check_choice,
    check_init,
    check_n_clusters,
    check_obs_keys,
    gene_statistics,
    match_genes,
    proportion_statistics,
)
from ._fields import LabelsField
from ._query import QueryMappingMixin
from ._start import StartLabelsMixin

Indices = Sequence[int] | np.ndarray | None

# Cells per minibatch where nothing is learnt: large enough for fast matrix products, small enough for memory.
INFERENCE_BATCH = 1024


class ClusteringModel(PhasedTrainingMixin, QueryMappingMixin, StartLabelsMixin, RNASeqMixin, BaseModelClass):
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
    ):
        check_choice("gene_likelihood", module_kwargs["gene_likelihood"], get_args(GeneLikelihood))
        check_choice("dispersion", module_kwargs["dispersion"], get_args(Dispersion))
        super().__init__(adata, registry)
        n_obs = self.summary_stats.n_cells
        if registry is None:  # a trained model may get other and fewer cells than those its clusters were found in
            check_n_clusters(n_clusters, n_obs)
            check_init(init, n_obs, n_clusters)
        if settings.seed is not None:
            # the result must not depend on what was drawn before
            torch.manual_seed(settings.seed)
        cat_covs = self.registry_["field_registries"].get(REGISTRY_KEYS.CAT_COVS_KEY, {}).get("state_registry", {})
        self.module = self._module_cls(
            self.summary_stats.n_vars,
            n_clusters=n_clusters or 0,
            n_batch=self.summary_stats.n_batch,
            n_cats_per_cov=tuple(cat_covs.get("n_cats_per_key", ())),
            n_continuous_cov=self.summary_stats.get("n_extra_continuous_covs", 0),
            **module_kwargs,
        )
        self.gene_names_ = np.array([]) if adata is None else adata.var_names.to_numpy().astype(str)
        self.n_active_: int | None = None
        self.initial_labels_: np.ndarray | None = None
        self._init = init
        self._n_init = n_init
        self._model_summary_string = f"{type(self).__name__} with n_clusters: {n_clusters}, " + ", ".join(
            f"{name}: {value}" for name, value in module_kwargs.items()
        )

    # -- data ---------------------------------------------------------------------------------------------------------

    @classmethod
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
        adata
            Data with raw counts, in memory (sparse or dense) or opened ``backed="r"``.
        layer
            Layer with the raw counts; ``X`` by default.
        batch_key
            Column of ``obs`` with the technical batch.
        labels_key
            Column of ``obs`` with known labels. Never used in training; new cells may come without.
        size_factor_key
            Column of ``obs`` with size factors (positive, about 1 on average). By default the total count of a cell is
            its library size.
        categorical_covariate_keys
            Columns of ``obs`` with further categorical covariates.
        continuous_covariate_keys
            Columns of ``obs`` with continuous covariates.
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
        fields = [
            # checked above in full; scvi-tools would look at a corner, and not know all sparse formats
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False),
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, batch_key),
            LabelsField(REGISTRY_KEYS.LABELS_KEY, labels_key),
            NumericalObsField(REGISTRY_KEYS.SIZE_FACTOR_KEY, size_factor_key, required=False),
            CategoricalJointObsField(REGISTRY_KEYS.CAT_COVS_KEY, categorical_covariate_keys),
            NumericalJointObsField(REGISTRY_KEYS.CONT_COVS_KEY, continuous_covariate_keys),
        ]
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
            self._check_new_cells(adata)
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

    # -- clusters -----------------------------------------------------------------------------------------------------

    def _end_training(self, train_indices: np.ndarray) -> None:
        """Number the clusters by size (largest is "0") and count those that have cells."""
        probabilities = self._probabilities()
        sizes = np.bincount(probabilities.argmax(axis=1), minlength=probabilities.shape[1])
        order = np.argsort(-sizes, kind="stable")
        self.n_active_ = int((sizes > 0).sum())
        if not self._keeps_reference_clusters:
            self.module.reorder_clusters(torch.as_tensor(order, device=self.device))
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

    @property
    def _keeps_reference_clusters(self) -> bool:
        """Whether this model maps a query: its clusters, and their names, are then those of the reference."""
        return getattr(self, "is_query_", False)

    def _probabilities(
        self, adata: AnnData | None = None, indices: Indices = None, batch_size: int | None = None
    ) -> np.ndarray:
        """Assignment probabilities, (n, K) float32."""
        blocks = []
        for tensors in self._minibatches(adata, indices, batch_size):
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
    ) -> np.ndarray | pd.DataFrame:
        """Cluster of each cell.

        Parameters
        ----------
        adata
            Data of the same genes; by default the data of the model. Genes in another order are put into order.
        indices
            Rows of the cells; all by default.
        soft
            Return probabilities instead of labels.
        batch_size
            Cells per minibatch.

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
        adata = self._validate_anndata(adata)
        probabilities = self._probabilities(adata, indices, batch_size)
        if not soft:
            return probabilities.argmax(axis=1).astype(str)
        names = adata.obs_names if indices is None else adata.obs_names[indices]
        return pd.DataFrame(probabilities, index=names, columns=[str(k) for k in range(self.n_clusters)])

    def get_latent_representation(
        self, adata: AnnData | None = None, indices: Indices = None, batch_size: int | None = None
    ) -> np.ndarray:
        """Latent embedding of each cell (the posterior mean where there is a posterior).

        Parameters
        ----------
        adata, indices, batch_size
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
        return self._latent(adata, indices, batch_size)

    def _latent(self, adata=None, indices=None, batch_size=None) -> np.ndarray:
        blocks = [self._encode(tensors)["z_mean"] for tensors in self._minibatches(adata, indices, batch_size)]
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

    def write_back(self, adata: AnnData | None = None, key_added: str | None = None) -> None:
        """Write labels, confidence, embedding, probabilities and the parameters of the fit into ``adata``.

        This is the only method that writes into an AnnData object.

        Parameters
        ----------
        adata
            Where to write; by default the data of the model. Cells are assigned to the clusters of the model.
        key_added
            Stem of the names; by default the name of the model in lower case. With ``"gmvae"``: ``obs["gmvae"]``,
            ``obs["gmvae_confidence"]``, ``obsm["X_gmvae"]``, ``obsm["gmvae_probabilities"]``, ``uns["gmvae"]``.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        """
        self._check_if_trained(warn=False)
        target = self.adata if adata is None else adata
        if target is None:
            raise ValueError("`adata` is needed: this model was loaded without data.")
        keys = ResultKeys(key_added or type(self).__name__.lower())
        # everything is computed before anything is written, so that a failure leaves `adata` as it was
        results = self._results(adata, keys)
        for slot, name, value in results:
            getattr(target, slot)[name] = value

    def _results(self, adata: AnnData | None, keys: ResultKeys) -> list[tuple[str, str, Any]]:
        """What :meth:`write_back` writes, as (slot, name, value); a model adds its own."""
        probabilities = self._probabilities(adata)
        names = [str(k) for k in range(self.n_clusters)]
        labels = pd.Categorical.from_codes(probabilities.argmax(axis=1), categories=names)
        return [
            ("obs", keys.labels, labels.remove_unused_categories()),
            ("obs", keys.confidence, probabilities.max(axis=1)),
            ("obsm", keys.embedding, self._latent(adata)),
            ("obsm", keys.probabilities, probabilities),
            ("uns", keys.uns, self._parameters()),
        ]

    def _parameters(self) -> dict[str, Any]:
        """Parameters and scalars of the fit, in types that h5ad can hold."""
        setup = {name: value for name, value in self.registry_["setup_args"].items() if value is not None}
        init = self.init_params_["non_kwargs"] | {"init": self._init if isinstance(self._init, str) else "given labels"}
        return {
            "model": type(self).__name__,
            "setup": setup,
            "params": {name: _storable(value) for name, value in init.items() if value is not None},
            "phases": dict(self.phases_),
            "n_clusters": self.n_clusters,
            "n_active": self.n_active_,
            "seed": -1 if settings.seed is None else settings.seed,
            "versions": package_versions(),
            "final": {name: float(frame.iloc[-1, 0]) for name, frame in (self.history_ or {}).items() if len(frame)},
        }


def _storable(value: Any) -> Any:
    """A value as h5ad can hold it."""
    return value if isinstance(value, str | int | float | bool) else str(value)
