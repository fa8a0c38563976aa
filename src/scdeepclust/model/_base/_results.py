"""What is written into AnnData, and what of it is taken away when a key is written again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from anndata import AnnData
from scvi.model.base import BaseModelClass

from scdeepclust._compat import package_versions
from scdeepclust.model._systems import written_by

Result = tuple[str, str, Any]  # slot, name, value

# Clusters are merged into others if this share of the cells of each are in the same one.
MERGED = 0.9


def check_key(key: Any, model: BaseModelClass) -> str:
    """The key of results; its default is the name of the model.

    Raises
    ------
    ValueError
        If it is no name, or that of a column the model reads.
    """
    if key is None:
        return type(model).__name__.lower()
    if not isinstance(key, str) or not key or "/" in key:
        raise ValueError(f"`key_added` must be a name without '/'; found {key!r}.")
    for argument, columns in model.registry_["setup_args"].items():
        if (
            argument.endswith(("_key", "_keys"))
            and columns
            and key in ([columns] if isinstance(columns, str) else columns)
        ):
            raise ValueError(f"`key_added`: {key!r} is the `{argument}` of the model, which would be overwritten.")
    return key


def write_results(adata: AnnData, key: str, results: list[Result]) -> None:
    """Write results, and remove what an earlier call wrote under the same key and is not written any more."""
    new = {(slot, name): value for slot, name, value in results}
    for slot, name in list(_owned(adata, key)):
        if slot == "obs":
            _keep_colors(adata, name, new.get((slot, name)))
        if (slot, name) not in new:
            del getattr(adata, slot)[name]
    for (slot, name), value in new.items():
        getattr(adata, slot)[name] = value


def _owned(adata: AnnData, key: str) -> Iterator[tuple[str, str]]:
    """Slot and name of what is there of an earlier call with this key, but for what another key owns."""
    patterns = _patterns(adata, key)
    others = [pattern for other in adata.uns if other != key for pattern in _patterns(adata, other)]
    for slot, pattern in patterns:
        for name in getattr(adata, slot).keys():
            if name is None:  # a new anndata counts X among the layers
                continue
            if pattern.fullmatch(name) and not any(s == slot and p.fullmatch(name) for s, p in others):
                yield slot, name


def _patterns(adata: AnnData, key: str) -> list:
    entry = adata.uns.get(key)
    return written_by(entry.get("model"), key) if isinstance(entry, Mapping) else []


def _keep_colors(adata: AnnData, name: str, new: Any) -> None:
    """Colours that plots chose for the categories of a column: those of categories that are still there.

    Where clusters were merged, a cluster has the colour of the largest of those that it is made of.
    """
    old, colors = adata.obs[name], adata.uns.get(f"{name}_colors")
    if colors is None or not isinstance(old.dtype, pd.CategoricalDtype):
        return
    before = list(old.cat.categories)
    after = list(new.categories) if isinstance(new, pd.Categorical) else None
    if after == before:
        return
    if after is not None and len(colors) >= len(before) and len(after) < len(before):
        shared = pd.crosstab(old.cat.codes.to_numpy(), new.codes)
        # nearly all cells of each cluster are together in one
        if (shared.max(axis=1) >= MERGED * shared.sum(axis=1)).all() and len(shared.columns) == len(after):
            adata.uns[f"{name}_colors"] = [colors[row] for row in shared.idxmax()]
            return
    if after is None or len(colors) < len(before) or not set(after) <= set(before):
        del adata.uns[f"{name}_colors"]
    else:
        adata.uns[f"{name}_colors"] = [colors[before.index(category)] for category in after]


def fit_parameters(model: BaseModelClass) -> dict[str, Any]:
    """Parameters and scalars of the fit of any of our models, in types that h5ad can hold."""
    setup = {name: value for name, value in model.registry_["setup_args"].items() if value is not None}
    init = model.init_params_["non_kwargs"]
    if not isinstance(init.get("init"), str):
        init = init | {"init": "given labels"}
    return {
        "model": type(model).__name__,
        "setup": setup,
        "n_cells": model.summary_stats.n_cells,
        "n_genes": model.summary_stats.n_vars,
        "params": {name: _storable(value) for name, value in init.items() if value is not None},
        "phases": {name: sum(n for other, n in model.phases_ if other == name) for name, _ in model.phases_},
        "seconds": round(model.seconds_, 1),
        "seed": -1 if model._seed is None else model._seed,
        "versions": package_versions(),
        "final": {name: float(frame.iloc[-1, 0]) for name, frame in (model.history_ or {}).items() if len(frame)},
    }


def _storable(value: Any) -> Any:
    """A value as h5ad can hold it."""
    return value if isinstance(value, str | int | float | bool) else str(value)
