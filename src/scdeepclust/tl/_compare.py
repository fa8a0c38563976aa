from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scdeepclust.tl._compare_plan import BASELINES, OPEN, Job, plan
from scdeepclust.tl._compare_runs import DATA, run_file, run_job, while_alive, write_atomically
from scdeepclust.tl._comparison import ABOUT, Comparison, read_comparison
from scdeepclust.tl._genes import N_TOP_GENES, select_genes

if TYPE_CHECKING:
    from anndata import AnnData

# How often a run is tried whose worker was lost, as long as no other run ends in between.
_TRIES = 3
# Seconds between two looks at the folder, and between two lines where there is no terminal.
_LOOK, _LINE = 1.0, 10.0


def compare(
    adata: AnnData,
    out: str | Path,
    *,
    models: Sequence[str] | None = None,
    baselines: Sequence[str] | None = None,
    seeds: int | Sequence[int] = 3,
    n_clusters: int | None | Sequence[int | None] = None,
    batch_key: str | None = None,
    label_key: str | None = None,
    layer: str | None = None,
    n_top_genes: int = N_TOP_GENES,
    max_epochs: int | None = None,
    pretrain_epochs: int | None = None,
    accelerator: str = "auto",
    scib: bool = False,
    n_jobs: int = -1,
    progress: bool = True,
) -> Comparison:
    """Cluster the same cells with several methods and seeds, and compare.

    Every run, that is a method with a seed and a way to set the number of clusters, leaves a file in ``out``. Started
    again, only what is missing is done; more methods, seeds and numbers of clusters may be asked for then. Runs go
    through joblib: processes on this machine, or ``with joblib.parallel_config(backend="ray")`` (after
    ``ray.util.joblib.register_ray()``) or ``backend="dask"`` (with a ``dask.distributed.Client``) those of a cluster,
    whose machines have to see the folder. A run whose worker is lost is tried again. Confidence takes a model of this
    package another one and a half fits, which do not count among the seconds of its run.

    Parameters
    ----------
    adata
        Data with counts. It is only read.
    out
        Folder for the results.
    models
        Models by their name in lower case; all five by default.
    baselines
        ``"pca"``, ``"harmony"`` (needs ``batch_key`` and ``pip install 'scdeepclust[compare]'``) and ``"scvi"``. By
        default those that can run. Each with Leiden at resolution 1; with the resolution that fits known labels best,
        a bound for comparison, never a result; and ``"pca"`` and ``"harmony"`` with k-means where ``n_clusters`` is
        given.
    seeds
        Number of seeds, or the seeds.
    n_clusters
        Numbers of clusters; None stands for the number that each method finds.
    batch_key
        Column of ``obs`` with the technical batch.
    label_key
        Column of ``obs`` with known labels, for scores. No method learns from them but for the bound above.
    layer
        Layer with the counts; ``X`` by default.
    n_top_genes
        All methods get this many highly variable genes.
    max_epochs, pretrain_epochs, accelerator
        As in ``train`` of the models.
    scib
        Also score each embedding by :func:`scdeepclust.tl.benchmark_integration`; needs batches and labels.
    n_jobs
        Workers; -1 for all that the machine or the cluster has. Each uses one thread.
    progress
        Show how many runs are done, and the time left.

    Returns
    -------
    The comparison, as :func:`scdeepclust.tl.read_comparison` reads it.

    Raises
    ------
    ValueError
        If an argument does not fit, or ``out`` holds a comparison of other data or other settings.
    RuntimeError
        If runs are lost again and again.

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.simulate_counts(200, 100, n_clusters=3)
    >>> result = sdc.tl.compare(
    ...     adata, "comparison", models=["gmvae"], baselines=["pca"], seeds=2, n_clusters=3, label_key="cell_type",
    ...     pretrain_epochs=2, max_epochs=1, n_jobs=1, progress=False,
    ... )  # fmt: skip
    >>> result.summary["K = 3"].index.tolist()
    ['gmvae', 'pca+kmeans']
    """
    from joblib import Parallel, delayed

    folder = Path(out)
    options: dict[str, Any] = {
        "batch_key": batch_key,
        "label_key": label_key,
        "layer": layer,
        "n_top_genes": n_top_genes,
        "max_epochs": max_epochs,
        "pretrain_epochs": pretrain_epochs,
        "accelerator": accelerator,
        "scib": scib,
    }
    jobs = list(_jobs(adata, models, baselines, seeds, n_clusters, options))
    _prepare(adata, folder, jobs, options)
    failures = {path: path.read_text() for path in folder.glob("runs/*.error.txt")}
    for path in failures:  # tried again
        path.unlink()
    with _progress([run_file(folder, run) for job in jobs for run in job.runs], shown=progress):
        tries = 0
        while missing := _missing(folder, jobs):
            try:
                Parallel(n_jobs=n_jobs, batch_size=1, pre_dispatch="all")(
                    delayed(while_alive)(os.getpid(), run_job, str(folder.resolve()), job, options) for job in missing
                )
            except Exception as error:  # noqa: BLE001  a job never raises: this is the engine, in its own words
                lost: Exception | None = error
            else:
                lost = None
            left = _missing(folder, jobs)
            tries = 0 if len(left) < len(missing) else tries + 1
            if left and tries == _TRIES:
                raise RuntimeError(
                    f"{len(left)} runs were lost {_TRIES} times, such as {left[0].runs[0].name}: is memory enough "
                    f"for `n_jobs`={n_jobs} at once, and do all workers see {folder}? The finished runs are kept."
                ) from lost
    return read_comparison(folder)


