"""Cells that a getter reads: which rows, with which genes, registered where the user's object does not change."""

from __future__ import annotations

import warnings
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi.data.fields import AnnDataField

from scdeepclust.train import CountsManager

from ._checks import check_is_anndata, check_new_cells, plain
from ._fields import registered_fields
from ._matrix import count_matrix, with_genes


class RegisteredCells(AnnData):
    """New cells as a model reads them: their counts, not copied, with names and ``obs``.

    What scvi-tools writes to register data goes into this object, not into that of the user, and is gone with it.
    """

    fields: list[AnnDataField]
    registry: dict
    all_genes: pd.Index  # of the object of the user
    totals: np.ndarray


def same_genes(adata: AnnData, gene_names: np.ndarray) -> bool:
    """Whether these are the genes of the model in its order."""
    return adata.n_vars == len(gene_names) and bool((adata.var_names == gene_names).all())


def all_genes(adata: AnnData) -> pd.Index:
    """Genes of the object that results are written into, of which those of the model may be a part."""
    return adata.all_genes if isinstance(adata, RegisteredCells) else adata.var_names


def gene_places(adata: AnnData, gene_names: np.ndarray) -> np.ndarray | None:
    """Columns of the genes of the model; None if they are all there is, in this order.

    Raises
    ------
    ValueError
        If genes are missing.
    """
    if same_genes(adata, gene_names):
        return None
    missing = pd.Index(gene_names).difference(adata.var_names)
    if len(missing):
        raise ValueError(
            f"`adata` lacks {len(missing)} of the {len(gene_names)} genes of the model, such as "
            f"{', '.join(missing[:5])}. To fill them with zeros on purpose, run `prepare_query_anndata(adata, model)`."
        )
    if not adata.var_names.is_unique:
        raise ValueError("`adata.var_names` has duplicated gene names. Run `adata.var_names_make_unique()`.")
    return adata.var_names.get_indexer(gene_names)


def match_genes(adata: AnnData, gene_names: np.ndarray) -> AnnData:
    """``adata`` with the genes of the model in the order of the model; a copy in memory unless they are that already.

    Raises
    ------
    ValueError
        If genes are missing.
    """
    check_is_anndata(adata)
    if gene_places(adata, gene_names) is None:
        return adata
    selected = adata[:, gene_names]
    return selected.to_memory() if adata.isbacked else selected.copy()


def register_cells(adata: AnnData, gene_names: np.ndarray, registry: dict, model_name: str) -> RegisteredCells:
    """Check cells, and register what a model with these genes and this registry reads of them.

    Raises
    ------
    ValueError
        If genes are missing, batches or categories are unknown, or the data are no counts.
    """
    check_is_anndata(adata)
    setup = registry["setup_args"]
    layer, places = setup.get("layer"), gene_places(adata, gene_names)
    x = count_matrix(adata, layer) if places is None else with_genes(adata, layer, places)
    with warnings.catch_warnings():
        # the user has heard of names that are not unique when the object was made
        warnings.filterwarnings("ignore", message=".*names are not unique")
        obs, var = pd.DataFrame(adata.obs), pd.DataFrame(index=pd.Index(gene_names))
        slots = {"X": x} if layer is None else {"layers": {layer: x}}
        cells = RegisteredCells(obs=obs, var=var, **slots)
    cells.all_genes = adata.var_names
    cells.totals = check_new_cells(cells, registry, model_name)
    cells.fields = registered_fields(**setup, may_reformat=False)
    manager = CountsManager(
        fields=cells.fields, setup_method_args={key: registry[key] for key in ("model_name", "setup_args")}
    )
    manager.register_fields(cells, source_registry=registry)
    cells.registry = manager.registry
    return cells


def cell_rows(indices: Any, obs_names: pd.Index, argument: str = "indices") -> np.ndarray:
    """Row numbers (n,) of the cells that a user chose: by number, name, mask or slice; all of them for None."""
    n_obs = len(obs_names)
    if indices is None:
        return np.arange(n_obs)
    if isinstance(indices, dict | set):
        raise ValueError(f"`{argument}` must be row numbers, names of cells, a mask of {n_obs} or a slice.")
    if isinstance(indices, slice):
        chosen = np.arange(n_obs)[indices] if _is_plain_slice(indices) else np.empty(0, dtype=int)
    else:
        chosen = _rows_of(np.atleast_1d(np.asarray(indices)), obs_names, argument)
    if not len(chosen):
        raise ValueError(f"`{argument}` chooses no cells; found {indices!r}. Leave it out for all cells.")
    return chosen


def _is_plain_slice(indices: slice) -> bool:
    return all(part is None or isinstance(part, Integral) for part in (indices.start, indices.stop, indices.step))


def _rows_of(values: np.ndarray, obs_names: pd.Index, argument: str) -> np.ndarray:
    n_obs = len(obs_names)
    what = f"`{argument}` must be row numbers, names of cells, a mask of {n_obs} or a slice"
    if values.ndim != 1:
        raise ValueError(f"{what}; found an array of shape {values.shape}.")
    if values.dtype == object and len(values) and not isinstance(values[0], str):
        values = np.array(values.tolist())  # such as a nullable column
    if values.dtype.kind == "b":
        if len(values) != n_obs:
            raise ValueError(f"{what}; found a mask of {len(values)}.")
        return np.flatnonzero(values)
    if values.dtype.kind == "O" and not all(isinstance(value, str) for value in values):
        raise ValueError(f"{what}; found values such as {plain(values[0])!r}.")
    if values.dtype.kind in "UOT" and len(values):
        places = pd.Index(obs_names).get_indexer_for(values) if obs_names.is_unique else None
        if places is None:
            raise ValueError(f"`{argument}`: names of cells are not unique. Run `adata.obs_names_make_unique()`.")
        if (places < 0).any():
            raise ValueError(
                f"`{argument}`: {(places < 0).sum()} names are not in `adata.obs_names`, such as "
                f"{plain(values[places < 0][0])!r}."
            )
        return places
    if values.dtype.kind not in "iu" and len(values):
        raise ValueError(f"{what}; found values such as {plain(values[0])!r}.")
    rows = values.astype(np.int64)
    outside = (rows < -n_obs) | (rows >= n_obs)
    if outside.any():
        raise ValueError(f"`{argument}`: row {rows[outside][0]} is out of range for {n_obs} cells.")
    return np.where(rows < 0, rows + n_obs, rows)


def is_count(value: Any) -> bool:
    """Whether this is a whole number of at least 1."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


def is_positive(value: Any) -> bool:
    """Whether this is a finite number above 0."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and bool(0 < value < np.inf)


def check_counts_of(**values: Any) -> None:
    """Raise a ValueError unless each argument is a whole number of at least 1."""
    for name, value in values.items():
        if not is_count(value):
            raise ValueError(f"`{name}` must be a whole number of at least 1; found {value!r}.")


def check_flags(**flags: Any) -> None:
    """Raise a ValueError unless each argument is true or false."""
    for name, value in flags.items():
        if value is not None and not isinstance(value, bool | np.bool_ | int):
            raise ValueError(f"`{name}` must be True or False; found {value!r}.")


def check_batch_size(batch_size: Any) -> None:
    """Raise a ValueError unless this is None or a whole number of at least 1."""
    if batch_size is not None and not is_count(batch_size):
        raise ValueError(f"`batch_size` must be a whole number of at least 1, or None; found {batch_size!r}.")
