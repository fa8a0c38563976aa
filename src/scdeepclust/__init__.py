"""Deep clustering of single-cell counts with the scvi-tools API.

The submodules are imported on first use (`scdeepclust.model.SCDeepCluster` just works):
a command-line ``--help`` then costs nothing, and whoever only draws does not pay for training.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scdeepclust import datasets, model, pl, tl

__all__ = ["__version__", "datasets", "model", "pl", "tl"]

_SUBMODULES = frozenset(("datasets", "model", "pl", "tl"))

try:
    __version__ = version("scdeepclust")
except PackageNotFoundError:  # the source tree on sys.path, nothing installed
    __version__ = "0.0.0"


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"scdeepclust.{name}")
    raise AttributeError(f"module 'scdeepclust' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
