"""What users give by mistake: data, values of arguments, calls that take them, and how a call ends."""

from __future__ import annotations

import inspect
import pickle
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

from scdeepclust.model import SCDeepCluster

# What an argument may be by mistake, by name, so that a failing example can be read.
JUNK: dict[str, Any] = {
    "None": None,
    "0": 0,
    "-1": -1,
    "1": 1,
    "2": 2,
    "0.5": 0.5,
    "-2.5": -2.5,
    "nan": float("nan"),
    "inf": float("inf"),
    "True": True,
    "''": "",
    "'0'": "0",
    "'nonsense'": "nonsense",
    "'batch'": "batch",
    "'Ünicode 猫'": "Ünicode 猫",
    "[]": [],
    "[0]": [0],
    "[1, 2, 3]": [1, 2, 3],
    "['0', 'x']": ["0", "x"],
    "[[1, 2]]": [[1, 2]],
    "[None]": [None],
    "{}": {},
    "{0: '0'}": {0: "0"},
    "{7: 'x'}": {7: "x"},
    "slice": slice(2, 5),
    "range": range(4),
    "mask": np.arange(120) % 2 == 0,
    "short mask": np.array([True, False]),
    "floats": np.array([0.0, 1.0]),
    "column": pd.Series([1, 2], index=["a", "b"]),
    "object": object(),
}

# Methods that are no getters: they train, save, or belong to scvi-tools and take no data.
LEFT_OUT = {
    "train", "recluster", "merge_clusters",
    "save", "load", "load_query_data", "load_registry", "setup_anndata", "setup_annbatch",
    "to_device", "convert_legacy_save", "register_manager", "deregister_manager", "view_anndata_setup",
    "view_registry", "view_setup_args", "view_setup_method_args", "update_setup_method_args", "data_registry",
    "get_from_registry", "get_anndata_manager", "get_state_registry", "get_setup_arg", "get_var_names",
    "transfer_fields", "prepare_query_anndata", "prepare_query_mudata", "get_importance_weights",
    "get_normalized_function_name", "from_scvi_model", "create_torch_dataset", "differential_abundance",
}  # fmt: skip

# Arguments that are not looked at here, with the reason.
UNCHECKED = {
    "dataloader",  # minibatches of the user's own
    "data_loader_kwargs", "importance_weighting_kwargs", "kwargs",  # passed on to other packages
    "ax", "show", "save", "cmap", "palette",
}  # fmt: skip

# Valid values of arguments that have no default, or whose default takes long.
VALID: dict[str, Any] = {
    "facet": 1, "cells": [0, 1], "donors": [2, 3], "start": "r0c0", "numbers": [2, 3], "n_samples": 1, "idx1": [0, 1],
    "silent": True, "n_cells": 5, "n_mc_samples": 2, "n_mc_samples_per_pass": 2, "indices": [0, 1, 2, 3],
}  # fmt: skip


def small(x=None, **obs):
    """4 cells x 3 genes."""
    x = np.arange(1, 13, dtype=np.float32).reshape(4, 3) if x is None else np.asarray(x, dtype=np.float32)
    names = [f"c{i}" for i in range(len(x))]
    return anndata.AnnData(x, obs=pd.DataFrame(obs, index=names), var=pd.DataFrame(index=list("abc")))


def fails(adata, match, **setup):
    """Setting up raises, and `adata` is as it was."""
    before = (list(adata.obs), list(adata.uns), list(adata.obsm), list(adata.layers))
    with pytest.raises(ValueError, match=match):
        SCDeepCluster.setup_anndata(adata, **setup)
    assert (list(adata.obs), list(adata.uns), list(adata.obsm), list(adata.layers)) == before


def methods(model: Any) -> list[str]:
    """Public methods of a model that this test calls."""
    names = [name for name in dir(type(model)) if not name.startswith("_") and name not in LEFT_OUT]
    return [name for name in names if inspect.isfunction(inspect.getattr_static(type(model), name))]


def arguments(call: Callable) -> list[str]:
    """Arguments of a call that this test sets."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(call).parameters.values()
    return [p.name for p in parameters if p.kind not in kinds and p.name not in UNCHECKED]


def valid_arguments(call: Callable) -> dict[str, Any]:
    """Arguments with which the call works, and soon."""
    return {name: VALID[name] for name in arguments(call) if name in VALID}


def state(adata: Any) -> bytes:
    """All of an AnnData object in memory that a call could change."""
    x = adata.X.toarray() if hasattr(adata.X, "toarray") else np.asarray(adata.X)
    slots = [getattr(adata, slot) for slot in ("obs", "var", "obsm", "varm", "obsp", "layers", "uns")]
    return x.tobytes() + pickle.dumps([{str(key): _plain(slot[key]) for key in slot} for slot in slots])


def _plain(value: Any) -> Any:
    """Values and type, without what pandas keeps beside them."""
    if isinstance(value, pd.Series):
        return (str(value.dtype), list(map(str, value)))
    if isinstance(value, pd.DataFrame):
        return {column: _plain(value[column]) for column in value.columns}
    return (value.data.tobytes(), value.indices.tobytes()) if hasattr(value, "indptr") else value


def outcome(call: Callable, given: dict[str, Any]) -> tuple[str, Any]:
    """``("result", value)``, ``("refused", message)`` for a documented error, or ``("fault", what is wrong)``."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            result = call(**given)
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        words = f"{type(error).__name__}: {str(error)[:200]}"
        if "/scdeepclust/" not in last.filename.replace("\\", "/"):
            return "fault", f"{words} (raised in {last.filename[-60:]}:{last.lineno})"
        if not any(name in str(error) for name in (*inspect.signature(call).parameters, "adata", "model")):
            return "fault", f"{words} names no argument"
        return "refused", str(error)
    except Exception as error:  # noqa: BLE001  # any other error is a fault
        return "fault", f"{type(error).__name__}: {str(error)[:200]}"
    return ("fault", "NaN in the result") if has_nan(result) else ("result", result)


def has_nan(result: Any) -> bool:
    """Whether there are NaN among numbers that should be none."""
    if isinstance(result, pd.DataFrame):
        return any(has_nan(result[column].to_numpy()) for column in result.columns)
    if isinstance(result, dict):
        return any(map(has_nan, result.values()))
    if isinstance(result, tuple | list):
        return any(map(has_nan, result))
    if hasattr(result, "toarray"):
        result = result.toarray()
    return isinstance(result, np.ndarray) and result.dtype.kind == "f" and bool(np.isnan(result).any())
