"""Fits that are killed at a random moment and go on in another process -> two CSVs, one page.

Each fit runs in a process of its own, which ends by SIGKILL at a random moment of it; a second process makes the same
call, and its probabilities are compared, bit for bit, with those of a fit that was never killed. Then the price of
writing the state: its part of the CPU time of a fit of 5,000 cells. One thread.

    python benchmarks/kill.py                                   # ten kills a model, then the price
    python benchmarks/kill.py --models gmvae --again
"""

from __future__ import annotations

import os

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_variable] = "1"

import signal
import tempfile
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import numpy as np
import pandas as pd
import scvi
import torch
from _charts import MODEL_COLORS, Lead, panels
from _report import Report, markdown

import scdeepclust as sdc
from scdeepclust.train import _checkpoint

KILLS = Report(__file__, ("model",), files="kill*.csv")
PRICE = Report("kill_price.py", ("model",))
N_KILLS, N_CELLS = 10, 500
EPOCHS = {"pretrain_epochs": 30, "max_epochs": 10, "enable_progress_bar": False, "accelerator": "cpu"}
MODELS = {name.lower(): name for name in sdc.model.__all__}


def fitted(key: str, folder: Path | None, n_cells: int, **kwargs):
    """A model of simulated cells, as the same call makes it in every process."""
    scvi.settings.seed = 0
    adata = sdc.datasets.simulate_counts(n_cells, 300, n_clusters=5, n_batches=2, depth=300, seed=1)
    model_cls = getattr(sdc.model, MODELS[key])
    model_cls.setup_anndata(adata, batch_key="batch")
    model = model_cls(adata, n_clusters=5, **({"n_facet_clusters": 2} if key == "mfcvae" else {}))
    model.train(checkpoint_dir=folder, **(EPOCHS | kwargs))
    return model


def in_a_process(work: Callable[[], None], kill_after: float | None = None) -> bool:
    """Whether the work came to its end before the process was killed."""
    if (child := os.fork()) == 0:
        work()
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if kill_after is None and status:
        raise RuntimeError(f"the process ended with status {status}")
    return status == 0


def state_of(folder: Path) -> str:
    """Where the state in a folder stands."""
    path = folder / _checkpoint.FILE_NAME
    if not path.exists():
        return "nothing written"
    state = torch.load(path, weights_only=False)
    inside = state["inside"]
    return f"phase {state['phase']}" + (f" epoch {inside['epoch']}" if inside else "")


