"""Memory and time against the number of cells -> one CSV, then one Markdown page.

Counts of 4000 genes are simulated and stored; every measurement then runs in a process of its own, which reads them,
trains a few epochs of each phase and predicts. Peak memory is that of the whole process. One thread. With "-backed"
behind the name of a model the counts stay in their (uncompressed) file, with "-files" in four files of equal size.

    python benchmarks/scale.py                                        # what is missing
    python benchmarks/scale.py --sizes 10000,20000 --models scdeepcluster --again
    python benchmarks/scale.py --table                                # only rewrite the page
"""

from __future__ import annotations

from _threads import one_thread  # first: it sets the number of threads

# isort: split
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _charts import GREEN, ORANGE, Lead, bars, panels, titled
from _own_process import csr_mib, in_own_process, peak_mib, store_counts, time_epochs
from _report import Report, markdown, number_list

REPORT = Report(__file__, ("model", "cells"))

SIZES = (10_000, 25_000, 50_000, 100_000, 200_000)
N_GENES = 4000
N_CLUSTERS = 10
TRAIN_SIZE = 0.95
N_FILES = 4
N_EPOCHS = 4  # of each phase; the first one, which warms caches, is not counted


# ---- one measurement, in its own process -----------------------------------------------------------------------------


def as_files(path: Path) -> Any:
    """The same cells in four files, as one object that reads them."""
    import anndata
    from anndata.experimental import AnnCollection
    from scvi.dataloaders import CollectionAdapter

    whole = anndata.read_h5ad(path, backed="r")
    bounds = np.linspace(0, whole.n_obs, N_FILES + 1).astype(int)
    parts = []
    for i, (start, stop) in enumerate(zip(bounds, bounds[1:], strict=False)):
        part = whole[start:stop].to_memory()
        part.layers["counts"] = part.X  # where a collection looks for them; it wants an X too
        part.write_h5ad(path.with_stem(f"part{i}"))
        parts.append(anndata.read_h5ad(path.with_stem(f"part{i}"), backed="r"))
    return CollectionAdapter(AnnCollection(parts, join_vars="inner", join_obs="inner"))


def train_scdeepcluster(adata: Any) -> tuple[list[list[float]], float | None]:
    """End of each epoch of each phase, and the reconstruction of held-out cells after the first phase."""
    import anndata

    import scdeepclust as sdc

    layer = None if type(adata) is anndata.AnnData else "counts"
    sdc.model.SCDeepCluster.setup_anndata(adata, layer=layer)
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
    "scdeepcluster-files": train_scdeepcluster,
    "scvi": train_scvi,
}


def measure(model: str, path: Path) -> dict[str, Any]:
    import anndata
    import scvi

    one_thread()
    scvi.settings.seed = 0
    backed = model.endswith(("-backed", "-files"))
    adata = as_files(path) if model.endswith("-files") else anndata.read_h5ad(path, backed="r" if backed else None)
    before_mib = peak_mib()
    start = time.process_time()
    ends_of_phases, held_out = MODELS[model](adata)
    epochs = [float(np.median(np.diff(ends))) for ends in ends_of_phases]
    return {
        "model": model,
        "cells": adata.n_obs,
        "genes": adata.n_vars,
        "csr_mib": 0.0 if backed else round(csr_mib(adata.X), 1),
        "peak_before_training_mib": round(before_mib, 1),
        "peak_mib": round(peak_mib(), 1),
        "first_phase_s_epoch": round(epochs[0], 3),
        "last_phase_s_epoch": round(epochs[-1], 3),
        "held_out_loss": held_out,
        "total_s": round(time.process_time() - start, 1),
    }


# ---- all of them -----------------------------------------------------------------------------------------------------


