from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdeepclust.tl._arguments import checked

if TYPE_CHECKING:
    from anndata import AnnData

# Neighbours of the LISI scores, of kBET and of the graph, as in scib-metrics; fewer where there are fewer cells.
N_NEIGHBORS = {"lisi": 90, "kbet": 50, "graph": 15}

PCA = "X_pca"
N_PCS = 30
LEAST = 20

# Beyond this number of cells an exact search takes minutes.
MAX_EXACT = 30_000

BIO_CONSERVATION = ("Isolated labels", "KMeans NMI", "KMeans ARI", "Silhouette label", "cLISI")
BATCH_CORRECTION = ("BRAS", "iLISI", "KBET", "Graph connectivity")

# Weights of the published total score.
BIO_WEIGHT, BATCH_WEIGHT = 0.6, 0.4


@checked
def benchmark_integration(
    adata: AnnData,
    embeddings: Sequence[str] | Mapping[str, str | None],
    *,
    batch_key: str,
    label_key: str,
    labels: Sequence[str] = (),
    layer: str | None = None,
    max_cells: int = 4000,
    progress: bool = True,
) -> pd.DataFrame:
    """Score how well embeddings keep cell types apart and batches together, with scib-metrics.

    All scores lie between 0 and 1, 1 is best. They need known labels, and judge an embedding by them. Principal
    components are always scored too: an embedding that is no better was not worth its training.

    Parameters
    ----------
    adata
        Data with the embeddings in ``obsm``.
    embeddings
        Names in ``obsm``. A dictionary gives each its own cluster labels, a column of ``obs``, or None:
        ``{"X_pca": None, "X_gmvae": "gmvae"}``.
    batch_key
        Column of ``obs`` with the batch.
    label_key
        Column of ``obs`` with known cell types. Cells without one are left out.
    labels
        Columns of ``obs`` with clusters that have no embedding; they get a row with the scores of labels.
    layer
        Layer with the counts, by default ``X``, for the principal components; not used where ``obsm`` has ``"X_pca"``.
        Values that are no counts are taken as they are.
    max_cells
        Embeddings are scored on at most so many cells, a sample that keeps the shares of types and batches, and at
        least 20 cells of each type in each batch. The size is shown, and in ``attrs["n_cells"]`` of the result.
    progress
        Show the progress.

    Returns
    -------
    One row an embedding, best total first. Columns: bio conservation (``Isolated labels``, ``KMeans NMI``,
    ``KMeans ARI``, ``Silhouette label``, ``cLISI``), batch correction (``BRAS``, ``iLISI``, ``KBET``,
    ``Graph connectivity``), their means ``Bio conservation`` and ``Batch correction``, and ``Total``, 0.6 of the first
    plus 0.4 of the second. Then for comparison, in no mean: ``Silhouette batch``, which rewards embeddings that mix
    cell types too, and ``Own ARI`` and ``Own NMI`` of the cluster labels, of all cells. A score that cannot be
    computed, for example because a batch is too small, is missing for all embeddings alike, with a warning.

    Raises
    ------
    ValueError
        If an embedding or a column is missing, or there is only one batch or one cell type.

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.simulate_counts(200, 100, n_clusters=3, n_batches=2)
    >>> adata.obsm["X_small"] = adata.X[:, :10].toarray()
    >>> sdc.tl.benchmark_integration(
    ...     adata, ["X_small"], batch_key="batch", label_key="cell_type"
    ... ).index.tolist()  # doctest: +SKIP
    ['X_small', 'X_pca']
    """
    own = dict(embeddings) if isinstance(embeddings, Mapping) else dict.fromkeys(embeddings)
    labels = [labels] if isinstance(labels, str) else list(labels)
    _check(adata, own, batch_key, label_key, labels, max_cells)
    known = np.flatnonzero(adata.obs[label_key].notna())
    types, batch = (adata.obs[key].iloc[known].astype(str).to_numpy() for key in (label_key, batch_key))
    chosen = _stratified(types, batch, max_cells)
    embedded = {name: adata.obsm[name] for name in own}
    if PCA not in embedded:
        embedded[PCA] = adata.obsm[PCA] if PCA in adata.obsm else _components(adata, layer, batch_key)
    size = f"{len(chosen):,} of {adata.n_obs:,} cells"
    rows: dict[str, dict[str, float]] = {}
    for name in _followed(list(embedded), size, shown=progress):
        points = np.ascontiguousarray(embedded[name][known[chosen]], dtype=np.float32)
        rows[name] = _scores(points, types[chosen], batch[chosen])
    table = _with_totals(pd.DataFrame.from_dict(rows, orient="index", dtype=float))
    for name, key in [*own.items(), *((key, key) for key in labels)]:
        if key is not None:
            for score, value in _own_scores(types, adata.obs[key].iloc[known].astype(str).to_numpy()).items():
                table.loc[name, score] = value
    table.index.name = "embedding"
    table.attrs["n_cells"] = len(chosen)
    return table


