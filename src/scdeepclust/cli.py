"""The command line: counts in, clusters out, without a line of Python.

Only typer and rich are imported at the top, so that ``--help`` answers at once.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from scdeepclust._files import check_files, check_folder, check_suffix, temporary_names
from scdeepclust._keys import ResultKeys

if TYPE_CHECKING:
    import numpy as np
    from anndata import AnnData

    from scdeepclust.model._base_model import ClusteringModel

app = typer.Typer(
    name="scdeepclust",
    help="Deep clustering of single-cell counts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
# Results go to stdout, all that accompanies them to stderr. No highlighting: numbers in colours carry no meaning.
results = Console(highlight=False)
messages = Console(stderr=True, highlight=False, soft_wrap=True)

_PCS, _KMEANS_RESTARTS = 30, 100
_SCORES = ("ARI", "NMI", "accuracy", "homogeneity", "completeness")

ModelName = Annotated[str, typer.Option("--model", help="Clustering system, by its name in lower case.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="The same seed gives the same labels.")]
MaxEpochs = Annotated[
    int | None, typer.Option(min=0, help="Length of the clustering phase.", show_default="by number of cells")
]
PretrainEpochs = Annotated[
    int | None, typer.Option(min=0, help="Length of what comes before it.", show_default="by number of cells")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results; made if needed.")] = Path("scdeepclust_demo"),
    model: ModelName = "scdeepcluster",
    seed: Seed = 0,
    max_epochs: MaxEpochs = None,
    pretrain_epochs: PretrainEpochs = None,
    overwrite: Overwrite = False,
) -> None:
    """Cluster 700 real blood cells (no download) and compare with PCA + k-means.

    Writes clustered.h5ad, labels.csv and umap.png into the folder.
    """
    files = [out / "clustered.h5ad", out / "labels.csv", out / "umap.png"]
    with _one_line_errors(ValueError, OSError):
        check_files(files, overwrite, needs_folder=False)
        check_folder(out)
    messages.print("Loading the libraries and 700 blood cells (PBMC, 10x Genomics) ...")
    _prepare_libraries(seed)
    from scdeepclust import datasets

    adata = datasets.pbmc68k_reduced()
    n_types = adata.obs["cell_type"].nunique()
    with _one_line_errors(ValueError):
        fitted = _set_up(adata, model, layer="counts", n_clusters=n_types)
    key, name = model.lower(), type(fitted).__name__
    seconds = {
        "PCA + k-means": _pca_kmeans(adata, n_types, seed),
        name: _train(fitted, adata, max_epochs, pretrain_epochs),
    }
    columns = {"PCA + k-means": "pca_kmeans", name: key}
    _print_scores(adata, columns, seconds, "cell_type", title=f"{n_types} clusters against {n_types} known types")
    del adata.obs["pca_kmeans"]
    with _one_line_errors(OSError):
        out.mkdir(parents=True, exist_ok=True)
        _save(adata, key, *files, label_key="cell_type", seed=seed)


@app.command()
def cluster(
    data: Annotated[Path, typer.Argument(metavar="IN.h5ad", help="AnnData file with raw counts.", show_default=False)],
    out: Annotated[Path, typer.Option(help="AnnData file for the results: the input and all of write_back.")],
    model: ModelName = "scdeepcluster",
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
    with _one_line_errors(ValueError, OSError):
        check_files([path for path in (out, labels_csv, plot) if path is not None], overwrite)
        check_suffix("--out", out, ".h5ad")
        check_suffix("--plot", plot, ".png", ".pdf", ".svg")
        _prepare_libraries(seed)
        adata = _read(data)
        key = model.lower()
        if label_key is not None and (label_key not in adata.obs or adata.obs[label_key].isna().all()):
            raise ValueError(f"--label-key: obs has no labels in {label_key!r}; found {', '.join(adata.obs.columns)}")
        if key in adata.obs and not overwrite:
            raise ValueError(f"{data} has a column {key!r} in obs already; use --overwrite to replace it in the output")
        fitted = _set_up(adata, model, layer, batch_key, n_clusters, n_top_genes)
    seconds = _train(fitted, adata, max_epochs, pretrain_epochs)
    sizes = adata.obs[key].value_counts()
    results.print(
        f"{len(sizes)} clusters of {adata.n_obs:,} cells in {seconds:.0f} s; {sizes.max():,} to {sizes.min():,} cells, "
        f"median confidence {adata.obs[ResultKeys(key).confidence].median():.2f}"
    )
    if label_key is not None:
        name = type(fitted).__name__
        _print_scores(adata, {name: key}, {name: seconds}, label_key, title=f"Against {label_key}")
    with _one_line_errors(OSError):
        _save(adata, key, out, labels_csv, plot, label_key=label_key, seed=seed)


@app.command()
def benchmark(
    data: Annotated[Path, typer.Argument(metavar="IN.h5ad", help="AnnData file with embeddings.", show_default=False)],
    batch_key: Annotated[str, typer.Option(help="Column of obs with the technical batch.")],
    label_key: Annotated[str, typer.Option(help="Column of obs with known labels.")],
    embedding: Annotated[
        list[str] | None,
        typer.Option(help="Name in obsm; repeat for more.", show_default="all X_... of more than 3 dimensions"),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write the table here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the table here (png, pdf).")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare embeddings, and the clusters that belong to them, by the scores of scib-metrics."""
    with _one_line_errors(ValueError, OSError):
        check_files([path for path in (csv, plot) if path is not None], overwrite)
        if plot is not None:
            check_suffix("--plot", plot, ".png", ".pdf", ".svg")
        messages.print("Loading the libraries ...")
        _prepare_libraries(seed=0)
        from scdeepclust.tl import benchmark_integration

        adata = _read(data)
        names = embedding or [name for name in adata.obsm if name.startswith("X_") and adata.obsm[name].shape[1] > 3]
        if not names:
            raise ValueError(f"{data} has no embeddings; obsm holds {', '.join(adata.obsm) or 'nothing'}")
        own = {name: key if (key := name.removeprefix("X_")) in adata.obs else None for name in names}
        scores = benchmark_integration(adata, own, batch_key=batch_key, label_key=label_key)
    shown = [name for name in ("Bio conservation", "Batch correction", "Total", "Own ARI", "Own NMI") if name in scores]
    table = Table("embedding", box=SIMPLE_HEAD, pad_edge=False)
    for name in shown:
        table.add_column(name, justify="right")
    for name, row in scores[shown].iterrows():
        table.add_row(str(name), *[f"{value:.3f}" if value == value else "-" for value in row])
    results.print(table)
    with _one_line_errors(OSError), temporary_names(_announce) as temporary:
        if csv is not None:
            scores.to_csv(temporary(csv), float_format="%.4f")
        if plot is not None:
            import matplotlib

            matplotlib.use("Agg")
            import matplotlib.pyplot as plt

            from scdeepclust.pl import benchmark_table

            benchmark_table(scores)
            plt.savefig(temporary(plot), dpi=150)


