from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from . import _options as options
from ._app import announce, app, command_line, one_line_errors, prepare_libraries
from ._files import check_files, check_folder, check_suffix
from ._fit import WRITING, print_scores, print_sizes, save, set_up, train
from ._open import open_counts
from ._report import write_report
from ._signals import end_if_cut_short, signals_end_in_a_line
from ._writable import make_writable

if TYPE_CHECKING:
    from anndata import AnnData

Data = Annotated[
    list[Path],
    typer.Argument(metavar="IN...", help="File or folder with raw counts; several are joined.", show_default=False),
]
Out = Annotated[Path, typer.Option(help="AnnData file for the results: the input and all of write_back.")]


@app.command()
@signals_end_in_a_line()
def cluster(
    context: typer.Context,
    data: Data,
    out: Out,
    model: options.Model = "scdeepcluster",
    layer: options.Layer = None,
    raw: options.Raw = False,
    modality: options.Modality = None,
    batch_key: options.BatchKey = None,
    batch_from_files: options.BatchFromFiles = False,
    label_key: options.LabelKey = None,
    size_factor_key: options.SizeFactorKey = None,
    categorical_covariate: options.CategoricalCovariate = None,
    continuous_covariate: options.ContinuousCovariate = None,
    time_key: options.TimeKey = None,
    trajectory_key: options.TrajectoryKey = None,
    guide: options.Guide = None,
    n_clusters: options.NClusters = None,
    n_top_genes: options.NTopGenes = 2000,
    gene_likelihood: options.GeneLikelihood = None,
    seed: options.Seed = 0,
    max_epochs: options.MaxEpochs = None,
    pretrain_epochs: options.PretrainEpochs = None,
    accelerator: options.Accelerator = "auto",
    checkpoint_dir: options.CheckpointDir = None,
    save_model: options.SaveModel = None,
    confidence: options.Confidence = "repeat",
    labels_csv: options.LabelsCsv = None,
    plot: options.Plot = None,
    report: Annotated[
        Path | None, typer.Option(help="Also write one HTML page that says which clusters to trust.")
    ] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Cluster the cells of one or more files: h5ad, h5mu, zarr, loom, h5 of 10x or CellBender, folders with mtx."""
    keys = {
        "batch_key": batch_key,
        "size_factor_key": size_factor_key,
        "categorical_covariate_keys": categorical_covariate,
        "continuous_covariate_keys": continuous_covariate,
        "time_key": time_key,
        "trajectory_key": trajectory_key,
    }
    with one_line_errors(ValueError, OSError, ImportError):
        check_files([path for path in (out, labels_csv, plot, report) if path is not None], overwrite)
        check_suffix("--out", out, ".h5ad")
        check_suffix("--plot", plot, ".png", ".pdf", ".svg")
        check_suffix("--report", report, ".html", ".htm")
        check_folder("--save-model", save_model, overwrite)
        _check_together(model, keys, guide, data, batch_from_files)
        prepare_libraries(seed)
        adata, layer = open_counts(data, layer, raw, modality)
        keys["batch_key"] = "file" if batch_from_files else batch_key
        _check_names(adata, model, label_key, overwrite)
        make_writable(adata, model, out.parent)
        fitted = set_up(
            adata, model, layer, keys, n_clusters, n_top_genes, gene_likelihood=gene_likelihood, **_guides(guide)
        )
    done = train(
        fitted,
        adata,
        max_epochs,
        pretrain_epochs,
        confidence=cast(Any, confidence),  # the option has checked it
        accelerator=accelerator,
        checkpoint_dir=checkpoint_dir,
    )
    adata.uns[model]["command"] = command_line(context)
    print_sizes(adata, model, done.seconds)
    if label_key is not None:
        name = type(fitted).__name__
        print_scores(adata, {name: model}, {name: done.seconds}, label_key, title=f"Against {label_key}")
    with one_line_errors(*WRITING):
        if save_model is not None:
            fitted.save(str(save_model), overwrite=overwrite)
            announce(save_model)
        if report is not None and adata.obs[model].nunique() > 1:
            from scdeepclust.tl import cluster_tree

            cluster_tree(fitted).write(adata, model)
        save(adata, model, out, labels_csv, plot, label_key=label_key, seed=seed)
        if report is not None:
            name = f"{', '.join(path.stem for path in data)}: clusters of {type(fitted).__name__}"
            write_report(
                adata,
                report,
                key=model,
                batch_key="file" if batch_from_files else batch_key,
                label_key=label_key,
                title=name,
            )
    end_if_cut_short(fitted, done.code)


def _check_together(
    model: str, keys: dict[str, Any], guide: list[str] | None, data: list[Path], batch_from_files: bool
) -> None:
    """Raise a ValueError for options that do not go together."""
    owners = {"time_key": "somvae", "trajectory_key": "somvae", "guide": "mfcvae"}
    for name, owner in owners.items():
        if (keys | {"guide": guide})[name] and model != owner:
            raise ValueError(f"`{name}` is for --model {owner}; found --model {model}")
    if batch_from_files and (len(data) == 1 or keys["batch_key"] is not None):
        finding = "there is one file only" if len(data) == 1 else "`batch_key` is given too"
        raise ValueError(f"`batch_from_files`: {finding}; leave one of the two out, or give more files")


def _guides(guide: list[str] | None) -> dict[str, Any]:
    return {"guides": guide, "n_facets": len(guide) + 1} if guide else {}


def _check_names(adata: AnnData, key: str, label_key: str | None, overwrite: bool) -> None:
    if label_key is not None and (label_key not in adata.obs or adata.obs[label_key].isna().all()):
        raise ValueError(f"--label-key: obs has no labels in {label_key!r}; found {', '.join(adata.obs.columns)}")
    if key in adata.obs and not overwrite:
        raise ValueError(f"the data have a column {key!r} in obs already; use --overwrite to replace it in the output")
