"""Checks of the input. Errors name the argument, what was found, and the remedy; nothing is changed before them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix
from scvi import REGISTRY_KEYS

from scdeepclust.train import Initialiser, given_labels

# Cells read at once: a few MB, whatever the number of cells.
BLOCK = 4096

# What a network reads of a cell besides its counts.
OBS_KEYS = ("batch_key", "size_factor_key", "categorical_covariate_keys", "continuous_covariate_keys")


def count_matrix(adata: AnnData, layer: str | None):
    """The registered counts: ``X`` or a layer."""
    if layer is None:
        return adata.X
    found = [name for name in adata.layers.keys() if name is not None]  # a collection of files only has keys
    if layer not in found:
        raise ValueError(f"`layer`: there is no layer {layer!r} in `adata.layers`; found {found}.")
    return adata.layers[layer]


def row_blocks(adata: AnnData, layer: str | None) -> Iterator[csr_matrix]:
    """Blocks of cells of dense, sparse or file-backed counts, each as CSR."""
    x = count_matrix(adata, layer)
    for start in range(0, adata.n_obs, BLOCK):
        yield csr_matrix(x[start : start + BLOCK])


def check_anndata(adata: AnnData, layer: str | None, *, for_trained: bool = False) -> None:
    """Raise a ValueError unless ``adata`` holds counts of at least 2 cells, or 1 for a trained model.

    Raises
    ------
    ValueError
        For a view, too few cells, no genes, duplicated gene names, a missing layer, values that are no counts
        (negative, not finite, not whole), or cells without any count.
    """
    if adata.is_view:
        raise ValueError("`adata` is a view of another AnnData. Run `adata = adata.copy()` first.")
    if adata.n_obs < (1 if for_trained else 2):
        raise ValueError(f"`adata` has {adata.n_obs} cells; at least {1 if for_trained else 2} are needed.")
    if adata.n_vars < 1:
        raise ValueError("`adata` has no genes.")
    duplicated = adata.var_names[adata.var_names.duplicated()].unique()
    if len(duplicated):
        raise ValueError(
            f"`adata.var_names` has {len(duplicated)} duplicated gene names, such as {duplicated[0]!r}. "
            "Run `adata.var_names_make_unique()`."
        )
    if count_matrix(adata, layer) is None:
        raise ValueError("`adata.X` is empty. Give the layer that holds the counts: `layer=...`.")
    where = "`adata.X`" if layer is None else f"`adata.layers[{layer!r}]`"
    empty = []
    for block in row_blocks(adata, layer):
        check_counts(block.data, where)
        n_entries = block.nnz
        block.sum_duplicates()  # of a copy: a block is read row by row
        if block.nnz < n_entries:
            raise ValueError(f"{where} stores some entries more than once. Run {where.strip('`')}.sum_duplicates().")
        empty.append(np.asarray(block.sum(axis=1)).ravel() == 0)
    if n_empty := int(np.concatenate(empty).sum()):
        example = adata.obs_names[int(np.concatenate(empty).argmax())]
        raise ValueError(
            f"{where} has {n_empty} cells without any count in the {adata.n_vars} genes, such as {example!r}. "
            + (
                f"Leave them out: `adata[np.ravel({where[1:-1].replace('adata', 'adata[:, model.gene_names_]')}"
                ".sum(axis=1)) > 0].copy()`."
                if for_trained
                else "Run `scanpy.pp.filter_cells(adata, min_counts=1)`."
            )
        )


def check_counts(values: np.ndarray, where: str) -> None:
    """Raise a ValueError unless all values are counts."""
    remedy = "Give raw counts, for example `layer='counts'`."
    if not np.isfinite(values).all():
        raise ValueError(f"{where} has {(~np.isfinite(values)).sum()} values that are NaN or infinite. {remedy}")
    if (values < 0).any():
        raise ValueError(f"{where} has negative values (smallest {values.min():g}), so it holds no counts. {remedy}")
    fractions = values != np.round(values)
    if fractions.any():
        example = values[fractions][0]
        raise ValueError(f"{where} has values that are not whole numbers, such as {example:g}. {remedy}")


def check_obs_keys(adata: AnnData, keys: Mapping[str, str | list[str] | None]) -> None:
    """Raise a ValueError unless each key is a column of ``obs`` without missing values.

    Parameters
    ----------
    adata
        Data.
    keys
        ``{argument: column, columns or None}``.
    """
    for argument, columns in keys.items():
        if isinstance(columns, str) and argument.endswith("covariate_keys"):
            raise ValueError(f"`{argument}` must be a list of columns; found {columns!r}. Give [{columns!r}].")
        for column in [columns] if isinstance(columns, str) else columns or []:
            if column not in adata.obs:
                raise ValueError(
                    f"`{argument}`: there is no column {column!r} in `adata.obs`; found {list(adata.obs)}."
                )
            n_missing = int(adata.obs[column].isna().sum())
            if n_missing:
                raise ValueError(f"`{argument}`: column {column!r} of `adata.obs` has {n_missing} missing values.")
    labels, batch = keys.get("labels_key"), keys.get("batch_key")
    if labels is not None and labels == batch:
        raise ValueError(
            f"`batch_key` and `labels_key` are both {labels!r}: batches would be removed from the latent space "
            "together with the labels. Give the column of the technical batches as `batch_key`."
        )
    for column in keys.get("continuous_covariate_keys") or []:
        if not np.isfinite(pd.to_numeric(adata.obs[column], errors="coerce")).all():
            raise ValueError(
                f"`continuous_covariate_keys`: column {column!r} of `adata.obs` must hold finite numbers. Give "
                "categories as `categorical_covariate_keys`."
            )
    if batch is not None and batch in (keys.get("categorical_covariate_keys") or []):
        raise ValueError(
            f"`batch_key` and `categorical_covariate_keys` both have {batch!r}: once is enough. Give it as `batch_key` "
            "alone, so that new batches can be mapped."
        )
    size_factor = keys.get("size_factor_key")
    if size_factor is not None:
        values = pd.to_numeric(adata.obs[size_factor], errors="coerce")
        if not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(
                f"`size_factor_key`: column {size_factor!r} of `adata.obs` must hold positive, finite numbers."
            )


def check_n_clusters(n_clusters: int | None, n_obs: int) -> None:
    """Raise a ValueError unless ``n_clusters`` is None or between 2 and the number of cells."""
    if n_clusters is None:
        return
    if not isinstance(n_clusters, Integral) or not 2 <= n_clusters <= n_obs:
        raise ValueError(
            f"`n_clusters` must be a whole number between 2 and the number of cells ({n_obs}), or None to find it "
            f"from the data (which may find one); found {n_clusters!r}."
        )


def check_choice(argument: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a ValueError unless ``value`` is one of the choices."""
    if value not in choices:
        raise ValueError(f"`{argument}` must be one of {', '.join(map(repr, choices))}; found {value!r}.")


