"""Models: one clustering system each, all with the same API.

A room (``gmvae``, ``idc``, ...) is imported when its model is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._systems import SYSTEMS

if TYPE_CHECKING:
    from .gmvae import GMVAE
    from .idc import IDC
    from .mfcvae import MFCVAE
    from .scdeepcluster import SCDeepCluster
    from .somvae import SOMVAE

__all__ = ["GMVAE", "IDC", "MFCVAE", "SCDeepCluster", "SOMVAE"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        room = next(system.key for system in SYSTEMS if system.name == name)
        return getattr(importlib.import_module(f"{__name__}.{room}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
