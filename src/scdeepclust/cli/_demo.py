from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._app import app, messages, one_line_errors, prepare_libraries
from ._files import check_files, check_folder
from ._fit import print_scores, save, set_up, train
from ._options import MaxEpochs, Model, Overwrite, PretrainEpochs, Seed
from ._signals import end_if_cut_short, signals_end_in_a_line

if TYPE_CHECKING:
    from anndata import AnnData

_PCS, _KMEANS_RESTARTS = 30, 100


@app.command()
@signals_end_in_a_line()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results; made if needed.")] = Path("scdeepclust_demo"),
    model: Model = "scdeepcluster",
    seed: Seed = 0,
    max_epochs: MaxEpochs = None,
    pretrain_epochs: PretrainEpochs = None,
    overwrite: Overwrite = False,
) -> None:
    """Cluster 700 real blood cells (no download) and compare with PCA + k-means.

    Writes clustered.h5ad, labels.csv and umap.png into the folder.
    """
    files = [out / "clustered.h5ad", out / "labels.csv", out / "umap.png"]
    with one_line_errors(ValueError, OSError):
        check_files(files, overwrite, needs_folder=False)
        check_folder("--out", out)
    messages.print("Loading the libraries and 700 blood cells (PBMC, 10x Genomics) ...")
    prepare_libraries(seed)
    from scdeepclust import datasets

    adata = datasets.pbmc68k_reduced()
    n_types = adata.obs["cell_type"].nunique()
    with one_line_errors(ValueError):
        fitted = set_up(adata, model, layer="counts", n_clusters=n_types)
    key, name = model, type(fitted).__name__
    baseline = _pca_kmeans(adata, n_types, seed)
    done = train(fitted, adata, max_epochs, pretrain_epochs, confidence="repeat")
    seconds = {"PCA + k-means": baseline, name: done.seconds}
    columns = {"PCA + k-means": "pca_kmeans", name: key}
    print_scores(adata, columns, seconds, "cell_type", title=f"{n_types} clusters against {n_types} known types")
    del adata.obs["pca_kmeans"]
    with one_line_errors(OSError):
        out.mkdir(parents=True, exist_ok=True)
        save(adata, key, *files, label_key="cell_type", seed=seed)
    end_if_cut_short(fitted, done.code)


def _pca_kmeans(adata: AnnData, n_clusters: int, seed: int) -> float:
    """The usual baseline, into obs["pca_kmeans"]; returns the seconds it took."""
    import pandas as pd
    import scanpy as sc
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    from scdeepclust.tl._counts import log_normalised
    from scdeepclust.train import one_thread

    started = time.perf_counter()  # after the imports, as for the model
    with one_thread():
        logged = log_normalised(adata, None)
        sc.pp.pca(logged, n_comps=_PCS, random_state=seed)
        with threadpool_limits(1):  # on so few cells more threads only wait for each other
            kmeans = KMeans(n_clusters, n_init=_KMEANS_RESTARTS, random_state=seed).fit(logged.obsm["X_pca"])
    adata.obs["pca_kmeans"] = pd.Categorical(kmeans.labels_.astype(str))
    return time.perf_counter() - started
