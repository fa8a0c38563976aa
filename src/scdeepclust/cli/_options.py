"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

from scdeepclust.model._systems import SYSTEMS

_KEYS = [system.key for system in SYSTEMS]


def _known(name: str) -> str:
    if name.lower() not in _KEYS:
        raise typer.BadParameter(f"there is no {name!r}; found {', '.join(_KEYS)}")
    return name.lower()


Model = Annotated[
    str,
    typer.Option(
        metavar="|".join(_KEYS),
        callback=_known,
        help="Clustering system. " + "; ".join(f"{system.key}: {system.idea}" for system in SYSTEMS) + ".",
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="The same seed gives the same labels.")]
MaxEpochs = Annotated[
    int | None, typer.Option(min=0, help="Length of the clustering phase.", show_default="by number of cells")
]
PretrainEpochs = Annotated[
    int | None, typer.Option(min=0, help="Length of what comes before it.", show_default="by number of cells")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