def _followed(names: list[str], size: str, shown: bool) -> Iterator[str]:
    """The names, with a progress bar on a terminal, and the number of cells in any case."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if shown:
        console.print(f"Scoring {len(names)} embeddings on {size}", highlight=False)
    yield from track(names, "scib-metrics", console=console, disable=not shown or not console.is_terminal)


def _stratified(types: np.ndarray, batch: np.ndarray, max_cells: int) -> np.ndarray:
    """A sample with the shares of types in batches, and at least :data:`LEAST` cells of each, as sorted places."""
    if len(types) <= max_cells:
        return np.arange(len(types))
    strata = pd.DataFrame({"type": types, "batch": batch}).groupby(["type", "batch"]).ngroup().to_numpy()
    rng = np.random.default_rng(0)
    chosen = []
    for stratum in np.unique(strata):
        cells = np.flatnonzero(strata == stratum)
        wanted = max(round(len(cells) * max_cells / len(types)), min(len(cells), LEAST))
        chosen.append(rng.choice(cells, wanted, replace=False))
    return np.sort(np.concatenate(chosen))


def _components(adata: AnnData, layer: str | None, batch_key: str) -> np.ndarray:
    """Principal components of log-normalised variable genes; of the values themselves where they are no counts."""
    import scanpy as sc
    from scipy.sparse import csr_matrix

    from scdeepclust.model._base import count_matrix
    from scdeepclust.tl._counts import log_normalised
    from scdeepclust.tl._genes import N_TOP_GENES, variable_genes
    from scdeepclust.train import one_thread

    values = csr_matrix(count_matrix(adata, layer)[:], dtype=np.float32)
    if (values.data >= 0).all() and (values.data == np.round(values.data)).all():
        genes = variable_genes(adata, layer, batch_key, N_TOP_GENES)
        with one_thread():
            values = log_normalised(adata, layer).X[:, genes]
    with one_thread():
        return sc.pp.pca(values, n_comps=min(N_PCS, *(size - 1 for size in values.shape)), random_state=0)


def _check(
    adata: AnnData, own: dict[str, str | None], batch_key: str, label_key: str, labels: list[str], max_cells: int
) -> None:
    if not own and not labels:
        raise ValueError("`embeddings` is empty; name at least one embedding in `adata.obsm`.")
    if max_cells < 100:
        raise ValueError(f"`max_cells` must be at least 100; found {max_cells}.")
    if batch_key == label_key:
        raise ValueError(f"`batch_key` and `label_key` are both {batch_key!r}; batches and cell types are two columns.")
    missing = [name for name in own if name not in adata.obsm]
    if missing:
        raise ValueError(
            f"`embeddings`: `adata.obsm` has no {', '.join(map(repr, missing))}; found {list(adata.obsm)}."
        )
    columns = [("batch_key", batch_key), ("label_key", label_key)]
    columns += [("embeddings", key) for key in own.values() if key is not None]
    columns += [("labels", key) for key in labels]
    for argument, column in columns:
        if column not in adata.obs:
            raise ValueError(f"`{argument}`: there is no column {column!r} in `adata.obs`; found {list(adata.obs)}.")
    for argument, column in columns[:2]:
        if adata.obs.loc[adata.obs[label_key].notna(), column].nunique() < 2:
            raise ValueError(
                f"`{argument}`: column {column!r} of `adata.obs` has a single value; at least 2 are needed."
            )


def _scores(points: np.ndarray, labels: np.ndarray, batch: np.ndarray) -> dict[str, float]:
    import scib_metrics

    neighbors = _neighbors(points)
    metrics: dict[str, Callable[[], Any]] = {
        "Isolated labels": lambda: scib_metrics.isolated_labels(points, labels, batch),
        "KMeans": lambda: scib_metrics.nmi_ari_cluster_labels_kmeans(points, labels),
        "Silhouette label": lambda: scib_metrics.silhouette_label(points, labels),
        "cLISI": lambda: scib_metrics.clisi_knn(neighbors["lisi"], labels),
        "BRAS": lambda: scib_metrics.bras(points, labels, batch),
        "iLISI": lambda: scib_metrics.ilisi_knn(neighbors["lisi"], batch),
        "KBET": lambda: scib_metrics.kbet_per_label(neighbors["kbet"], batch, labels),
        "Graph connectivity": lambda: scib_metrics.graph_connectivity(neighbors["graph"], labels),
        "Silhouette batch": lambda: scib_metrics.silhouette_batch(points, labels, batch),
    }
    scores: dict[str, float] = {}
    for name, metric in metrics.items():
        try:
            value = metric()
        except (ValueError, IndexError, KeyError, ZeroDivisionError) as error:
            warnings.warn(f"{name} could not be computed and is left out: {error}", stacklevel=3)
            value = np.nan
        if name == "KMeans":
            scores |= {f"KMeans {k.upper()}": v for k, v in (value if isinstance(value, dict) else {}).items()}
        else:
            scores[name] = float(value)
    return scores


def _neighbors(points: np.ndarray) -> dict[str, Any]:
    """Nearest neighbours of each cell, itself first; exact on up to :data:`MAX_EXACT` cells."""
    from scib_metrics.nearest_neighbors import NeighborsResults, pynndescent
    from sklearn.neighbors import NearestNeighbors

    n = min(max(N_NEIGHBORS.values()), len(points))
    if len(points) > MAX_EXACT:
        found = pynndescent(points, n_neighbors=n, random_state=0)
        indices, distances = found.indices, found.distances
    else:
        distances, indices = NearestNeighbors(n_neighbors=n).fit(points).kneighbors(points)
        # where cells coincide another one may come first
        cells = np.arange(len(points))
        is_self = indices == cells[:, None]
        place = np.where(is_self.any(axis=1), is_self.argmax(axis=1), n - 1)
        indices[cells, place], indices[:, 0] = indices[:, 0].copy(), cells
    return {
        name: NeighborsResults(indices=indices[:, : min(k, n)], distances=distances[:, : min(k, n)])
        for name, k in N_NEIGHBORS.items()
    }


def _own_scores(labels: np.ndarray, clusters: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    return {
        "Own ARI": adjusted_rand_score(labels, clusters),
        "Own NMI": normalized_mutual_info_score(labels, clusters),
    }


def _with_totals(table: pd.DataFrame) -> pd.DataFrame:
    """Scores in their order, with means over those that all embeddings have, best total first."""
    complete = table.columns[table.notna().all()]
    bio = [name for name in BIO_CONSERVATION if name in complete]
    batch = [name for name in BATCH_CORRECTION if name in complete]
    scores = table.reindex(columns=[*BIO_CONSERVATION, *BATCH_CORRECTION])
    scores.loc[:, [name for name in scores if name not in complete]] = np.nan
    scores["Bio conservation"], scores["Batch correction"] = table[bio].mean(axis=1), table[batch].mean(axis=1)
    scores["Total"] = BIO_WEIGHT * scores["Bio conservation"] + BATCH_WEIGHT * scores["Batch correction"]
    if "Silhouette batch" in table:
        scores["Silhouette batch"] = table["Silhouette batch"]
    return scores.sort_values("Total", ascending=False, kind="stable")
