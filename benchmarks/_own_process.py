"""Memory and seconds of one measurement, in a process of its own."""

from __future__ import annotations

import resource
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

MIB = 2**20


def in_own_process(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a function of a script in a fresh interpreter; its peak memory is then that of the call."""
    with ProcessPoolExecutor(
        1, mp_context=get_context("spawn"), initializer=warnings.simplefilter, initargs=("ignore",)
    ) as pool:
        return pool.submit(function, *arguments, **options).result()


def store_counts(path: Path, n_cells: int, n_genes: int, **options: Any) -> None:
    """Simulated counts for processes that read them: making them would count as memory."""
    import scdeepclust as sdc

    adata = sdc.datasets.simulate_counts(n_cells, n_genes, seed=0, **options)
    adata.layers.clear()  # one copy of the counts, in X
    adata.write_h5ad(path)


def peak_mib() -> float:
    """Largest memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MIB if sys.platform == "darwin" else 1024)  # bytes on macOS, KiB on Linux


def csr_mib(matrix: Any) -> float:
    return sum(array.nbytes for array in (matrix.data, matrix.indices, matrix.indptr)) / MIB


def time_epochs(model: Any) -> list[list[float]]:
    """A list that training fills: for each phase the CPU seconds at which its epochs ended.

    From end to end, so that what happens between epochs (new targets, say) counts too.
    """
    ends: list[list[float]] = []

    class TimedPlan(model._training_plan_cls):
        def on_train_start(self) -> None:
            super().on_train_start()
            ends.append([])

        def on_train_epoch_end(self) -> None:
            super().on_train_epoch_end()
            ends[-1].append(time.process_time())

    model._training_plan_cls = TimedPlan
    return ends
