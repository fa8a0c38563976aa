"""Arguments of functions, checked by what their signature says before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from inspect import signature
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from anndata import AnnData

    from scdeepclust.model._base import ClusteringModel

Function = TypeVar("Function", bound=Callable)


def checked(function: Function) -> Function:
    """The same function; a ValueError or TypeError names an argument that is not what its annotation says.

    Annotations that are looked at: data, models, names, lists of names and whole numbers.
    """
    parameters = signature(function)

    @wraps(function)
    def call(*args, **kwargs):
        bound = parameters.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            _check(name, value, str(parameters.parameters[name].annotation))
        return function(*bound.args, **bound.kwargs)

    return call  # type: ignore[return-value]


def with_data(model: ClusteringModel) -> AnnData:
    """The data of a trained model; a RuntimeError or ValueError says what it lacks."""
    model._check_if_trained(warn=False)
    if model.adata is None:
        raise ValueError("`model` was loaded without data; load it with `adata`.")
    return model.adata


def _check(name: str, value: Any, annotation: str) -> None:
    kinds = annotation.split(" | ")
    if value is None and "None" in kinds:
        return
    if "AnnData" in kinds:
        _check_data(name, value, may_be_table="pd.DataFrame" in kinds)
    elif name == "model" and "Sequence" not in annotation and not hasattr(value, "_check_if_trained"):
        raise TypeError(f"`{name}` must be a model of this package, found {type(value).__name__}.")
    elif "int" in kinds:
        least = 0 if name == "seed" else 1
        if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < least:
            raise ValueError(f"`{name}` must be a whole number of at least {least}; found {value!r}.")
    elif ("str" in kinds or "Sequence[str]" in kinds) and not ("Mapping" in annotation and isinstance(value, Mapping)):
        single, several = "str" in kinds and isinstance(value, str), "Sequence[str]" in kinds
        if not single and not (several and _are_names(value)):
            what = " or ".join(["a name"] * ("str" in kinds) + ["a list of names"] * several)
            raise ValueError(f"`{name}` must be {what}; found {value!r}.")


def _are_names(value: Any) -> bool:
    names = isinstance(value, Iterable) and not isinstance(value, str | dict)
    return names and all(isinstance(each, str) for each in value)


def _check_data(name: str, value: Any, *, may_be_table: bool) -> None:
    import pandas as pd
    from anndata import AnnData

    if not isinstance(value, (AnnData, pd.DataFrame) if may_be_table else AnnData):
        raise TypeError(f"`{name}` must be an AnnData object, found {type(value).__name__}.")