def check_init(init: Initialiser | Sequence, n_obs: int, n_clusters: int | None) -> None:
    """Raise a ValueError unless ``init`` is a known method or one label per cell."""
    if isinstance(init, str):
        check_choice("init", init, get_args(Initialiser))
    else:
        given_labels(init, n_obs, n_clusters)


def match_genes(adata: AnnData, gene_names: np.ndarray) -> AnnData:
    """``adata`` with the genes of the model in the order of the model; a copy unless they are that already.

    Raises
    ------
    ValueError
        If genes are missing.
    """
    if adata.n_vars == len(gene_names) and (adata.var_names == gene_names).all():
        return adata
    missing = pd.Index(gene_names).difference(adata.var_names)
    if len(missing):
        raise ValueError(
            f"`adata` lacks {len(missing)} of the {len(gene_names)} genes of the model, such as "
            f"{', '.join(missing[:5])}. To fill them with zeros on purpose, run `prepare_query_anndata(adata, model)`."
        )
    return adata[:, gene_names].copy()


def check_new_cells(adata: AnnData, registry: dict, model_name: str) -> None:
    """Raise a ValueError unless a model with this registry can describe these cells; ``adata`` is only read."""
    setup = registry["setup_args"]
    check_anndata(adata.copy() if adata.is_view else adata, setup["layer"], for_trained=True)
    check_obs_keys(adata, {key: setup[key] for key in OBS_KEYS})
    check_categorical_covariates(adata, registry)
    if (batch_key := setup["batch_key"]) is None:
        return
    known = registry["field_registries"]["batch"]["state_registry"]["categorical_mapping"]
    unknown = sorted(set(adata.obs[batch_key]) - set(known), key=str)
    if unknown:
        raise ValueError(
            f"`adata.obs[{batch_key!r}]` has batches the model has not seen: {_listed(unknown)}; it knows "
            f"{_listed(known)}. Map them with `query = {model_name}.load_query_data(adata, model)`, then "
            "`query.train(...)` (0 epochs for no training)."
        )


