"""What a worker of a comparison does: one fit, and a file for each clustering made from it.

A worker gets the path of the folder and reads the data there, so that a machine needs nothing but the folder to join.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scdeepclust.tl._compare_plan import OPEN, SEARCHED, Job, Run

if TYPE_CHECKING:
    from anndata import AnnData

    from scdeepclust.model._base import ClusteringModel

DATA = "data.h5ad"
N_PCS, N_NEIGHBORS, N_RESTARTS = 30, 15, 10
# Of Leiden where labels choose: from a few clusters to many. 1 is among them, the default.
RESOLUTIONS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0)
# Seconds between two looks at whether the parent is alive, and the parents that are looked at.
_LOOK = 0.5
_watched: set[int] = set()
# Cells of which neighbours are looked at for the mixing of batches.
MIXING_CELLS = 5000


def run_file(folder: Path, run: Run, suffix: str = ".npz") -> Path:
    """Where a finished run is, or with ``".error.txt"`` why it failed."""
    return folder / "runs" / f"{run.name}{suffix}"


def run_job(folder: str, job: Job, options: dict[str, Any]) -> None:
    """Fit once and write the runs of the job; what goes wrong is written beside them and does not stop the others."""
    place = Path(folder)
    try:
        with _one_quiet_thread(job.seed), PeakMemory() as memory:
            adata = _data(str(place / DATA))
            started = time.perf_counter()
            fitted = _fit_model if job.fit not in _EMBEDDINGS else _fit_baseline
            for run, result, model in fitted(adata, job, options):
                seconds = time.perf_counter() - started  # to the labels
                if model is not None:
                    result["confidence"] = model.get_confidence()
                _save(place, run, result, _scores(adata, result, options), seconds, memory.peak_mb())
    except Exception:  # noqa: BLE001  whatever it was: the other runs go on, and the file tells
        for run in job.runs:
            if not run_file(place, run).exists():
                write_atomically(run_file(place, run, ".error.txt"), traceback.format_exc().encode())


def while_alive(parent: int, work: Callable[..., None], *arguments: Any) -> None:
    """Do the work, and end with the process that started this worker, even if that was killed.

    The workers of joblib would finish what they are at, beside those of the same command started again. Where the
    parent is another one, such as that of a Ray or Dask worker, or this is the caller itself, nothing is watched.
    """
    if os.getppid() == parent and parent not in _watched:
        _watched.add(parent)

        def watch() -> None:
            while os.getppid() == parent:
                time.sleep(_LOOK)
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()
    work(*arguments)


@contextmanager
def _one_quiet_thread(seed: int) -> Iterator[None]:
    """One thread, this seed, no words; all as before afterwards, for a worker may be the caller's own process."""
    import logging

    import torch
    from scvi import settings
    from threadpoolctl import threadpool_limits

    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "scvi", "harmonypy")]
    before = torch.get_num_threads(), settings.seed, [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        settings.seed = seed
        torch.set_num_threads(1)
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(before[0])
        settings.seed = before[1]
        for logger, level in zip(loggers, before[2], strict=True):
            logger.setLevel(level)


@lru_cache(maxsize=1)
def _data(path: str) -> AnnData:
    """The data of the comparison: counts of the chosen genes. Not to be changed: jobs of a worker share it."""
    import anndata

    return anndata.read_h5ad(path)


# ---- fits ------------------------------------------------------------------------------------------------------------

Result = dict[str, np.ndarray]


# A run, what was found, and the model if it was one of this package.
Fitted = Iterator[tuple[Run, Result, "ClusteringModel | None"]]


def _fit_model(adata: AnnData, job: Job, options: dict[str, Any]) -> Fitted:
    from scdeepclust import model as models
    from scdeepclust.model._systems import SYSTEMS

    (run,) = job.runs
    cells = adata.copy()  # setup_anndata writes into it
    model_class = getattr(models, next(system.name for system in SYSTEMS if system.key == job.fit))
    model_class.setup_anndata(cells, batch_key=options["batch_key"])
    model = model_class(cells, n_clusters=None if run.k == OPEN else int(run.k))
    model.train(
        options["max_epochs"], options["pretrain_epochs"], accelerator=options["accelerator"], enable_progress_bar=False
    )
    labels = model.predict(soft=True).to_numpy().argmax(axis=1).astype(str)
    yield run, {"labels": labels, "embedding": model.get_latent_representation()}, model


def _fit_baseline(adata: AnnData, job: Job, options: dict[str, Any]) -> Fitted:
    embedding = _EMBEDDINGS[job.fit](adata, job.seed, options)
    for run in job.runs:
        yield run, {"labels": _cluster(adata, embedding, run, options["label_key"]), "embedding": embedding}, None


def _components(adata: AnnData, seed: int, options: dict[str, Any]) -> np.ndarray:
    """Principal components of log-normalised, scaled genes. Scaled, not centred: that would make zeros dense."""
    import scanpy as sc

    from scdeepclust.tl._counts import log_normalised

    logged = log_normalised(adata, None)
    sc.pp.scale(logged, zero_center=False, max_value=10)
    sc.pp.pca(logged, n_comps=min(N_PCS, *(size - 1 for size in logged.shape)), random_state=seed)
    return logged.obsm["X_pca"].astype(np.float32)


def _harmonised(adata: AnnData, seed: int, options: dict[str, Any]) -> np.ndarray:
    import harmonypy

    points = _components(adata, seed, options).astype(np.float64)
    harmony = harmonypy.run_harmony(points, adata.obs, options["batch_key"], random_state=seed, verbose=False)
    result = np.asarray(harmony.Z_corr, dtype=np.float32)
    return result if result.shape == points.shape else result.T  # harmonypy 2 turned it round


def _scvi_latent(adata: AnnData, seed: int, options: dict[str, Any]) -> np.ndarray:
    from scvi.model import SCVI

    cells = adata.copy()
    SCVI.setup_anndata(cells, batch_key=options["batch_key"])
    model = SCVI(cells)
    epochs = options["max_epochs"]
    model.train(epochs, accelerator=options["accelerator"], enable_progress_bar=False)
    return model.get_latent_representation().astype(np.float32)


_EMBEDDINGS: dict[str, Callable[[AnnData, int, dict[str, Any]], np.ndarray]] = {
    "pca": _components,
    "harmony": _harmonised,
    "scvi": _scvi_latent,
}


def _cluster(adata: AnnData, points: np.ndarray, run: Run, label_key: str | None) -> np.ndarray:
    """Labels "0", "1", ... by size: k-means with K given, Leiden otherwise."""
    from sklearn.metrics import adjusted_rand_score

    if run.k not in (OPEN, SEARCHED):
        from sklearn.cluster import KMeans

        return _by_size(KMeans(int(run.k), n_init=N_RESTARTS, random_state=run.seed).fit_predict(points))
    import scanpy as sc
    from anndata import AnnData

    graph = AnnData(obsm={"X_rep": points})
    # scanpy's default search is neither exact nor, with some versions of scipy, working on more than 8,000 cells
    sc.pp.neighbors(graph, n_neighbors=N_NEIGHBORS, use_rep="X_rep", transformer="sklearn", random_state=run.seed)

    def leiden(resolution: float) -> np.ndarray:
        options = {"flavor": "igraph", "n_iterations": 2, "directed": False, "random_state": run.seed}
        sc.tl.leiden(graph, resolution=resolution, key_added="leiden", **options)
        return graph.obs["leiden"].to_numpy()

    if run.k == OPEN:
        return _by_size(leiden(1.0))
    known = adata.obs[label_key].notna().to_numpy()
    found = [leiden(resolution) for resolution in RESOLUTIONS]
    scores = [adjusted_rand_score(adata.obs[label_key][known], labels[known]) for labels in found]
    return _by_size(found[int(np.argmax(scores))])


def _by_size(labels: np.ndarray) -> np.ndarray:
    _, codes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    return np.argsort(np.argsort(-sizes, kind="stable"))[codes].astype(str)


# ---- what is said about a run ----------------------------------------------------------------------------------------


def _scores(adata: AnnData, result: Result, options: dict[str, Any]) -> dict[str, float]:
    scores: dict[str, float] = {"n_clusters": len(np.unique(result["labels"]))}
    label_key, batch_key = options["label_key"], options["batch_key"]
    if batch_key is not None:
        scores["batch mixing"] = batch_mixing(result["embedding"], adata.obs[batch_key].astype(str).to_numpy())
    if label_key is not None:
        scores |= _label_scores(adata, result["labels"], label_key)
    if options["scib"]:
        scores |= _scib_scores(adata, result["embedding"], batch_key, label_key)
    return {name: float(value) for name, value in scores.items()}


def _scib_scores(adata: AnnData, points: np.ndarray, batch_key: str, label_key: str) -> dict[str, float]:
    """As in `benchmark_integration`, of a sample of the cells with a label."""
    import pandas as pd

    from scdeepclust.tl import _integration

    known = np.flatnonzero(adata.obs[label_key].notna())
    types, batch = (adata.obs[key].iloc[known].astype(str).to_numpy() for key in (label_key, batch_key))
    chosen = _integration._stratified(types, batch, MIXING_CELLS)
    scores = _integration._scores(points[known[chosen]], types[chosen], batch[chosen])
    return _integration._with_totals(pd.DataFrame([scores], dtype=float)).iloc[0].dropna().to_dict()


def _label_scores(adata: AnnData, labels: np.ndarray, label_key: str) -> dict[str, float]:
    from scdeepclust.tl._score import score_clusters

    obs = adata.obs[[label_key]].assign(_found=labels)
    table = score_clusters(obs, "_found", label_key=label_key).loc["_found"]
    rare = [f"f1[{name}]" for name in rare_types(adata.obs[label_key])]
    return table[["ARI", "NMI", "accuracy"]].to_dict() | {"F1 rare": table[rare].mean()}


def rare_types(labels) -> list[str]:
    """Types of less than 1 % of the cells, or the rarest one where there is none."""
    shares = labels.dropna().astype(str).value_counts(normalize=True)
    return list(shares.index[shares < 0.01]) or [shares.index[-1]]


def batch_mixing(points: np.ndarray, batch: np.ndarray) -> float:
    """The iLISI of scib-metrics, 0 (all neighbours are of the own batch) to 1, of :data:`MIXING_CELLS` cells."""
    import scib_metrics

    from scdeepclust.tl._integration import _neighbors

    if len(points) > MIXING_CELLS:
        chosen = np.random.default_rng(0).choice(len(points), MIXING_CELLS, replace=False)
        points, batch = points[chosen], batch[chosen]
    return float(scib_metrics.ilisi_knn(_neighbors(points)["lisi"], batch))


class PeakMemory:
    """Peak resident memory of this process within a `with` block; of its whole life where that cannot be reset."""

    def __enter__(self) -> PeakMemory:
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pass
        return self

    def __exit__(self, *_: object) -> None: ...

    def peak_mb(self) -> float:
        """So far, in MB."""
        try:
            status = Path("/proc/self/status").read_text()
            return int(status.partition("VmHWM:")[2].split()[0]) / 1024
        except (OSError, IndexError):
            try:
                import resource
            except ImportError:  # Windows
                return float("nan")
            scale = 2**20 if sys.platform == "darwin" else 2**10
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def _save(folder: Path, run: Run, result: Result, scores: dict, seconds: float, peak_mb: float) -> None:
    import io

    about = {
        "method": run.method,
        "k": run.k,
        "seed": run.seed,
        "seconds": seconds,
        "peak_mb": peak_mb,
        "host": platform.node(),
        "versions": _versions(),
        "scores": scores,
    }
    names, codes = np.unique(result["labels"], return_inverse=True)
    order = np.argsort(names.astype(int))
    arrays: dict[str, Any] = {"names": names[order], "codes": np.argsort(order)[codes].astype(np.int32)}
    arrays |= {name: np.asarray(result[name], np.float32) for name in ("confidence", "embedding") if name in result}
    buffer = io.BytesIO()
    np.savez(buffer, about=np.array(json.dumps(about)), **arrays)
    write_atomically(run_file(folder, run), buffer.getvalue())
    run_file(folder, run, ".error.txt").unlink(missing_ok=True)


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    from scdeepclust._compat import package_versions

    versions = package_versions() | {"python": platform.python_version()}
    for name in ("scanpy", "leidenalg", "igraph", "harmonypy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # an extra
            continue
    return versions


def write_atomically(path: Path, content: bytes) -> None:
    """Complete or not there at all, also where several machines write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.partial")
    partial.write_bytes(content)
    partial.replace(path)
