"""The labelled data and the methods that `quality.py` compares.

A family is one fit (components, a latent space, a model) and the labelings made from it. Those of the systems of this
package follow from their records. Import this module before anything that starts threads.
"""

from __future__ import annotations

from _threads import one_thread  # first: it sets the number of threads

# isort: split
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData

from scdeepclust.model._systems import SYSTEMS

DATA = Path(os.environ.get("SCDEEPCLUST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))

N_TOP_GENES = 2000
N_PCS = 30
N_NEIGHBORS = 15
N_RESTARTS = 100  # with 10, single runs of k-means decide baron_mouse by luck

DATASETS = (  # small to large
    "pbmc68k_reduced",
    "sc_mixology_cellines",
    "kang_muscat",
    "baron_mouse",
    "mouse_bladder_2100",
    "pbmc3k_full",
    "paul15",
    "worm_neuron",
    "pbmc_4k_hvg",
)

# Labelled sets that no choice of this package was made on until November 2026; small to large.
NEW_DATASETS = (
    "human_brain_c1",
    "mouse_epidermis_strt",
    "nsclc_dc_indrop",
    "klein_mesc_days",
    "worm_embryo",
    "ifnb_2800",
    "endocrinogenesis_10x",
    "human_kidney_hvg",
    "onek1k_4types",
)


class Timer:
    """CPU and wall seconds of a `with` block."""

    cpu = wall = 0.0

    def __enter__(self) -> Timer:
        self._start = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu = time.process_time() - self._start[0]
        self.wall = time.perf_counter() - self._start[1]


@dataclass
class Labels:
    """What a method hands back: one label per cell and what it cost."""

    method: str
    k: str
    labels: np.ndarray
    fit: Timer
    cluster: Timer


# ---- data ------------------------------------------------------------------------------------------------------------


def load(name: str, n_top_genes: int | None = N_TOP_GENES) -> AnnData | None:
    """Counts in ``layers["counts"]``, log-normalised values in ``X``, selected genes only; None if there is no file.

    All genes with ``n_top_genes=None``.
    """
    import anndata
    import scanpy as sc

    import scdeepclust as sdc

    if name == "pbmc68k_reduced":
        adata = sdc.datasets.pbmc68k_reduced()
        if "counts" in adata.layers:
            adata.X = adata.layers["counts"].copy()
    else:
        path = DATA / f"{name}.h5ad"
        if not path.exists():
            print(f"{name}: {path} is missing, skipped", flush=True)
            return None
        adata = anndata.read_h5ad(path)
    keep = [column for column in ("cell_type", "batch") if column in adata.obs]
    adata = AnnData(adata.X, obs=adata.obs[keep].copy(), var=adata.var[[]].copy())
    adata.layers["counts"] = adata.X.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    if n_top_genes is not None and adata.n_vars > n_top_genes:
        adata = adata[:, sdc.tl.select_genes(adata, n_top_genes, layer="counts")].copy()
    return adata


def batch_key(adata: AnnData) -> str | None:
    return "batch" if "batch" in adata.obs and adata.obs["batch"].nunique() > 1 else None


# ---- clustering of a representation ----------------------------------------------------------------------------------


def kmeans(representation: np.ndarray, k: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    return KMeans(k, n_init=N_RESTARTS, random_state=seed).fit_predict(representation)


def leiden_default(representation: np.ndarray, k: int, seed: int) -> np.ndarray:
    return leiden(neighbour_graph(representation, seed), 1.0, seed)


def leiden_at_k(representation: np.ndarray, k: int, seed: int, n_steps: int = 30) -> np.ndarray:
    """Bisect the resolution until there are `k` clusters; else the labels whose number was closest."""
    graph = neighbour_graph(representation, seed)
    low, high = np.log(1e-3), np.log(30.0)
    best, best_gap = None, np.inf
    for _ in range(n_steps):
        middle = (low + high) / 2
        labels = leiden(graph, float(np.exp(middle)), seed)
        found = np.unique(labels).size
        if abs(found - k) < best_gap:
            best, best_gap = labels, abs(found - k)
        if found == k:
            break
        low, high = (middle, high) if found < k else (low, middle)
    return best


def neighbour_graph(representation: np.ndarray, seed: int) -> AnnData:
    import scanpy as sc

    graph = AnnData(obsm={"X_rep": representation})
    # exact neighbours: no second source of randomness
    sc.pp.neighbors(graph, n_neighbors=N_NEIGHBORS, use_rep="X_rep", transformer="sklearn", random_state=seed)
    return graph


def leiden(graph: AnnData, resolution: float, seed: int) -> np.ndarray:
    import scanpy as sc

    sc.tl.leiden(
        graph, resolution=resolution, flavor="igraph", n_iterations=2, directed=False, random_state=seed, key_added="l"
    )
    return graph.obs["l"].to_numpy()


CLUSTERERS: dict[str, tuple[str, Callable[[np.ndarray, int, int], np.ndarray]]] = {
    "kmeans": ("given", kmeans),
    "leiden-k": ("searched", leiden_at_k),
    "leiden": ("estimated", leiden_default),
}


def cluster(name: str, representation: np.ndarray, k: int, seed: int, fit: Timer, wanted: set[str]) -> Iterator[Labels]:
    for suffix, (k_is, function) in CLUSTERERS.items():
        if (method := f"{name}+{suffix}") in wanted:
            with Timer() as timer:
                labels = function(representation, k, seed)
            yield Labels(method, k_is, labels, fit, timer)


# ---- families of methods: one fit, one or several labelings ----------------------------------------------------------


def components(adata: AnnData, seed: int) -> np.ndarray:
    """Principal components of standardised genes (mean ARI of k-means over the data sets .64, unstandardised .52)."""
    import scanpy as sc

    scaled = sc.pp.scale(adata.X.toarray(), max_value=10)
    return sc.pp.pca(scaled, n_comps=N_PCS, random_state=seed)


def pca(adata: AnnData, k: int, seed: int, wanted: set[str]) -> Iterator[Labels]:
    with Timer() as fit:
        representation = components(adata, seed)
    yield from cluster("pca", representation, k, seed, fit, wanted)


def harmony(adata: AnnData, k: int, seed: int, wanted: set[str]) -> Iterator[Labels]:
    import harmonypy

    if batch_key(adata) is None:
        return
    with Timer() as fit:
        representation = components(adata, seed).astype(np.float64)
        harmonised = np.asarray(harmonypy.run_harmony(representation, adata.obs, "batch", random_state=seed).Z_corr)
    if harmonised.shape[0] != adata.n_obs:  # harmonypy 2 turned the result round
        harmonised = harmonised.T
    yield from cluster("harmony", harmonised, k, seed, fit, wanted)


def scvi(adata: AnnData, k: int, seed: int, wanted: set[str]) -> Iterator[Labels]:
    import scvi as scvi_tools

    scvi_tools.settings.seed = seed
    one_thread()
    adata = adata.copy()  # setup_anndata writes into it
    scvi_tools.model.SCVI.setup_anndata(adata, layer="counts", batch_key=batch_key(adata))
    with Timer() as fit:
        model = scvi_tools.model.SCVI(adata)
        model.train(accelerator="cpu", enable_progress_bar=False)
    yield from cluster("scvi", model.get_latent_representation(), k, seed, fit, wanted)


def own_model(name: str, adata: AnnData, k: int, seed: int, wanted: set[str]) -> Iterator[Labels]:
    """A model of this package, told the number of clusters, and left to find it."""
    method = name.lower()
    if wanted - {f"{method}{OPEN}"}:
        model, fit = fit_model(name, adata, k, seed)
        yield from labels_of(model, method, k, seed, fit, wanted)
    if f"{method}{OPEN}" in wanted:
        model, fit = fit_model(name, adata, None, seed)
        yield from labels_of(model, f"{method}{OPEN}", k, seed, fit, wanted)


def labels_of(model: Any, method: str, k: int, seed: int, fit: Timer, wanted: set[str]) -> Iterator[Labels]:
    """Labels of a model that is fitted, those it started from, and clusterings of its latent codes."""
    k_is = "estimated" if method.endswith(OPEN) else "given"
    with Timer() as timer:
        labels = np.asarray(model.predict())
    yield Labels(method, k_is, labels, fit, timer)
    yield Labels(f"{method}:start", k_is, np.asarray(model.initial_labels_), fit, timer)
    if wanted & {f"{method}+{suffix}" for suffix in CLUSTERERS}:
        yield from cluster(method, model.get_latent_representation(), k, seed, fit, wanted)


def fit_model(
    name: str | type, adata: AnnData, n_clusters: int | None, seed: int, *, train: dict | None = None, **options: Any
) -> tuple[Any, Timer]:
    """A model of this package (by name) or of this class, at its defaults but for `options` and those of `train`.

    Second, what the fit cost.
    """
    import scvi as scvi_tools

    import scdeepclust as sdc

    scvi_tools.settings.seed = seed
    one_thread()
    adata = adata.copy()  # setup_anndata writes into it
    model_class = getattr(sdc.model, name) if isinstance(name, str) else name
    model_class.setup_anndata(adata, layer="counts", batch_key=batch_key(adata))
    with Timer() as fit:
        model = model_class(adata, n_clusters=n_clusters, **options)
        model.train(accelerator="cpu", enable_progress_bar=False, **(train or {}))
    return model, fit


# Ends the name of a model that finds the number of clusters itself.
OPEN = "+auto"

# Clusterings of the latent codes of our models, beside their own labels.
OF_CODES = {"idc": ("idc+kmeans",)}

Family = Callable[[AnnData, int, int, set[str]], Iterator[Labels]]
FAMILIES: dict[str, tuple[Family, tuple[str, ...]]] = {
    "pca": (pca, ("pca+kmeans", "pca+leiden-k", "pca+leiden")),
    "harmony": (harmony, ("harmony+kmeans", "harmony+leiden-k", "harmony+leiden")),
    "scvi": (scvi, ("scvi+kmeans", "scvi+leiden-k", "scvi+leiden")),
} | {
    system.key: (
        partial(own_model, system.name),
        (f"{system.key}:start", *OF_CODES.get(system.key, ()), system.key, f"{system.key}{OPEN}"),
    )
    for system in SYSTEMS
}
METHODS = tuple(method for _, methods in FAMILIES.values() for method in methods)


def warm_up() -> None:
    """Import and compile what the first neighbour graph needs, so that no method pays for it."""
    logging.getLogger("harmonypy").setLevel(logging.WARNING)
    cells = np.random.default_rng(0).normal(size=(200, 5))
    leiden_default(cells, 2, seed=0)
    kmeans(cells, 2, seed=0)
