"""Cells of a datamodule as the data of a model: what there is of each cell is in memory, but for its counts."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from lightning.pytorch import LightningDataModule
from scipy.sparse import csr_matrix
from scvi import REGISTRY_KEYS, settings

from scdeepclust.train import (
    CountsManager,
    DataModuleCells,
    DataModuleLoaders,
    DataModuleRows,
    Minibatch,
    MinibatchForm,
    tensors_of,
    to_device,
)

from ._cells import RegisteredCells, cell_rows, check_batch_size
from ._checks import check_init, check_n_clusters
from ._data import CountDataMixin, Indices
from ._fields import registered_fields
from ._matrix import no_counts

# Arguments of `setup_anndata` that a datamodule answers. Labels are never learnt from.
SETUP = ("batch_key", "size_factor_key", "categorical_covariate_keys", "continuous_covariate_keys")


class StreamedCells(RegisteredCells):
    """Cells whose counts a datamodule yields: ``obs`` and the names of the genes, and no matrix."""

    source: DataModuleCells
    batch_size: int  # of the minibatches to train on
    split: list[np.ndarray]  # rows of training, validation and test cells

    def row_blocks(self) -> Iterator[csr_matrix]:
        """Counts of all cells, block by block."""
        return (block[REGISTRY_KEYS.X_KEY] for block in self.source.in_order())


def own_registry(registry: dict, model_name: str) -> dict:
    """The registry of a datamodule as ``setup_anndata`` would have written it, so that a model can be saved without.

    A registry that ``setup_anndata`` has written is returned as it is.
    """
    if registry.get("setup_method_name") != "setup_datamodule":
        return registry
    given = registry["setup_args"]
    setup = {name: given.get(name) or None for name in SETUP}
    own = registry | {"model_name": model_name, "setup_method_name": "setup_anndata"}
    own["setup_args"] = {"layer": None, "labels_key": None} | setup
    fields = own["field_registries"] = deepcopy(registry["field_registries"])
    _name_categories(fields[REGISTRY_KEYS.BATCH_KEY]["state_registry"])
    _name_categories(fields.get(REGISTRY_KEYS.LABELS_KEY, {}).get("state_registry", {}))
    for key, column in ((REGISTRY_KEYS.CAT_COVS_KEY, "categorical"), (REGISTRY_KEYS.CONT_COVS_KEY, "continuous")):
        empty = {"data_registry": {}, "state_registry": {}, "summary_stats": {f"n_{key}": 0}}
        field = fields.setdefault(key, empty)
        if setup[f"{column}_covariate_keys"] is None:
            field["state_registry"] = {}
    state = fields[REGISTRY_KEYS.CAT_COVS_KEY]["state_registry"]
    if "mapping" in state:  # scvi-tools has another name for it where it reads AnnData
        state["mappings"] = state.pop("mapping")
    return own


def _name_categories(state: dict) -> None:
    """Have categories in the order of their codes; datamodules may map them to codes, or have none."""
    names = state.get("categorical_mapping")
    if isinstance(names, dict):
        names = sorted(names, key=names.__getitem__)
    state["categorical_mapping"] = np.array([0]) if names is None else np.asarray(names)


def streamed_cells(datamodule: Any, registry: dict, gene_names: np.ndarray) -> StreamedCells:
    """Read the cells of a datamodule once: check all counts, and keep what there is beside them.

    Raises
    ------
    TypeError, ValueError
        If the datamodule lacks something, or yields what are no counts.
    """
    source = DataModuleCells(datamodule, registry)
    totals, kept = [], []
    for block in source.in_order():
        x = block.pop(REGISTRY_KEYS.X_KEY)
        if problem := no_counts(np.asarray(x.data)):
            raise ValueError(f"`datamodule`: a minibatch {problem}. Yield raw counts.")
        totals.append(np.asarray(x.sum(axis=1, dtype=np.float64)).ravel())
        kept.append(block)
    columns = {key: np.concatenate([block[key] for block in kept]) for key in kept[0]}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*names are not unique")
        cells = StreamedCells(obs=_obs(datamodule, registry, columns), var=pd.DataFrame(index=pd.Index(gene_names)))
    cells.source, cells.totals, cells.all_genes = source, np.concatenate(totals), cells.var_names
    if n_empty := int((cells.totals == 0).sum()):
        raise ValueError(f"`datamodule` yields {n_empty} cells without any count. Leave them out.")
    # there is no matrix to register
    cells.fields = registered_fields(**registry["setup_args"], may_reformat=False)[1:]
    manager = CountsManager(
        fields=cells.fields, setup_method_args={n: registry[n] for n in ("model_name", "setup_args")}
    )
    manager.register_fields(cells, source_registry=registry)
    cells.registry = registry
    first = next(source.training(), None)
    if first is None:
        raise ValueError("`datamodule.train_dataloader()` yields nothing to train on.")
    cells.batch_size = first[REGISTRY_KEYS.X_KEY].shape[0]
    cells.split = _split(source)
    return cells


def _split(source: DataModuleCells) -> list[np.ndarray]:
    """Validation cells are those that ``val_dataloader`` yields, all others count as training cells."""
    held_out = np.unique(np.concatenate([[], *(cells for cells in source.held_out_cells())])).astype(np.int64)
    return [np.setdiff1d(np.arange(source.n_obs), held_out), held_out, np.empty(0, dtype=np.int64)]


def _obs(datamodule: Any, registry: dict, columns: dict[str, np.ndarray]) -> pd.DataFrame:
    """What is known of the cells: ``datamodule.obs`` where there is one, and what the minibatches say."""
    n_obs = len(columns[REGISTRY_KEYS.BATCH_KEY])
    known = getattr(datamodule, "obs", None)
    if isinstance(known, pd.DataFrame) and len(known) != n_obs:
        raise ValueError(f"`datamodule.obs` has {len(known)} rows for {n_obs} cells.")
    obs = known.copy() if isinstance(known, pd.DataFrame) else pd.DataFrame(index=np.arange(n_obs).astype(str))
    setup, fields = registry["setup_args"], registry["field_registries"]
    if (key := setup.get("batch_key")) is not None:
        names = fields[REGISTRY_KEYS.BATCH_KEY]["state_registry"]["categorical_mapping"]
        obs[key] = pd.Categorical.from_codes(columns[REGISTRY_KEYS.BATCH_KEY].ravel(), names)
    if (key := setup.get("size_factor_key")) is not None:
        obs[key] = columns[REGISTRY_KEYS.SIZE_FACTOR_KEY].ravel()
    for i, key in enumerate(setup.get("categorical_covariate_keys") or ()):
        names = fields[REGISTRY_KEYS.CAT_COVS_KEY]["state_registry"]["mappings"][key]
        obs[key] = pd.Categorical.from_codes(columns[REGISTRY_KEYS.CAT_COVS_KEY][:, i], names)
    for i, key in enumerate(setup.get("continuous_covariate_keys") or ()):
        obs[key] = columns[REGISTRY_KEYS.CONT_COVS_KEY][:, i]
    return obs


class DataModuleMixin(CountDataMixin):
    """A model whose cells a datamodule yields, in the place of an AnnData object."""

    module: Any
    _init: Any

    def _check_source(self, datamodule: LightningDataModule | None, splits: dict[str, Any]) -> None:
        own = self.adata
        if datamodule is None and own is None:
            raise ValueError(
                "`train` needs the cells themselves, but this model has no `adata`. Load or make it with `adata` (data "
                "larger than memory can stay in a file opened with `anndata.read_h5ad(path, backed='r')`), or give a "
                "`datamodule`."
            )
        if datamodule is not None and own is not None and not isinstance(own, StreamedCells):
            raise ValueError(
                f"`datamodule`: this model was made with `adata`. Make it with `{type(self).__name__}("
                "registry=datamodule.registry)`, or leave the datamodule out."
            )
        if datamodule is None and not isinstance(own, StreamedCells):
            return
        for name, value in splits.items():
            if value is not None:
                raise ValueError(f"`{name}` has no effect with a `datamodule`, whose own loaders decide. Leave it out.")

    def _take_datamodule(self, datamodule: LightningDataModule) -> None:
        cells = streamed_cells(datamodule, self.registry_, self.gene_names_)
        if not self.module.knows_data:
            check_n_clusters(self.module.n_clusters or None, cells.n_obs)
            check_init(self._init, cells.n_obs, self.module.n_clusters or None)
        self._check_columns(cells)
        self._check_size_factors(cells, cells.totals)
        self._adata = cells
        self._adata_manager = CountsManager.over(cells, cells.fields, self.registry_)

    def _check_columns(self, cells: StreamedCells) -> None:
        """Raise a ValueError unless the datamodule says what a model wants to know beside its minibatches."""
        setup = self.registry_["setup_args"]
        if setup.get("transition_key") is not None:
            raise ValueError("`transition_key` needs `adata.obsp`, which no datamodule has. Give a `time_key`.")
        for argument in ("time_key", "trajectory_key"):
            if (column := setup.get(argument)) is not None and column not in cells.obs:
                raise ValueError(
                    f"`{argument}`: there is no column {column!r} in what is known of the cells; found "
                    f"{list(cells.obs)}. Give the datamodule an attribute `obs`, a DataFrame with one row a cell."
                )

    def _own_cells_hold(self) -> bool:
        return isinstance(self.adata, StreamedCells) or super()._own_cells_hold()

    # -- loaders ------------------------------------------------------------------------------------------------------

    def _split_of_datamodule(self) -> list[np.ndarray] | None:
        return self.adata.split if isinstance(self.adata, StreamedCells) else None

    def _batch_size(self, asked: int) -> int:
        return self.adata.batch_size if isinstance(self.adata, StreamedCells) else asked

    def _loaders(self, split: list[np.ndarray], options: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(self.adata, StreamedCells):
            return super()._loaders(split, options)
        return {"datamodule": DataModuleLoaders(self.adata.source, split)}

    def _make_data_loader(
        self, adata: AnnData, indices: Indices = None, batch_size: int | None = None, *args, **kwargs
    ):
        """As in scvi-tools; every getter comes by here, whoever wrote it."""
        if not isinstance(adata, StreamedCells):
            return super()._make_data_loader(adata, indices, batch_size, *args, **kwargs)
        check_batch_size(batch_size)
        rows = cell_rows(indices, adata.obs_names)
        sparse = kwargs.get("load_sparse_tensor", False)
        return DataModuleRows(adata.source, rows, batch_size or settings.batch_size, sparse=sparse)

    def _minibatches(
        self,
        adata: AnnData | None = None,
        indices: Indices = None,
        batch_size: int | None = None,
        dataloader: Iterable | None = None,
    ) -> Iterator[Minibatch]:
        """Minibatches on the device of the model, in the order of the cells, or as ``dataloader`` yields them."""
        if dataloader is None:
            yield from super()._minibatches(adata, indices, batch_size)
            return
        if adata is not None or indices is not None:
            raise ValueError("`dataloader` says which cells there are: leave out `adata` and `indices`.")
        form = MinibatchForm(self.registry_)
        for tensors in dataloader:
            yield to_device(tensors_of(form.block(tensors, "dataloader"), sparse=True), self.device)