def kills(key: str, n_kills: int, n_cells: int) -> pd.DataFrame:
    """One row a kill."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)

        def fit(folder: Path) -> None:
            np.save(folder.with_suffix(".npy"), fitted(key, folder, n_cells).predict(soft=True).to_numpy())

        start = time.perf_counter()
        in_a_process(lambda: fit(here / "whole"))
        seconds = time.perf_counter() - start
        rows: list[dict] = []
        while len(rows) < n_kills:
            folder = here / str(len(rows))
            share = rng.uniform(0, 1)
            if in_a_process(lambda folder=folder: fit(folder), kill_after=share * seconds):
                seconds *= 0.9  # it was faster than the first one
                folder.rename(here / f"done{time.perf_counter()}")
                continue
            stood = state_of(folder)
            in_a_process(lambda folder=folder: fit(folder))
            ends = [np.load(here / f"{stem}.npy") for stem in ("whole", folder.name)]
            row = {"share": round(share, 3), "stood": stood, "identical": np.array_equal(*ends)}
            rows.append({"model": key, "kill": len(rows), **row})
            print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def price(key: str, n_cells: int = 5000) -> pd.DataFrame:
    """CPU seconds of a fit, of them those in what is called only to write the state, and the size of the file.

    Two fits with and without writing differ by less than two fits of the same kind do.
    """
    spent, outermost = 0.0, True

    def timed(function: Callable) -> Callable:
        @wraps(function)
        def call(*args, **kwargs):
            nonlocal spent, outermost
            if not outermost:
                return function(*args, **kwargs)
            outermost, start = False, time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent += time.process_time() - start
                outermost = True

        return call

    model_cls = getattr(sdc.model, MODELS[key])
    parts = [
        (_checkpoint.FitStore, "read"),
        (_checkpoint.FitStore, "write"),
        (_checkpoint.EpochState, "on_train_epoch_start"),
        (model_cls, "_fit_identity"),
    ]
    whole = [getattr(owner, name) for owner, name in parts]
    for (owner, name), function in zip(parts, whole, strict=True):
        setattr(owner, name, timed(function))
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        fitted(key, Path(folder) / "state", n_cells)
        seconds = time.process_time() - start
        megabytes = (Path(folder) / "state" / _checkpoint.FILE_NAME).stat().st_size / 2**20
    for (owner, name), function in zip(parts, whole, strict=True):
        setattr(owner, name, function)
    row = {"model": key, "cells": n_cells, "seconds": round(seconds, 2), "seconds_writing": round(spent, 3)}
    return pd.DataFrame([row | {"more": round(spent / (seconds - spent), 4), "megabytes": round(megabytes, 2)}])


def lead(rows: pd.DataFrame, prices: pd.DataFrame) -> Lead:
    """When each fit was killed; full where it ended as if it had not been."""
    figure, (ax,) = panels(height=2.4)
    names = list(dict.fromkeys(rows.model))
    for place, model in enumerate(reversed(names)):
        part, color = rows[rows.model == model], MODEL_COLORS[model]
        face = [color if same else "white" for same in part.identical]
        ax.scatter(part.share, [place] * len(part), s=34, c=face, edgecolors=color)
    ax.set_yticks(range(len(names)), reversed(names))
    ax.set(xlabel="killed after this share of the time of the fit (full: ends as if never killed)", xlim=(-0.03, 1.03))
    ax.set_ylim(-0.5, len(names) - 0.5)
    ax.tick_params(axis="y", length=0)
    text = f"""\
{rows.identical.sum()} of {len(rows)} fits that were killed at a random moment and continued end with the same
probabilities, bit for bit, as
without. Writing costs at most {prices.more.max():.1%} of the time. **What is lost:** what was trained since the last
time of writing is
trained again."""
    return Lead(figure, "Moments at which fits were killed, full where they ended as if never killed", text)


def write_page() -> None:
    rows, prices = KILLS.read(), PRICE.read().set_index("model")
    lines = [["model", "kills", "in the first phase", "end as if never killed", "writing costs", "file, MiB"]]
    for model, part in rows.groupby("model", sort=False):
        first = int(part["stood"].str.startswith(("nothing", "phase 0")).sum())
        price = prices.loc[model]
        cost = f"{100 * price.more:.1f} % of {price.seconds:.1f} s"
        lines.append(
            [model, str(len(part)), str(first), str(int(part.identical.sum())), cost, f"{price.megabytes:.2f}"]
        )
    text = f"""\
Each fit of {N_CELLS} cells runs in a process of its own that is killed (SIGKILL) at a random moment; another process
makes the same call of `train(checkpoint_dir=...)`. It ends *as if never killed* when the probabilities of all cells are
those of an undisturbed fit, bit for bit. The cost is the CPU time that a fit of 5,000 cells spends in writing, one
thread."""
    KILLS.write("Killed and continued", lead(rows, prices), text, markdown(lines), rows=rows)


def main() -> None:
    options = KILLS.parse(KILLS.parser(__doc__, models=list(MODELS)))
    PRICE.csv = KILLS.csv.with_name("kill_price.csv")
    for key in [] if options.table else options.models:
        if options.again or not KILLS.has(model=key):
            _checkpoint.WRITE_EVERY = 0.0
            rows = kills(key, N_KILLS, N_CELLS)
            KILLS.append(rows)
            print(f"{key}: {int(rows['identical'].sum())} of {len(rows)} end as if never killed", flush=True)
        if options.again or not PRICE.has(model=key):
            _checkpoint.WRITE_EVERY = 120.0
            PRICE.append(price(key))
    write_page()


if __name__ == "__main__":
    main()
