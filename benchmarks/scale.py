"""Memory and time against the number of cells -> one CSV, then one Markdown page.

Counts of 4000 genes are simulated and stored; every measurement then runs in a process of its own, which reads them,
trains a few epochs of each phase and predicts. Peak memory is that of the whole process. One thread. With "-backed"
behind the name of a model the counts stay in their (uncompressed) file.

    python benchmarks/scale.py                                        # what is missing
    python benchmarks/scale.py --sizes 10000,20000 --models scdeepcluster --again
    python benchmarks/scale.py --table                                # only rewrite the page
"""

from __future__ import annotations

import os

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_variable] = "1"

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
CSV = HERE / "results" / "scale.csv"
PAGE = HERE.parent / "docs" / "benchmarks" / "scale.md"

SIZES = (10_000, 25_000, 50_000, 100_000, 200_000)
N_GENES = 4000
N_CLUSTERS = 10
TRAIN_SIZE = 0.95
N_EPOCHS = 4  # of each phase; the first one, which warms caches, is not counted
MIB = 2**20


# ---- one measurement, in its own process -----------------------------------------------------------------------------


def train_scdeepcluster(adata: Any) -> tuple[list[list[float]], float | None]:
    """End of each epoch of each phase, and the reconstruction of held-out cells after the first phase."""
    import scdeepclust as sdc

    sdc.model.SCDeepCluster.setup_anndata(adata)
    model = sdc.model.SCDeepCluster(adata, n_clusters=N_CLUSTERS, tol=0.0)  # never done before the last epoch
    seconds = time_epochs(model)
    # validation in the last epoch only, which leaves the median over epochs as it is
    model.train(
        max_epochs=N_EPOCHS,
        pretrain_epochs=N_EPOCHS,
        train_size=TRAIN_SIZE,
        check_val_every_n_epoch=N_EPOCHS,
        accelerator="cpu",
        enable_progress_bar=False,
    )
    held_out = float(model.history["pretrain_reconstruction_loss_validation"].iloc[-1, 0])
    model.predict()
    return seconds, held_out


def train_scvi(adata: Any) -> tuple[list[list[float]], float | None]:
    import scvi

    scvi.model.SCVI.setup_anndata(adata)
    model = scvi.model.SCVI(adata)
    seconds = time_epochs(model)
    model.train(max_epochs=N_EPOCHS, train_size=TRAIN_SIZE, accelerator="cpu", enable_progress_bar=False)
    model.get_latent_representation()
    return seconds, None


MODELS: dict[str, Callable[[Any], tuple[list[list[float]], float | None]]] = {
    "scdeepcluster": train_scdeepcluster,
    "scdeepcluster-backed": train_scdeepcluster,
    "scvi": train_scvi,
}


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


def measure(model: str, path: Path) -> dict[str, Any]:
    import anndata
    import scvi
    import torch

    torch.set_num_threads(1)
    scvi.settings.seed = 0
    backed = model.endswith("-backed")
    adata = anndata.read_h5ad(path, backed="r" if backed else None)
    csr_mib = 0.0
    if not backed:
        csr_mib = sum(array.nbytes for array in (adata.X.data, adata.X.indices, adata.X.indptr)) / MIB
    before_mib = peak_mib()
    start = time.process_time()
    ends_of_phases, held_out = MODELS[model](adata)
    epochs = [float(np.median(np.diff(ends))) for ends in ends_of_phases]
    return {
        "model": model,
        "cells": adata.n_obs,
        "genes": adata.n_vars,
        "csr_mib": round(csr_mib, 1),
        "peak_before_training_mib": round(before_mib, 1),
        "peak_mib": round(peak_mib(), 1),
        "first_phase_s_epoch": round(epochs[0], 3),
        "last_phase_s_epoch": round(epochs[-1], 3),
        "held_out_loss": held_out,
        "total_s": round(time.process_time() - start, 1),
        "versions": f"scdeepclust={version('scdeepclust')} torch={version('torch')} scvi-tools={version('scvi-tools')}",
    }


def peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MIB if sys.platform == "darwin" else 1024)  # bytes on macOS, KiB on Linux


