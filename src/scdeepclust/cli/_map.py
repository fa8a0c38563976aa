from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import _options as options
from ._app import app, command_line, one_line_errors, prepare_libraries
from ._cluster import Out
from ._files import check_files, check_suffix
from ._fit import WRITING, print_sizes, save, train
from ._open import counts_at, open_counts
from ._signals import end_if_cut_short, signals_end_in_a_line
from ._writable import make_writable

if TYPE_CHECKING:
    from scdeepclust.model._base import ClusteringModel


@app.command("map")
@signals_end_in_a_line()
def map_cells(
    context: typer.Context,
    data: Annotated[list[Path], typer.Argument(metavar="QUERY...", help="New cells.", show_default=False)],
    model: Annotated[Path, typer.Option(help="Folder of a saved model, as of `scdeepclust cluster --save-model`.")],
    out: Out,
    layer: options.Layer = None,
    raw: options.Raw = False,
    modality: options.Modality = None,
    seed: options.Seed = 0,
    max_epochs: Annotated[
        int | None,
        typer.Option(min=0, help="Training of what is new (batches); 0: none.", show_default="by number of cells"),
    ] = None,
    accelerator: options.Accelerator = "auto",
    labels_csv: options.LabelsCsv = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Give new cells the clusters of a saved model. Columns of obs must have the names they had for the model."""
    with one_line_errors(ValueError, OSError, ImportError):
        check_files([path for path in (out, labels_csv) if path is not None], overwrite)
        check_suffix("--out", out, ".h5ad")
        if not (model / "model.pt").is_file():
            raise ValueError(f"`model`: there is no saved model in {model} (no model.pt)")
        prepare_libraries(seed)
        reference = _load(model)
        key, wanted = type(reference).__name__.lower(), reference.registry_["setup_args"]["layer"]
        adata, layer = open_counts(data, layer, raw, modality)
        if key in adata.obs and not overwrite:
            raise ValueError(f"the data have a column {key!r} in obs already; use --overwrite to replace it")
        make_writable(adata, key, out.parent)
    with counts_at(adata, layer, wanted):
        with one_line_errors(ValueError, OSError):
            query = _query(reference, adata)
        done = train(query, adata, max_epochs, accelerator=accelerator)
    adata.uns[key]["command"] = command_line(context)
    print_sizes(adata, key, done.seconds)
    with one_line_errors(*WRITING):
        save(adata, key, out, labels_csv, None, label_key=None, seed=seed)
    end_if_cut_short(query, done.code)


def _load(folder: Path) -> ClusteringModel:
    from scdeepclust import model as models

    name = models.SCDeepCluster.load_registry(str(folder))["model_name"]
    if name not in models.__all__:
        raise ValueError(f"`model`: {folder} holds a {name}, which is none of {', '.join(models.__all__)}")
    return getattr(models, name).load(str(folder), adata=False)


def _query(reference: ClusteringModel, adata) -> ClusteringModel:
    from scdeepclust.model._base._cells import match_genes

    # matched here, so that the note on other genes, which speaks of Python, is not needed
    return type(reference).load_query_data(match_genes(adata, reference.gene_names_), reference)
