"""Getters that scvi-tools writes, behind the checks of ours: they would fail late, in words of other packages."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from inspect import signature
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.model.base import BaseModelClass, RNASeqMixin

from ._cells import cell_rows, check_batch_size, check_counts_of, check_flags, is_positive
from ._checks import check_choice
from ._fields import unchanged

Getter = TypeVar("Getter", bound=Callable)

# Arguments that count something, of any of these getters.
NUMBERS = ("n_samples", "n_samples_overall", "n_mc_samples", "n_mc_samples_per_pass", "rna_size_factor")


def checked(method: Getter) -> Getter:
    """The same getter, with its arguments looked at before anything is computed."""
    parameters = signature(method)

    @wraps(method)
    def getter(self: Any, *args, **kwargs):
        call = parameters.bind(self, *args, **kwargs)
        given = call.arguments
        self._check_if_trained(warn=False)
        if given.get("dataloader") is not None:
            return method(*call.args, **call.kwargs)
        cells = given["adata"] = self._validate_anndata(given.get("adata"))
        if "indices" in parameters.parameters:
            given["indices"] = cell_rows(given.get("indices"), cells.obs_names)
        for name in ("idx1", "idx2"):
            if given.get(name) is not None:
                given[name] = _chosen(given[name], cells, name)
        _check_arguments(self, given, cells)
        if "correlation_type" in parameters.parameters:
            _check_draws(given)
        flags = [name for name, parameter in parameters.parameters.items() if isinstance(parameter.default, bool)]
        check_flags(**{name: given[name] for name in flags if name in given})
        if given.get("n_samples_overall") is not None:
            given["return_numpy"] = True  # draws belong to no cell
        with unchanged(cells):
            return method(*call.args, **call.kwargs)

    return getter  # type: ignore[return-value]


class InheritedGetters(RNASeqMixin):
    """What scvi-tools computes from the decoder of any of our models."""

    get_normalized_expression = checked(RNASeqMixin.get_normalized_expression)
    posterior_predictive_sample = checked(RNASeqMixin.posterior_predictive_sample)
    get_feature_correlation_matrix = checked(RNASeqMixin.get_feature_correlation_matrix)
    get_likelihood_parameters = checked(RNASeqMixin.get_likelihood_parameters)
    differential_expression = checked(RNASeqMixin.differential_expression)


def _check_arguments(model: BaseModelClass, given: dict[str, Any], cells: AnnData) -> None:
    """Raise a ValueError for an argument that the getter could not use."""
    check_batch_size(given.get("batch_size"))
    if isinstance(given.get("weights"), str) and given["weights"] == "importance":
        raise ValueError(
            "`weights='importance'` assumes a standard normal prior of the latent space, which clusters are not. Use "
            "`weights='uniform'`."
        )
    if given.get("weights") is not None:
        check_choice("weights", given["weights"], ("uniform",))
    for name, choices in (("mode", ("vanilla", "change")), ("correlation_type", ("spearman", "pearson"))):
        if name in given:
            check_choice(name, given[name], choices)
    for name in NUMBERS:
        value = given.get(name, 1)
        if value is not None or name != "n_samples_overall":
            check_counts_of(**{name: value})
    size = given.get("library_size", 1)
    if not (isinstance(size, str) and size == "latent") and not is_positive(size):
        raise ValueError(f"`library_size` must be a positive number or 'latent'; found {size!r}.")
    if given.get("dof") is not None and not is_positive(given["dof"]):
        raise ValueError(f"`dof` must be a positive number, or None for normal components; found {given['dof']!r}.")
    for name in ("transform_batch", "batchid1", "batchid2"):
        _check_batches(model, given.get(name), name)
    _check_genes(given.get("gene_list"), cells)
    _check_groups(given, cells)


def _check_draws(given: dict[str, Any]) -> None:
    if len(given["indices"]) * given.get("n_samples", 10) < 2:
        raise ValueError("`indices` chooses one cell, and `n_samples` is 1: correlations need at least two values.")


def _check_batches(model: BaseModelClass, names: Any, argument: str) -> None:
    known = model.registry_["field_registries"][REGISTRY_KEYS.BATCH_KEY]["state_registry"]["categorical_mapping"]
    several = isinstance(names, Iterable) and not isinstance(names, str)
    if several and not len(names := list(names)):
        raise ValueError(f"`{argument}` is empty. Leave it out for the batches of the cells.")
    there = [*known.tolist(), *([None] if argument == "transform_batch" else [])]  # None: the batch of the cell
    unknown = [name for name in (names if several else [] if names is None else [names]) if name not in there]
    if unknown:
        raise ValueError(f"`{argument}`: there is no batch {unknown[0]!r}; found {', '.join(map(repr, known[:10]))}.")


def _check_genes(genes: Any, cells: AnnData) -> None:
    if genes is None:
        return
    if isinstance(genes, str) or not isinstance(genes, Iterable):
        raise ValueError(f"`gene_list` must be a list of genes; found {genes!r}.")
    if not len(genes := list(genes)):
        raise ValueError("`gene_list` is empty. Leave it out for all genes.")
    missing = [gene for gene in genes if not isinstance(gene, str) or gene not in cells.var_names]
    if missing:
        raise ValueError(f"`gene_list`: {len(missing)} genes are not in the model, such as {missing[0]!r}.")


def _check_groups(given: dict[str, Any], cells: AnnData) -> None:
    """What differential expression compares."""
    if "mode" not in given and "groupby" not in given and "idx1" not in given and "group1" not in given:
        return
    column = given.get("groupby")
    if given.get("idx1") is not None:
        if given.get("idx2") is not None and np.isin(given["idx1"], given["idx2"]).all():
            raise ValueError("`idx2` has all cells of `idx1`, so that there is nothing to compare.")
        return
    if not isinstance(column, str) or column not in cells.obs:
        raise ValueError(f"`groupby` must be a column of `adata.obs`, or give `idx1`; found {column!r}.")
    there = set(pd.unique(cells.obs[column].dropna()))
    for name in ("group1", "group2"):
        groups = given.get(name)
        for group in [groups] if isinstance(groups, str) or not isinstance(groups, Iterable) else groups:
            if group is not None and group not in there:
                raise ValueError(f"`{name}`: there is no group {group!r} in `adata.obs[{column!r}]`.")
    if len(there) < 2:
        raise ValueError(f"`groupby`: column {column!r} of `adata.obs` has one group; two are needed.")


def _chosen(cells_of: Any, cells: AnnData, argument: str) -> np.ndarray:
    """Cells of a group: chosen as everywhere, or by a query of ``obs`` as in scvi-tools."""
    if not isinstance(cells_of, str):
        return cell_rows(cells_of, cells.obs_names, argument)
    try:
        names = cells.obs.query(cells_of).index
    except Exception as error:  # noqa: BLE001  # of any parser
        raise ValueError(f"`{argument}`: the query {cells_of!r} of `adata.obs` failed: {error}.") from None
    return cell_rows(np.flatnonzero(cells.obs_names.isin(names)), cells.obs_names, argument)