def simulate(n_cells: int, path: Path) -> None:
    import scdeepclust as sdc

    adata = sdc.datasets.simulate_counts(n_cells, N_GENES, n_clusters=N_CLUSTERS, seed=0)
    adata.layers.clear()  # one copy of the counts, in X
    adata.write_h5ad(path)


# ---- all of them -----------------------------------------------------------------------------------------------------


def in_own_process(*arguments: str) -> str:
    """Run this script with `arguments`; the last line it prints."""
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return done.stdout.strip().rpartition("\n")[2]


def run(path: Path, models: list[str], sizes: list[int], again: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for n_cells in sizes:
            known = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["model", "cells"])
            done = set(known.model[known.cells == n_cells])
            missing = [model for model in models if again or model not in done]
            if not missing:
                continue
            counts = Path(folder) / "counts.h5ad"
            in_own_process("--simulate", str(n_cells), str(counts))
            for model in missing:
                row = json.loads(in_own_process("--measure", model, str(counts)))
                old = known[(known.model != model) | (known.cells != n_cells)]
                known = pd.concat([old, pd.DataFrame([row])]) if len(old) else pd.DataFrame([row])
                known = known.sort_values(["model", "cells"])
                known.to_csv(path.with_suffix(".part"), index=False)
                path.with_suffix(".part").replace(path)
                print(row, flush=True)


def write_page(path: Path, rows: pd.DataFrame) -> None:
    lines = [
        "| model | cells | counts as CSR, MiB | peak memory, MiB | of it above the CSR, MiB "
        "| first phase, s an epoch | last phase, s an epoch | held-out loss |",
        "|---|---|---|---|---|---|---|---|",
    ]
    growth = []
    for model, part in rows.groupby("model"):
        for row in part.itertuples():
            lines.append(
                f"| {model} | {row.cells:,} | {row.csr_mib:,.0f} | {row.peak_mib:,.0f} "
                f"| {row.peak_mib - row.csr_mib:,.0f} "
                f"| {row.first_phase_s_epoch:.2f} | {row.last_phase_s_epoch:.2f} "
                f"| {'' if np.isnan(row.held_out_loss) else f'{row.held_out_loss:.2f}'} |"
            )
        if len(part) > 1:
            first, last = (
                np.polyfit(np.log(part.cells), np.log(part[f"{phase}_phase_s_epoch"]), 1)[0]
                for phase in ("first", "last")
            )
            slope = 1024 * np.polyfit(part.cells, part.peak_mib - part.csr_mib, 1)[0]
            growth.append(
                f"- {model}: seconds an epoch grow as cells^{first:.2f} (first phase) and cells^{last:.2f} (last), "
                f"memory above the counts by {slope:.1f} KiB a cell."
            )
    page = f"""# Time and memory

Written by `benchmarks/scale.py`; do not edit. Every row is in `benchmarks/results/scale.csv`.

Simulated counts of {rows.genes.iloc[0]:,} genes, {N_CLUSTERS} clusters, default settings, {N_EPOCHS} epochs of each
phase and one prediction, CPU seconds of one thread (median over epochs, the first not counted). Each row is a process
of its own; its peak memory includes Python and the libraries, about {rows.peak_before_training_mib.min():,.0f} MiB with
the counts of the smallest data set loaded and nothing trained. scVI has one phase. Held-out loss: reconstruction of
{1 - TRAIN_SIZE:.0%} of the cells after the first phase. "-backed": the counts stay in an uncompressed h5ad.

{chr(10).join(lines)}

{chr(10).join(growth)}

Versions: {rows.versions.iloc[-1]}.
"""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="names separated by commas")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="numbers of cells, separated by commas")
    parser.add_argument("--again", action="store_true", help="measure rows that are there already once more")
    parser.add_argument("--table", action="store_true", help="only rewrite the page")
    parser.add_argument("--simulate", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    if arguments.simulate:
        simulate(int(arguments.simulate[0]), Path(arguments.simulate[1]))
    elif arguments.measure:
        print(json.dumps(measure(arguments.measure[0], Path(arguments.measure[1]))))
    else:
        if not arguments.table:
            sizes = [int(size) for size in arguments.sizes.split(",")]
            run(CSV, arguments.models.split(","), sizes, arguments.again)
        write_page(PAGE, pd.read_csv(CSV))


if __name__ == "__main__":
    main()
