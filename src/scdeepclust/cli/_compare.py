from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from scdeepclust.model._systems import SYSTEMS

from ._app import app, messages, one_line_errors, prepare_libraries, results
from ._open import open_counts
from ._options import MaxEpochs, PretrainEpochs

_MODELS = ",".join(system.key for system in SYSTEMS)


class Engine(StrEnum):
    """What spreads the runs."""

    local = "local"
    ray = "ray"
    dask = "dask"


@app.command()
def compare(
    data: Annotated[Path, typer.Argument(metavar="IN", help="File or folder with raw counts.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the runs. What is there already is not done again.")],
    models: Annotated[str, typer.Option(help="Models, separated by commas; none for no model.")] = _MODELS,
    baselines: Annotated[
        str | None,
        typer.Option(help="Of pca,harmony,scvi; none for no baseline.", show_default="all that can run"),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Number of seeds, or seeds separated by commas.")] = "3",
    n_clusters: Annotated[
        str, typer.Option(help="Numbers of clusters separated by commas; open: each method finds its own.")
    ] = "open",
    layer: Annotated[str | None, typer.Option(help="Layer with the counts.", show_default="found by looking")] = None,
    batch_key: Annotated[str | None, typer.Option(help="Column of obs with the technical batch.")] = None,
    label_key: Annotated[str | None, typer.Option(help="Column of obs with known labels, for scores.")] = None,
    n_top_genes: Annotated[int, typer.Option(min=2, help="All methods get this many highly variable genes.")] = 2000,
    max_epochs: MaxEpochs = None,
    pretrain_epochs: PretrainEpochs = None,
    scib: Annotated[bool, typer.Option("--scib", help="Also score embeddings with scib-metrics.")] = False,
    jobs: Annotated[int, typer.Option(help="Workers, one thread each; -1 for all there are.")] = -1,
    engine: Annotated[Engine, typer.Option(help="Processes on this machine, or workers of a cluster.")] = Engine.local,
    address: Annotated[
        str | None,
        typer.Option(help="Of the Ray or Dask cluster; its machines have to see --out.", show_default="a local one"),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Also write the HTML report here.")] = None,
) -> None:
    """Compare models and baselines on your cells, with or without known labels.

    Killed or out of time, the same command goes on where it stopped.
    """
    with one_line_errors(ValueError, OSError, ImportError):
        from ._files import check_suffix

        check_suffix("--report", report, ".html")
        options: dict[str, Any] = {
            "models": _names(models),
            "baselines": None if baselines is None else _names(baselines),
            "seeds": _seeds(seeds),
            "n_clusters": [_number(word) for word in n_clusters.split(",")],
        }
        if address is not None and engine is Engine.local:
            raise ValueError("--address: there is none for --engine local; give --engine ray or --engine dask")
        prepare_libraries(seed=0)
        from scdeepclust.tl import compare as run_all

        adata, layer = open_counts([data], layer)
        with one_line_errors(RuntimeError, exit_code=1), engine_of(engine, address):
            comparison = run_all(
                adata, out, **options, batch_key=batch_key, label_key=label_key, layer=layer, n_top_genes=n_top_genes,
                max_epochs=max_epochs, pretrain_epochs=pretrain_epochs, scib=scib, n_jobs=jobs,
            )  # fmt: skip
    for setting, table in comparison.summary.items():
        _print(setting, table)
    for name, error in comparison.errors.items():
        messages.print(f"[yellow]Warning:[/] {name} failed: {error}", markup=True)
    results.print(f"{len(comparison.files)} runs in {out}; look at {comparison.best()} first")
    if report is not None:
        from ._report import write_report

        with one_line_errors(ValueError, OSError):
            write_report(out, report)


@contextmanager
def engine_of(engine: Engine, address: str | None) -> Iterator[None]:
    """Let joblib spread runs over a Ray or Dask cluster."""
    import joblib

    if engine is Engine.local:
        yield
    elif engine is Engine.ray:
        import ray
        from ray.util.joblib import register_ray

        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
        register_ray()
        resources = ray.cluster_resources()
        # GPUs of the cluster are shared between its workers, one a processor
        share = {"num_gpus": resources["GPU"] / resources["CPU"]} if resources.get("GPU") else {}
        with joblib.parallel_config(backend="ray", ray_remote_args=share):
            yield
    else:
        from dask.distributed import Client

        with Client(address) if address else Client(threads_per_worker=1), joblib.parallel_config(backend="dask"):
            yield


def _names(text: str) -> list[str]:
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    return [] if names == ["none"] else names


def _seeds(text: str) -> int | list[int]:
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--seeds: give a number of seeds, or seeds separated by commas; found {text!r}") from error
    return numbers[0] if "," not in text else numbers


def _number(word: str) -> int | None:
    if word.strip().lower() == "open":
        return None
    try:
        return int(word)
    except ValueError as error:
        raise ValueError(f"--n-clusters: give numbers separated by commas, or open; found {word!r}") from error


def _print(setting: str, scores: Any) -> None:
    shown = scores.drop(columns=["seeds"])
    table = Table("method", title=setting, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in shown:
        table.add_column("MB" if name == "peak_mb" else name, justify="right")
    for method, row in shown.iterrows():
        cells = [
            "-" if value != value else f"{value:.0f}" if name in ("seconds", "peak_mb") else f"{value:.2f}"
            for name, value in row.items()
        ]
        table.add_row(str(method), *cells)
    # in a file there is no window whose width would cut the names of the columns
    console = results if results.is_terminal else Console(highlight=False, width=160)
    console.print(table)