# --- data in


def _read(path: Path) -> AnnData:
    import anndata

    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        return anndata.read_h5ad(path)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not a readable h5ad file ({reason})") from error


def _set_up(
    adata: AnnData,
    model: str,
    layer: str | None = None,
    batch_key: str | None = None,
    n_clusters: int | None = None,
    n_top_genes: int | None = None,
) -> ClusteringModel:
    """An untrained model of the variable genes, after all checks of the input."""
    from scdeepclust import model as models
    from scdeepclust.model._checks import check_anndata, check_obs_keys

    classes = {name.lower(): getattr(models, name) for name in models.__all__}
    if model.lower() not in classes:
        raise ValueError(f"--model: there is no {model!r}; found {', '.join(classes)}")
    check_anndata(adata, layer)
    check_obs_keys(adata, {"batch_key": batch_key})
    if n_top_genes is not None and n_top_genes < adata.n_vars:
        train_on = adata[:, _variable_genes(adata, layer, batch_key, n_top_genes)].copy()
    else:
        train_on = adata
    classes[model.lower()].setup_anndata(train_on, layer=layer, batch_key=batch_key)
    return classes[model.lower()](train_on, n_clusters=n_clusters)


def _variable_genes(adata: AnnData, layer: str | None, batch_key: str | None, n_top_genes: int) -> np.ndarray:
    import scanpy as sc

    from scdeepclust.model._checks import count_matrix
    from scdeepclust.train import one_thread

    counts = count_matrix(adata, layer)
    with one_thread():
        logged = _log_normalized(counts)
        if batch_key is not None:
            logged.obs[batch_key] = adata.obs[batch_key].to_numpy()
        chosen = sc.pp.highly_variable_genes(logged, n_top_genes=n_top_genes, batch_key=batch_key, inplace=False)
    genes = chosen["highly_variable"].to_numpy()
    if n_empty := int((counts[:, genes].sum(axis=1) == 0).sum()):
        raise ValueError(
            f"--n-top-genes: {n_empty} cells have no counts in the {n_top_genes} most variable genes; "
            "use more genes, or remove the cells with the fewest counts"
        )
    return genes


def _log_normalized(counts) -> AnnData:
    """log1p of counts per 10,000. Within `one_thread`: compiled code of scanpy resets the threads that torch uses."""
    import scanpy as sc
    from anndata import AnnData

    logged = AnnData(counts.astype("float32"))
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    return logged


# --- computing