def check_categorical_covariates(adata: AnnData, registry: dict) -> None:
    """Raise a ValueError if a categorical covariate has categories that are not in the registry."""
    state = registry["field_registries"].get(REGISTRY_KEYS.CAT_COVS_KEY, {}).get("state_registry", {})
    for column, known in state.get("mappings", {}).items():
        check_obs_keys(adata, {"categorical_covariate_keys": [column]})
        unknown = sorted(set(adata.obs[column]) - set(known), key=str)
        if unknown:
            raise ValueError(
                f"`categorical_covariate_keys`: column {column!r} of `adata.obs` has new categories "
                f"{_listed(unknown)}; the model knows {_listed(known)}. Only the batch can grow in a query: join "
                "the columns into one `batch_key` when training the reference."
            )


def _listed(values: Iterable) -> str:
    """Values with their quotes, so that 0 and "0" look different."""
    return ", ".join(repr(getattr(value, "item", lambda v=value: v)()) for value in values)


def gene_statistics(adata: AnnData, layer: str | None, target_total: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean and sd of log1p of counts scaled to ``target_total`` for each gene, and the median total count of a cell.

    Streams over blocks of cells; memory does not depend on their number (but for one total a cell).
    """
    totals = np.concatenate([np.asarray(block.sum(axis=1)).ravel() for block in row_blocks(adata, layer)])
    median_total = float(np.median(totals))
    sums, squares = np.zeros(adata.n_vars), np.zeros(adata.n_vars)
    start = 0
    for block in row_blocks(adata, layer):
        scale = target_total / totals[start : start + block.shape[0]]
        values = np.log1p(block.data * np.repeat(scale, np.diff(block.indptr)))
        sums += np.bincount(block.indices, weights=values, minlength=adata.n_vars)
        squares += np.bincount(block.indices, weights=values**2, minlength=adata.n_vars)
        start += block.shape[0]
    mean = sums / len(totals)
    sd = np.sqrt(np.maximum(squares / len(totals) - mean**2, 0))
    # a gene without variance carries nothing; an sd of 1 leaves its input at 0
    return mean, np.where(sd > 0, sd, 1.0), median_total


def proportion_statistics(adata: AnnData, layer: str | None) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean proportion of the largest value for each gene, one sd for all of them, and the largest value.

    Proportions are on one scale already; a sd for each gene would make the rarest ones the largest.
    """
    sums, squares, largest = np.zeros(adata.n_vars), 0.0, 0.0
    for block in row_blocks(adata, layer):
        sums += np.bincount(block.indices, weights=block.data, minlength=adata.n_vars)
        squares += float(np.square(block.data, dtype=np.float64).sum())
        largest = max(largest, float(block.data.max(initial=0)))
    mean = sums / adata.n_obs / largest
    variance = squares / largest**2 / adata.n_obs / adata.n_vars - np.square(mean).mean()
    return mean, np.full(adata.n_vars, np.sqrt(variance) if variance > 0 else 1.0), largest