def run(models: list[str], sizes: list[int], again: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for n_cells in sizes:
            missing = [model for model in models if again or not REPORT.has(model=model, cells=n_cells)]
            if not missing:
                continue
            counts = Path(folder) / "counts.h5ad"
            in_own_process(store_counts, counts, n_cells, N_GENES, n_clusters=N_CLUSTERS)
            for model in missing:
                row = in_own_process(measure, model, counts)
                REPORT.append(pd.DataFrame([row]))
                print(row, flush=True)


def lead(rows: pd.DataFrame) -> Lead:
    """Time of an epoch and memory of a process, from small to large."""
    table = rows.sort_values(["cells", "model"])
    table.index = [f"{row.cells:,} cells, {row.model}" for row in table.itertuples()]
    figure, (time, memory) = panels(2, height=0.42 * len(table) + 1.0)
    phases = table[["first_phase_s_epoch", "last_phase_s_epoch"]].set_axis(["first phase", "last phase"], axis=1)
    bars(time, phases, (ORANGE, "#F0B27F"), "CPU seconds (pale: last phase)", form="{:.1f}")
    bars(memory, table[["peak_mib"]], (GREEN,), "MiB, the whole process", form="{:,.0f}")
    memory.set_yticklabels([])
    titled(time, "Time of an epoch")
    titled(memory, "Peak memory")
    largest = rows[rows.cells == rows.cells.max()]
    seconds, mib = largest.last_phase_s_epoch, largest.peak_mib
    backed = largest[largest.model.str.endswith("-backed")]
    text = f"""\
{largest.cells.iloc[0]:,} cells of {largest.genes.iloc[0]:,} genes take {seconds.min():.0f} to {seconds.max():.0f} CPU
seconds an epoch of the last phase on one thread, and {mib.min():,.0f} to
{mib.max():,.0f} MiB in all."""
    if len(backed):
        text += f" From a file the same fit needs {backed.peak_mib.iloc[0]:,.0f} MiB."
    missing = [] if rows.model.str.contains("scvi").any() else ["scVI"]
    missing += [] if rows.model.str.contains("gmvae").any() else ["the other four models"]
    if missing:
        text += f" **What is missing:** {' and '.join(missing)} were not measured here."
    return Lead(figure, "Bars of seconds an epoch and of peak memory", text)


def write_page() -> None:
    rows = REPORT.read().sort_values(REPORT.keys)
    lines = [
        ["model", "cells", "counts as CSR, MiB", "peak memory, MiB", "of it above the CSR, MiB",
         "first phase, s an epoch", "last phase, s an epoch", "held-out loss"]
    ]  # fmt: skip
    growth = []
    for model, part in rows.groupby("model"):
        for row in part.itertuples():
            memory = [f"{mib:,.0f}" for mib in (row.csr_mib, row.peak_mib, row.peak_mib - row.csr_mib)]
            seconds = [f"{row.first_phase_s_epoch:.2f}", f"{row.last_phase_s_epoch:.2f}"]
            held_out = "" if np.isnan(row.held_out_loss) else f"{row.held_out_loss:.2f}"
            lines.append([str(model), f"{row.cells:,}", *memory, *seconds, held_out])
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
    text = f"""\
Simulated counts of {rows.genes.iloc[0]:,} genes, {N_CLUSTERS} clusters, default settings, {N_EPOCHS} epochs of each
phase and one prediction, CPU seconds of one thread (median over epochs, the first not counted). Each row is a process
of its own; its peak memory includes Python and the libraries, about {rows.peak_before_training_mib.min():,.0f} MiB with
the counts of the smallest data set loaded and nothing trained. scVI has one phase. Held-out loss: reconstruction of
{1 - TRAIN_SIZE:.0%} of the cells after the first phase. "-backed": the counts stay in an uncompressed h5ad; "-files":
in {N_FILES} of them."""
    REPORT.write("Time and memory", lead(rows), text, markdown(lines), "\n".join(growth), rows=rows)


def main() -> None:
    parser = REPORT.parser(__doc__, models=list(MODELS))
    parser.add_argument("--sizes", type=number_list, default=list(SIZES), help="numbers of cells, separated by commas")
    arguments = REPORT.parse(parser)
    if not arguments.table:
        run(arguments.models, arguments.sizes, arguments.again)
    write_page()


if __name__ == "__main__":
    main()
