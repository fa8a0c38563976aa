"""Options that several commands have, and those that would make a command long."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scdeepclust.model._systems import SYSTEMS

from ._app import one_line_errors

_KEYS = [system.key for system in SYSTEMS]


def _known(name: str) -> str:
    with one_line_errors(ValueError):
        if name.lower() not in _KEYS:
            raise ValueError(f"--model: there is no {name!r}; found {', '.join(_KEYS)}")
    return name.lower()


def _known_confidence(name: str) -> str:
    with one_line_errors(ValueError):
        if name not in ("repeat", "posterior"):
            raise ValueError(f"--confidence must be repeat or posterior; found {name!r}")
    return name


Model = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        callback=_known,
        # one a line: rich help keeps paragraphs, not lines
        help="\n\n".join(["Clustering system.", *(f"- [bold]{system.key}[/]: {system.idea}" for system in SYSTEMS)]),
    ),
]

# --- data

Layer = Annotated[str | None, typer.Option(help="Layer with the counts.", show_default="found by looking")]
Raw = Annotated[bool, typer.Option("--raw", help="Take the counts from raw.")]
Modality = Annotated[str | None, typer.Option(help="Part of a MuData file.", show_default="rna, or the only one")]
BatchKey = Annotated[str | None, typer.Option(help="Column of obs with the technical batch.")]
BatchFromFiles = Annotated[bool, typer.Option("--batch-from-files", help="Each of several files is a batch.")]
LabelKey = Annotated[
    str | None, typer.Option(help="Column of obs with known labels: scored and drawn, never learnt from.")
]
SizeFactorKey = Annotated[
    str | None, typer.Option(help="Column of obs with size factors.", show_default="observed library size")
]
CategoricalCovariate = Annotated[
    list[str] | None, typer.Option(help="Further column of obs to condition on; repeat for more.")
]
ContinuousCovariate = Annotated[
    list[str] | None, typer.Option(help="Column of obs with numbers to condition on; repeat for more.")
]
TimeKey = Annotated[str | None, typer.Option(help="somvae: column of obs with the time of each cell.")]
TrajectoryKey = Annotated[str | None, typer.Option(help="somvae: column of obs with lineage, culture or donor.")]

# --- model and training

NClusters = Annotated[int | None, typer.Option(min=2, help="Number of clusters.", show_default="found from the data")]
NTopGenes = Annotated[
    int, typer.Option(min=2, help="Learn from this many highly variable genes. The output keeps all genes.")
]
GeneLikelihood = Annotated[
    str | None, typer.Option(help="Distribution of the counts, such as nb or zinb.", show_default="that of the model")
]
Guide = Annotated[
    list[str] | None, typer.Option(help="mfcvae: column of obs that a further facet follows; repeat for more.")
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="The same seed gives the same labels.")]
MaxEpochs = Annotated[
    int | None, typer.Option(min=0, help="Length of the clustering phase.", show_default="by number of cells")
]
PretrainEpochs = Annotated[
    int | None, typer.Option(min=0, help="Length of what comes before it.", show_default="by number of cells")
]
Accelerator = Annotated[str, typer.Option(help="cpu, gpu, mps or auto.")]
CheckpointDir = Annotated[Path | None, typer.Option(help="Save the state of the training here as it goes.")]

# --- output

Confidence = Annotated[
    str,
    typer.Option(
        metavar="KIND",
        callback=_known_confidence,
        help="repeat: how likely another fit puts a cell there again (as long again as the training); posterior: how "
        "sure this fit is.",
    ),
]

LabelsCsv = Annotated[Path | None, typer.Option(help="Also write cell, cluster and confidence here.")]
Plot = Annotated[Path | None, typer.Option(help="Also draw clusters and confidence on a UMAP here (png, pdf).")]
SaveModel = Annotated[Path | None, typer.Option(help="Also save the model to this folder, for `scdeepclust map`.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
