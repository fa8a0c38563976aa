from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scdeepclust._keys import ResultKeys

from ._app import app, one_line_errors, prepare_libraries, results
from ._files import check_files, check_suffix
from ._fit import print_scores, read, save, set_up, train
from ._options import MaxEpochs, Model, Overwrite, PretrainEpochs, Seed


@app.command()
def cluster(
    data: Annotated[Path, typer.Argument(metavar="IN.h5ad", help="AnnData file with raw counts.", show_default=False)],
    out: Annotated[Path, typer.Option(help="AnnData file for the results: the input and all of write_back.")],
    model: Model = "scdeepcluster",
    layer: Annotated[str | None, typer.Option(help="Layer with the counts.", show_default="X")] = None,
    batch_key: Annotated[str | None, typer.Option(help="Column of obs with the technical batch.")] = None,
    label_key: Annotated[
        str | None, typer.Option(help="Column of obs with known labels: scored and drawn, never learnt from.")
    ] = None,
    n_clusters: Annotated[
        int | None, typer.Option(min=2, help="Number of clusters.", show_default="found from the data")
    ] = None,
    n_top_genes: Annotated[
        int, typer.Option(min=2, help="Learn from this many highly variable genes. The output keeps all genes.")
    ] = 2000,
    seed: Seed = 0,
    max_epochs: MaxEpochs = None,
    pretrain_epochs: PretrainEpochs = None,
    labels_csv: Annotated[Path | None, typer.Option(help="Also write cell, cluster and confidence here.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw clusters and confidence on a UMAP here (png, pdf).")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Cluster the cells of an AnnData file."""
    with one_line_errors(ValueError, OSError):
        check_files([path for path in (out, labels_csv, plot) if path is not None], overwrite)
        check_suffix("--out", out, ".h5ad")
        check_suffix("--plot", plot, ".png", ".pdf", ".svg")
        prepare_libraries(seed)
        adata = read(data)
        key = model
        if label_key is not None and (label_key not in adata.obs or adata.obs[label_key].isna().all()):
            raise ValueError(f"--label-key: obs has no labels in {label_key!r}; found {', '.join(adata.obs.columns)}")
        if key in adata.obs and not overwrite:
            raise ValueError(f"{data} has a column {key!r} in obs already; use --overwrite to replace it in the output")
        fitted = set_up(adata, model, layer, batch_key, n_clusters, n_top_genes)
    seconds = train(fitted, adata, max_epochs, pretrain_epochs)
    sizes = adata.obs[key].value_counts()
    results.print(
        f"{len(sizes)} clusters of {adata.n_obs:,} cells in {seconds:.0f} s; {sizes.max():,} to {sizes.min():,} cells, "
        f"median confidence {adata.obs[ResultKeys(key).confidence].median():.2f}"
    )
    if label_key is not None:
        name = type(fitted).__name__
        print_scores(adata, {name: key}, {name: seconds}, label_key, title=f"Against {label_key}")
    with one_line_errors(OSError):
        save(adata, key, out, labels_csv, plot, label_key=label_key, seed=seed)