def _missing(folder: Path, jobs: Sequence[Job]) -> list[Job]:
    """Jobs with the runs that have neither a result nor an error."""
    left = []
    for job in jobs:
        runs = tuple(
            run
            for run in job.runs
            if not run_file(folder, run).exists() and not run_file(folder, run, ".error.txt").exists()
        )
        if runs:
            left.append(Job(job.fit, job.seed, runs))
    return left


# ---- checks ----------------------------------------------------------------------------------------------------------


def _jobs(adata: AnnData, models, baselines, seeds, n_clusters, options: dict[str, Any]) -> Iterator[Job]:
    """All that is asked for, after all checks of the arguments."""
    from scdeepclust.model._base import check_anndata, check_n_clusters, check_obs_keys
    from scdeepclust.model._systems import SYSTEMS

    batch_key, label_key = options["batch_key"], options["label_key"]
    check_anndata(adata, options["layer"])
    check_obs_keys(adata, {"batch_key": batch_key})
    if label_key is not None and (label_key not in adata.obs or adata.obs[label_key].nunique() < 2):
        raise ValueError(
            f"`label_key`: `adata.obs` has no column {label_key!r} with at least 2 labels; found {list(adata.obs)}."
        )
    if options["scib"] and (label_key is None or batch_key is None):
        raise ValueError("`scib` needs `label_key` and `batch_key`.")
    keys = [system.key for system in SYSTEMS]
    models = _chosen("models", models, keys, keys)
    usable = [name for name in BASELINES if name != "harmony" or (batch_key is not None and _has_harmony())]
    baselines = _chosen("baselines", baselines, list(BASELINES), usable)
    if "harmony" in baselines and batch_key is None:
        raise ValueError("`baselines`: 'harmony' needs `batch_key`.")
    if "harmony" in baselines and not _has_harmony():
        raise ValueError("`baselines`: 'harmony' needs harmonypy: pip install 'scdeepclust[compare]'.")
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(dict.fromkeys(seeds))
    if not seeds or any(not isinstance(seed, int) or not 0 <= seed < 2**32 for seed in seeds):
        raise ValueError(f"`seeds` must be a number of seeds, at least 1, or a list of seeds; found {seeds!r}.")
    numbers = [n_clusters] if n_clusters is None or isinstance(n_clusters, int) else list(n_clusters)
    for number in numbers:
        check_n_clusters(number, adata.n_obs)
    ks = list(dict.fromkeys(OPEN if number is None else str(int(number)) for number in numbers))
    jobs = list(plan(models, baselines, seeds, ks, label_key is not None))
    if not jobs:
        raise ValueError("`models` and `baselines` leave nothing to run; name at least one.")
    return iter(jobs)


def _chosen(argument: str, names: Sequence[str] | None, known: list[str], default: list[str]) -> list[str]:
    from scdeepclust.model._base import check_choice

    chosen = default if names is None else [names] if isinstance(names, str) else list(names)
    for name in chosen:
        check_choice(argument, name, tuple(known))
    return list(dict.fromkeys(chosen))


