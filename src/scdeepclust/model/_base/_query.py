"""Query mapping: new cells, of new batches, onto the clusters of a trained model."""

from __future__ import annotations

import warnings
from typing import Any, Self

import torch
from anndata import AnnData
from lightning.pytorch import LightningDataModule
from scvi.model.base import ArchesMixin
from scvi.nn import FCLayers
from torch import Tensor

from scdeepclust.train import LearnOnly, Phase, check_names, epochs_for_steps

from ._cells import match_genes
from ._checks import check_categorical_covariates
from ._module import ClusteringModule

QUERY_ARGUMENTS = ("unfrozen", "accelerator", "device", "inplace_subset_query_vars")


class QueryMappingMixin(ArchesMixin):
    """``load_query_data`` for models whose clusters are those of a reference."""

    module: Any
    n_known_batches_: int | None = None

    @classmethod
    def load_query_data(cls, adata: AnnData, reference_model, **kwargs) -> Self:
        """Map new cells, possibly of new batches, onto the clusters of a trained model.

        New batches get their own columns in the first layers, started at the mean of the known batches; only those
        columns are trained (``train(max_epochs=0)`` maps without any training), all else stays bit for bit. Clusters
        and their names stay those of the reference, unless ``unfrozen=True`` lets everything adapt.

        Parameters
        ----------
        adata
            New cells with the genes of the reference.
        reference_model
            A trained model, or the folder it was saved to.
        **kwargs
            ``unfrozen``, and ``accelerator``, ``device`` and ``inplace_subset_query_vars`` as in
            :meth:`scvi.model.base.ArchesMixin.load_query_data`.

        Returns
        -------
        A model of the new cells. Call ``train`` before its getters.

        Raises
        ------
        RuntimeError
            If the reference is not trained.
        ValueError
            If genes are missing, the data are no counts, a categorical covariate other than the batch has new
            categories, or an argument is unknown.
        """
        check_names("`load_query_data`", kwargs, QUERY_ARGUMENTS)
        reference = reference_model if isinstance(reference_model, cls) else cls.load(reference_model, adata=False)
        reference._check_if_trained(warn=False)
        if reference._knows_repeats:
            reference._restarts()  # the query does not have the cells of the reference
        adata_matched = match_genes(adata, reference.gene_names_)
        if adata_matched is not adata:
            warnings.warn(
                "`adata` has other genes than the model, or in another order: the query works on a copy with those of "
                "the model. Write results with `query.write_back(adata)`.",
                stacklevel=2,
            )
        check_categorical_covariates(adata_matched, reference.registry_)
        # what learns is decided when training starts: scvi-tools does it here, by hooks that a copy does not have
        query = super().load_query_data(adata_matched, reference, **(kwargs | {"unfrozen": True}))
        query.is_query_ = not kwargs.get("unfrozen", False)
        query.n_known_batches_ = reference.module.n_batch
        query.gene_names_ = reference.gene_names_
        _start_new_batches(query.module, reference.module)
        return query

    def _query_phases(self, max_epochs: int | None, n_train: int, batch_size: int) -> list[Phase]:
        """The one phase of a query: the columns of new batches learn, below clusters that stay what they are."""
        masks = _new_batch_columns(self.module, self.n_known_batches_)
        epochs = epochs_for_steps(400, n_train, batch_size, 100) if max_epochs is None else max_epochs
        if not masks:
            if max_epochs:
                warnings.warn("The query has no new batch, so there is nothing to train.", stacklevel=5)
            epochs = 0
        return [Phase("query", epochs, callbacks=[LearnOnly(self.module, masks)] if masks else [])]

    @classmethod
    def load(
        cls,
        dir_path: str,
        adata: AnnData | bool | None = None,
        *,
        datamodule: LightningDataModule | None = None,
        **kwargs,
    ) -> Self:
        """Load a saved model.

        Parameters
        ----------
        dir_path
            Folder that the model was saved to.
        adata
            Data for the model, with its genes in its order; by default those that were saved with it. False loads it
            without data.
        datamodule
            Cells for the model, where a datamodule yields them.
        **kwargs
            As in :meth:`scvi.model.base.BaseModelClass.load`.

        Returns
        -------
        The model, ready for its getters.

        Raises
        ------
        ValueError
            If genes are missing or in another order, or the model is of another class.
        """
        if datamodule is not None:
            if adata:
                raise ValueError("`datamodule` and `adata` are both given. Leave one of them out.")
            model = super().load(dir_path, False, **kwargs)
            model._take_datamodule(datamodule)
            return model
        if isinstance(adata, AnnData):
            # scvi-tools would only warn, and give each gene the weights of another
            genes = super().load(dir_path, False, **kwargs).gene_names_
            if match_genes(adata, genes) is not adata:
                raise ValueError(
                    "`adata` has the genes of the model in another order, or more of them. Run "
                    f"`adata = adata[:, {cls.__name__}.load(path, adata=False).gene_names_].copy()`."
                )
        return super().load(dir_path, adata, **kwargs)


def _new_batch_columns(module: ClusteringModule, n_known: int | None) -> dict[str, Tensor]:
    """Masks of the weights that see the batch, True in the columns of new batches; nothing without new batches."""
    if n_known is None:  # a query that an older version saved
        n_known = int((module.batch_frequencies > 0).sum())
    n_new = module.n_batch - n_known
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    masks = {}
    for layers in module.modules():
        if n_new > 0 and isinstance(layers, FCLayers) and layers.n_cat_list[-1:] == [module.n_batch]:
            for i, block in enumerate(layers.fc_layers):
                if layers.inject_into_layer(i):
                    mask = torch.zeros_like(block[0].weight, dtype=torch.bool)
                    mask[:, -n_new:] = True  # batches are last, the new ones behind those that are known
                    masks[names[id(block[0].weight)]] = mask
    return masks


def _start_new_batches(query: ClusteringModule, reference: ClusteringModule) -> None:
    """Let new batches start as the mean of the known ones, instead of at random weights."""
    n_old, n_new = reference.n_batch, query.n_batch
    old_state = reference.state_dict()
    with torch.no_grad():
        for name, new in query.state_dict().items():
            old = old_state[name]
            if name == "batch_frequencies":
                new[n_old:] = 0  # an average batch is one of the reference
            elif name.endswith("decoder.log_theta"):
                new[len(old) :] = old.mean(dim=0)
            elif new.shape != old.shape:  # weights of a first layer; batch columns are last
                n_columns = n_new if n_old == 1 else n_new - n_old  # a single batch has no column
                known = old[:, -n_old:].mean(dim=1, keepdim=True) if n_old > 1 else torch.zeros_like(old[:, :1])
                new[:, -n_columns:] = known