def _prepare_libraries(seed: int) -> None:
    """Set the seed, and keep what libraries say about themselves off the terminal; our own warnings stay."""
    warnings.simplefilter("ignore")
    import scvi

    for name in ("lightning.pytorch", "lightning.fabric", "scvi"):
        logging.getLogger(name).setLevel(logging.ERROR)
    scvi.settings.seed = seed
    warnings.simplefilter("ignore")  # importing has put filters before ours
    warnings.filterwarnings("always", module=r"scdeepclust\.")
    warnings.showwarning = lambda text, *_, **__: messages.print(f"[yellow]Warning:[/] {escape(str(text))}")


def _train(fitted: ClusteringModel, adata: AnnData, max_epochs: int | None, pretrain_epochs: int | None) -> float:
    """Train, and write the results into `adata`; returns the seconds it took."""
    from scdeepclust.train import NonFiniteLossError

    data = fitted.adata
    messages.print(f"Training {type(fitted).__name__} on {data.n_obs:,} cells x {data.n_vars:,} genes ...")
    started = time.perf_counter()
    with _one_line_errors(NonFiniteLossError, exit_code=1):
        fitted.train(max_epochs, pretrain_epochs, enable_progress_bar=results.is_terminal)
    fitted.write_back(adata)
    for slot in (adata.obs, adata.obsm, adata.uns):  # what scvi-tools notes in data it works on
        for name in [name for name in slot if name.startswith("_scvi")]:
            del slot[name]
    return time.perf_counter() - started


def _pca_kmeans(adata: AnnData, n_clusters: int, seed: int) -> float:
    """The usual baseline, into obs["pca_kmeans"]; returns the seconds it took."""
    import pandas as pd
    import scanpy as sc
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    from scdeepclust.train import one_thread

    started = time.perf_counter()  # after the imports, as for the model
    with one_thread():
        logged = _log_normalized(adata.X)
        sc.pp.pca(logged, n_comps=_PCS, random_state=seed)
        with threadpool_limits(1):  # on so few cells more threads only wait for each other
            kmeans = KMeans(n_clusters, n_init=_KMEANS_RESTARTS, random_state=seed).fit(logged.obsm["X_pca"])
    adata.obs["pca_kmeans"] = pd.Categorical(kmeans.labels_.astype(str))
    return time.perf_counter() - started


def _print_scores(
    adata: AnnData, columns: dict[str, str], seconds: dict[str, float], label_key: str, title: str
) -> None:
    """Table of scores: `columns` and `seconds` by the name of the method."""
    from scdeepclust.tl import score_clusters

    scores = score_clusters(adata, list(columns.values()), label_key=label_key)
    table = Table("method", title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in (*_SCORES, "seconds"):
        table.add_column(name, justify="right")
    for method, column in columns.items():
        table.add_row(method, *[f"{scores.loc[column, name]:.2f}" for name in _SCORES], f"{seconds[method]:.1f}")
    results.print(table)


# --- files out


def _save(
    adata: AnnData,
    key: str,
    h5ad: Path,
    labels_csv: Path | None,
    plot: Path | None,
    *,
    label_key: str | None,
    seed: int,
) -> None:
    """Write the files that are asked for; the picture last, when the results are safe."""
    with temporary_names(_announce) as temporary:
        if labels_csv is not None:
            table = adata.obs[[key, ResultKeys(key).confidence]].set_axis(["cluster", "confidence"], axis=1)
            table.to_csv(temporary(labels_csv), index_label="cell", float_format="%.4f")
        adata.write_h5ad(temporary(h5ad), compression="gzip")
    if plot is not None:
        messages.print("Computing a UMAP ...")
        with temporary_names(_announce) as temporary:
            _draw(adata, key, temporary(plot), label_key, seed)


def _draw(adata: AnnData, key: str, path: Path, label_key: str | None, seed: int) -> None:
    """Draw a UMAP of the latent space with clusters, confidence and known labels."""
    import matplotlib

    matplotlib.use("Agg")
    import scanpy as sc
    from anndata import AnnData

    from scdeepclust import pl

    embedding = ResultKeys(key).embedding
    drawn = AnnData(obs=adata.obs, obsm={embedding: adata.obsm[embedding]})
    # scanpy's default search breaks with some versions of scipy on more than 8,000 cells
    sc.pp.neighbors(drawn, use_rep=embedding, transformer="sklearn", random_state=seed)
    sc.tl.umap(drawn, random_state=seed)
    pl.overview(drawn, key, label_key=label_key).savefig(path, dpi=150)


def _announce(path: Path) -> None:
    messages.print(f"Wrote {escape(str(path))}")


@contextmanager
def _one_line_errors(*kinds: type[Exception], exit_code: int = 2) -> Iterator[None]:
    """End with one line instead of a traceback: these are mistakes in the input, not in the program."""
    try:
        yield
    except kinds as error:
        messages.print(f"[red]Error:[/] {escape(' '.join(str(error).split()))}")
        raise typer.Exit(exit_code) from error