def _has_harmony() -> bool:
    from importlib.util import find_spec

    return find_spec("harmonypy") is not None


# ---- the folder ------------------------------------------------------------------------------------------------------


def _prepare(adata: AnnData, folder: Path, jobs: list[Job], options: dict[str, Any]) -> None:
    """Write data and settings, or check that those in the folder are the same."""
    about = {"data": _fingerprint(adata, options), "shape": list(adata.shape), "options": options}
    wanted = [run.name for job in jobs for run in job.runs]
    path = folder / ABOUT
    if path.exists():
        found = json.loads(path.read_text())
        if found["data"] != about["data"]:
            raise ValueError(f"`out`: {folder} holds a comparison of other data. Name another folder.")
        for name, value in found["options"].items():
            if value != options[name]:
                raise ValueError(
                    f"`out`: {folder} holds a comparison with `{name}`={value!r}, now it is {options[name]!r}. Name "
                    "another folder, or give what it was."
                )
        wanted = list(dict.fromkeys(found["runs"] + wanted))
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f"`out`: {folder} is not empty and holds no comparison. Name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / DATA).exists():
        _write_data(adata, folder / DATA, options)
    write_atomically(path, json.dumps(about | {"runs": wanted}, indent=1).encode())


def _write_data(adata: AnnData, path: Path, options: dict[str, Any]) -> None:
    """Counts of the variable genes, batch and label: what a worker needs."""
    from anndata import AnnData
    from scipy.sparse import csr_matrix

    from scdeepclust.model._base import count_matrix

    layer, batch = options["layer"], options["batch_key"]
    genes = select_genes(adata, options["n_top_genes"], layer=layer, batch_key=batch).to_numpy()
    counts = csr_matrix(csr_matrix(count_matrix(adata, layer)[:])[:, genes], dtype="float32")
    columns = list(dict.fromkeys(key for key in (options["batch_key"], options["label_key"]) if key is not None))
    data = AnnData(counts, obs=adata.obs[columns].copy(), var=adata.var.loc[genes, []].copy())
    for column in columns:
        known = data.obs[column].notna()
        data.obs[column] = data.obs[column].astype(str).where(known).astype("category")
    partial = path.with_name(f".partial.{path.name}")
    data.write_h5ad(partial, compression="gzip")
    partial.replace(path)


def _fingerprint(adata: AnnData, options: dict[str, Any]) -> str:
    """Of counts, names, batch and labels."""
    import pandas as pd

    from scdeepclust.model._base import row_blocks

    digest = hashlib.blake2b(digest_size=16)
    for names in (adata.obs_names, adata.var_names):
        digest.update(pd.util.hash_pandas_object(pd.Series(names.astype(str)), index=False).to_numpy().tobytes())
    for key in (options["batch_key"], options["label_key"]):
        if key is not None:
            column = adata.obs[key].astype(str).reset_index(drop=True)
            digest.update(pd.util.hash_pandas_object(column, index=False).to_numpy().tobytes())
    for block in row_blocks(adata, options["layer"]):
        block.sort_indices()
        for array, kind in ((block.indptr, "int64"), (block.indices, "int64"), (block.data, "float64")):
            digest.update(array.astype(kind).tobytes())
    return digest.hexdigest()


# ---- progress --------------------------------------------------------------------------------------------------------


@contextmanager
def _progress(files: list[Path], shown: bool) -> Iterator[None]:
    """Runs done and time left. It looks at the folder, so that it works whoever does the runs."""
    if not shown:
        yield
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console, stop = Console(stderr=True), threading.Event()
    columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())

    def done() -> int:
        return sum(path.exists() or path.with_suffix(".error.txt").exists() for path in files)

    with Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=3600) as bar:
        task = bar.add_task("runs", total=len(files), completed=done())

        def watch() -> None:
            last = shown_at = -1.0
            while not stop.wait(_LOOK):
                now, seconds = done(), bar.tasks[0].elapsed or 0.0
                bar.update(task, completed=now)
                if not console.is_terminal and now != last and seconds - shown_at >= _LINE:
                    left = bar.tasks[0].time_remaining
                    console.print(f"{now} of {len(files)} runs" + (f", {left:.0f} s left" if left else ""))
                    last, shown_at = now, seconds

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            bar.update(task, completed=done())
