"""Checks of the input. Errors name the argument, what was found, and the remedy; nothing is changed before them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Number, Real
from typing import Any, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi import REGISTRY_KEYS

from scdeepclust.train import Initialiser, given_labels

from ._fields import numbers, used_categories
from ._matrix import check_matrix, count_matrix, no_counts, place, remedy, row_blocks

# What a network reads of a cell besides its counts.
OBS_KEYS = ("batch_key", "size_factor_key", "categorical_covariate_keys", "continuous_covariate_keys")

# A network takes continuous covariates as they are; beyond this size nothing else would count.
LARGEST_COVARIATE = 1e6

# Size factors of new cells may differ by this factor from what their total counts make expect.
SCALE_TOLERANCE = 30.0


def check_anndata(adata: AnnData, layer: str | None, *, for_trained: bool = False) -> np.ndarray:
    """Raise a ValueError unless ``adata`` holds counts of at least 2 cells, or 1 for a trained model.

    Returns
    -------
    Total count of each cell, (n,).

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData object.
    ValueError
        For a view, too few cells, no genes, duplicated gene names, a missing layer, a matrix that cannot be read,
        values that are no counts (negative, not finite, not whole), or cells without any count.
    """
    check_is_anndata(adata)
    if adata.is_view:
        copied = "adata.to_memory()" if adata.isbacked else "adata.copy()"
        raise ValueError(f"`adata` is a view of another AnnData. Run `adata = {copied}` first.")
    return check_cells(adata, layer, for_trained=for_trained)


def check_is_anndata(adata: Any) -> None:
    """Raise a TypeError unless this is an AnnData object."""
    if not isinstance(adata, AnnData):
        raise TypeError(f"`adata` must be an AnnData object, found {type(adata).__name__}.")


def check_cells(adata: AnnData, layer: str | None, *, for_trained: bool) -> np.ndarray:
    """What :func:`check_anndata` asks, of a view too."""
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
    check_matrix(count_matrix(adata, layer), layer)
    where, totals = place(layer), []
    for block in row_blocks(adata, layer):
        if problem := no_counts(block.data):
            raise ValueError(f"`{where}` {problem}. {remedy(adata, layer, block.data)}")
        n_entries = block.nnz
        block.sum_duplicates()  # of a copy: a block is read row by row
        if block.nnz < n_entries:
            raise ValueError(f"`{where}` stores some entries more than once. Run `{where}.sum_duplicates()`.")
        totals.append(np.asarray(block.sum(axis=1, dtype=np.float64)).ravel())
    _check_totals(adata, layer, np.concatenate(totals), for_trained)
    return np.concatenate(totals)


def _check_totals(adata: AnnData, layer: str | None, totals: np.ndarray, for_trained: bool) -> None:
    """Raise a ValueError if there are cells without any count."""
    empty = totals == 0
    if not empty.any():
        return
    where = place(layer)
    if for_trained:
        counts, end = where.replace("adata", "adata[:, model.gene_names_]"), "to_memory" if adata.isbacked else "copy"
        step = f"Leave them out: `adata[np.ravel({counts}.sum(axis=1)) > 0].{end}()`."
    elif adata.isbacked:
        step = "Run `adata = adata.to_memory()` and `scanpy.pp.filter_cells(adata, min_counts=1)`."
    else:
        step = "Run `scanpy.pp.filter_cells(adata, min_counts=1)`."
    raise ValueError(
        f"`{where}` has {int(empty.sum())} cells without any count in the {adata.n_vars} genes, such as "
        f"{adata.obs_names[int(empty.argmax())]!r}. {step}"
    )


def check_obs_keys(adata: AnnData, keys: Mapping[str, str | Sequence[str] | None]) -> None:
    """Raise a ValueError unless each key is a column of ``obs`` that can be what the argument says.

    Parameters
    ----------
    adata
        Data.
    keys
        ``{argument: column, columns or None}``.
    """
    for argument, columns in keys.items():
        for column in _columns(argument, columns):
            _check_column(adata, argument, column)
            if argument in ("continuous_covariate_keys", "size_factor_key"):
                _check_numbers(adata.obs[column], argument)
            else:
                check_categories(adata.obs[column], argument)
    labels, batch = keys.get("labels_key"), keys.get("batch_key")
    if labels is not None and labels == batch:
        raise ValueError(
            f"`batch_key` and `labels_key` are both {labels!r}: batches would be removed from the latent space "
            "together with the labels. Give the column of the technical batches as `batch_key`."
        )
    if batch is not None and batch in (keys.get("categorical_covariate_keys") or []):
        raise ValueError(
            f"`batch_key` and `categorical_covariate_keys` both have {batch!r}: once is enough. Give it as `batch_key` "
            "alone, so that new batches can be mapped."
        )


def _columns(argument: str, columns: Any) -> list[str]:
    """The columns an argument names, one or a list of them."""
    if columns is None:
        return []
    if not argument.endswith("covariate_keys"):
        if not isinstance(columns, str):
            raise ValueError(f"`{argument}` must be the name of one column of `adata.obs`; found {columns!r}.")
        return [columns]
    if isinstance(columns, str):
        raise ValueError(f"`{argument}` must be a list of columns; found {columns!r}. Give [{columns!r}].")
    if not isinstance(columns, Iterable) or not all(isinstance(column, str) for column in columns):
        raise ValueError(f"`{argument}` must be a list of columns; found {columns!r}.")
    if len(set(columns)) < len(list(columns)):
        raise ValueError(f"`{argument}` names a column twice: {list(columns)}.")
    return list(columns)


def _check_column(adata: AnnData, argument: str, column: str) -> None:
    if column not in adata.obs:
        raise ValueError(f"`{argument}`: there is no column {column!r} in `adata.obs`; found {list(adata.obs)}.")
    values = adata.obs[column]
    if not isinstance(values, pd.Series):
        raise ValueError(f"`{argument}`: `adata.obs` has {values.shape[1]} columns {column!r}. Rename all but one.")
    n_missing = int(values.isna().sum())
    if n_missing:
        raise ValueError(f"`{argument}`: column {column!r} of `adata.obs` has {n_missing} missing values.")


def _check_numbers(column: pd.Series, argument: str) -> None:
    values, name = numbers(column), column.name
    if argument == "size_factor_key":
        if not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(f"`{argument}`: column {name!r} of `adata.obs` must hold positive, finite numbers.")
    elif not np.isfinite(values).all():
        raise ValueError(
            f"`{argument}`: column {name!r} of `adata.obs` must hold finite numbers. Give categories as "
            "`categorical_covariate_keys`."
        )
    elif (largest := np.abs(values).max(initial=0)) > LARGEST_COVARIATE:
        raise ValueError(
            f"`{argument}`: column {name!r} of `adata.obs` has values as large as {largest:g}, which would drown the "
            f"counts. Standardise it: `adata.obs[{name!r}] = scipy.stats.zscore(adata.obs[{name!r}])`."
        )


def check_categories(column: pd.Series, argument: str) -> np.ndarray:
    """The categories in use; a ValueError if they are of several types, which have no order and no common text."""
    try:
        used = used_categories(column)
    except TypeError as error:
        raise ValueError(
            f"`{argument}`: column {column.name!r} of `adata.obs` holds values that are no categories: {error}."
        ) from None
    if len(kinds := {_kind(value) for value in used}) > 1:
        raise ValueError(
            f"`{argument}`: column {column.name!r} of `adata.obs` mixes {' and '.join(sorted(kinds))}, such as "
            f"{_listed(used[:5])}. Run `adata.obs[{column.name!r}] = adata.obs[{column.name!r}].astype(str)`."
        )
    return used


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool | np.bool_):
        return "truth values"
    return "numbers" if isinstance(value, Number) else type(value).__name__


def check_n_clusters(n_clusters: int | None, n_obs: int, argument: str = "n_clusters") -> None:
    """Raise a ValueError unless this is None or between 2 and the number of cells."""
    if n_clusters is None:
        return
    if not isinstance(n_clusters, Integral) or not 2 <= n_clusters <= n_obs:
        raise ValueError(
            f"`{argument}` must be a whole number between 2 and the number of cells ({n_obs}), or None to find it "
            f"from the data (which may find one); found {n_clusters!r}."
        )


def check_alpha(alpha: float) -> None:
    """Raise a ValueError unless this is a number above 0 and below 1."""
    if not isinstance(alpha, Real) or isinstance(alpha, bool) or not 0 < alpha < 1:
        raise ValueError(f"`alpha` must be above 0 and below 1; found {alpha!r}.")


def check_held_out(argument: str, labels: pd.Series, train_indices: np.ndarray) -> None:
    """Raise a ValueError if there is a label that no training cell has."""
    lost = set(labels.dropna().unique()) - set(labels.iloc[train_indices].unique())
    if lost:
        raise ValueError(
            f"`{argument}`: no training cell has {_listed(sorted(lost, key=str)[:5])}, only cells that are held out. "
            "Train on more cells (`train_size`), or join these labels with others."
        )


def check_choice(argument: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a ValueError unless ``value`` is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"`{argument}` must be one of {', '.join(map(repr, choices))}; found {value!r}.")


def check_init(init: Initialiser | Sequence, n_obs: int, n_clusters: int | None) -> None:
    """Raise a ValueError unless ``init`` is a known method or one label per cell."""
    if isinstance(init, str):
        check_choice("init", init, get_args(Initialiser))
    else:
        given_labels(init, n_obs, n_clusters)


def check_new_cells(adata: AnnData, registry: dict, model_name: str) -> np.ndarray:
    """Raise a ValueError unless a model with this registry can describe these cells; ``adata`` is only read.

    Returns
    -------
    Total count of each cell, (n,).
    """
    check_new_obs(adata, registry, model_name)
    return check_cells(adata, registry["setup_args"].get("layer"), for_trained=True)


def check_new_obs(adata: AnnData, registry: dict, model_name: str, *, may_grow: bool = False) -> None:
    """Raise a ValueError unless batch and covariates are known; ``may_grow`` lets new cells bring batches."""
    setup = registry["setup_args"]
    check_obs_keys(adata, {key: setup.get(key) for key in OBS_KEYS})
    check_categorical_covariates(adata, registry)
    if (batch_key := setup.get("batch_key")) is None:
        return
    known = registry["field_registries"]["batch"]["state_registry"]["categorical_mapping"]
    used = check_categories(adata.obs[batch_key], "batch_key")
    unknown = [value for value in used if value not in set(known)]
    other_type = unknown and (_kind(known[0]) == "text") != (_kind(unknown[0]) == "text")
    if not unknown or (may_grow and not other_type):
        return
    raise ValueError(
        f"`adata.obs[{batch_key!r}]` has batches the model has not seen: {_listed(unknown)}; it knows "
        f"{_listed(known)}. "
        + (
            _other_type(batch_key, known)
            if other_type
            else f"Map them with `query = {model_name}.load_query_data(adata, model)`, then `query.train(...)` (0 "
            "epochs for no training)."
        )
    )


def _other_type(column: str, known: Sequence) -> str:
    """Remedy for a column whose values are text where the known ones are not, or the other way round."""
    kind = _kind(known[0])
    convert = f".map({{str(k): k for k in {list(map(plain, known))}}})" if kind != "text" else ".astype(str)"
    return f"The known ones are {kind}: run `adata.obs[{column!r}] = adata.obs[{column!r}]{convert}`."


def check_categorical_covariates(adata: AnnData, registry: dict) -> None:
    """Raise a ValueError if a categorical covariate has categories that are not in the registry."""
    state = registry["field_registries"].get(REGISTRY_KEYS.CAT_COVS_KEY, {}).get("state_registry", {})
    for column, known in state.get("mappings", {}).items():
        check_obs_keys(adata, {"categorical_covariate_keys": [column]})
        unknown = [value for value in used_categories(adata.obs[column]) if value not in set(known)]
        if unknown:
            other_type = (_kind(known[0]) == "text") != (_kind(unknown[0]) == "text")
            raise ValueError(
                f"`categorical_covariate_keys`: column {column!r} of `adata.obs` has new categories "
                f"{_listed(unknown)}; the model knows {_listed(known)}. "
                + (
                    _other_type(column, known)
                    if other_type
                    else "Only the batch can grow in a query: join the columns into one `batch_key` when training the "
                    "reference."
                )
            )


def check_size_factor_scale(factors: np.ndarray, totals: np.ndarray, known_factor: float, known_total: float) -> None:
    """Raise a ValueError if size factors of new cells are on another scale than those of the training data.

    Parameters
    ----------
    factors, totals
        Size factor and total count of each new cell (n,).
    known_factor, known_total
        Medians in the training data.
    """
    ratio = np.median(factors) / known_factor / (np.median(totals) / known_total)
    if not 1 / SCALE_TOLERANCE < ratio < SCALE_TOLERANCE:
        raise ValueError(
            f"`size_factor_key`: the size factors of these cells are on another scale than those of the training data: "
            f"their median is {np.median(factors):g} against {known_factor:g}, while the medians of the total counts "
            f"are {np.median(totals):g} and {known_total:g}. Compute them in the same way for both."
        )


def plain(value: Any) -> Any:
    """A value of NumPy as Python writes it."""
    return getattr(value, "item", lambda: value)()


def _listed(values: Iterable) -> str:
    """Values with their quotes, so that 0 and "0" look different."""
    return ", ".join(repr(plain(value)) for value in values)
