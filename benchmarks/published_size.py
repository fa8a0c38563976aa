"""GMVAE at the size of the published study, on simulated counts -> one CSV, then one Markdown page.

58,861 cells, 13,431 genes, 13 batches, latent size 80, 20 components, w of 60 dimensions, M = 10 and M = 1 samples. An
epoch is measured on a few minibatches and scaled up to all of them. Each measurement runs in a process of its own. One
thread.

    python benchmarks/published_size.py            # minutes
    python benchmarks/published_size.py --table    # only rewrite the page
"""

from __future__ import annotations

from _threads import one_thread  # first: it sets the number of threads

# isort: split
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _charts import BLUE, SKY, Lead, bars, panels
from _own_process import csr_mib, in_own_process, peak_mib, store_counts, time_epochs
from _report import Report, markdown

REPORT = Report(__file__, ("samples",))

N_CELLS, N_GENES, N_BATCHES = 58_861, 13_431, 13
SIZES = {"n_latent": 80, "n_w": 60, "n_hidden": 300, "n_layers": 2, "dropout_rate": 0.05}
N_CLUSTERS = 20
BATCH_SIZE = 128
STEPS = {1: 40, 10: 10}  # minibatches measured at a time, by the number of samples M
N_REPEATS = 4  # the first one is not counted
LIMIT_GIB = 12


def measure(n_samples: int, path: Path) -> dict[str, Any]:
    import anndata
    import scvi

    import scdeepclust as sdc

    one_thread()
    scvi.settings.seed = 0
    adata = anndata.read_h5ad(path)
    sdc.model.GMVAE.setup_anndata(adata, batch_key="batch")
    # given labels: what is measured is an epoch, not the search for a start
    model = sdc.model.GMVAE(adata, N_CLUSTERS, init=adata.obs["cell_type"], n_samples=n_samples, **SIZES)
    ends = time_epochs(model)
    steps = STEPS[n_samples]
    model.train(
        pretrain_epochs=N_REPEATS,
        max_epochs=N_REPEATS,
        limit_train_batches=steps,
        batch_size=BATCH_SIZE,
        accelerator="cpu",
        enable_progress_bar=False,
    )
    share = np.ceil(adata.n_obs / BATCH_SIZE) / steps
    first, last = (float(np.median(np.diff(phase))) * share for phase in ends)
    return {
        "samples": n_samples,
        "cells": adata.n_obs,
        "genes": adata.n_vars,
        "csr_mib": round(csr_mib(adata.X)),
        "first_phase_s_epoch": round(first, 1),
        "last_phase_s_epoch": round(last, 1),
        "peak_mib": round(peak_mib()),
    }


def run(again: bool) -> None:
    missing = [n_samples for n_samples in STEPS if again or not REPORT.has(samples=n_samples)]
    if not missing:
        return
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "counts.h5ad"
        in_own_process(store_counts, counts, N_CELLS, N_GENES, n_clusters=N_CLUSTERS, n_batches=N_BATCHES)
        for n_samples in missing:
            row = in_own_process(measure, n_samples, counts)
            REPORT.append(pd.DataFrame([row]))
            print(row, flush=True)


def lead(rows: pd.DataFrame) -> Lead:
    """Seconds of an epoch of both phases."""
    table = rows.set_index("samples")[["first_phase_s_epoch", "last_phase_s_epoch"]]
    table.index = [f"M = {samples}" for samples in table.index]
    figure, (ax,) = panels(height=1.7)
    bars(ax, table, (BLUE, SKY), "CPU seconds an epoch (dark: first phase, pale: last)", form="{:.0f}")
    one, many = rows.iloc[0], rows.iloc[-1]
    text = f"""\
With the sizes of the published study an epoch of {one.cells:,.0f} cells takes {one.last_phase_s_epoch:.0f} CPU
seconds on one thread with {one.samples:.0f} sample,
and {many.last_phase_s_epoch:.0f} with {many.samples:.0f}. Memory stays at {rows.peak_mib.max() / 1024:.1f} GiB.
**What is missing:** the published code was not run beside it."""
    return Lead(figure, "Bars of seconds an epoch", text)


def write_page() -> None:
    rows = REPORT.read().sort_values("samples")
    lines = [["samples M", "first phase, s an epoch", "last phase, s an epoch", "peak memory, GiB"]]
    for row in rows.itertuples():
        seconds = [f"{row.first_phase_s_epoch:.0f}", f"{row.last_phase_s_epoch:.0f}"]
        lines.append([str(row.samples), *seconds, f"{row.peak_mib / 1024:.1f}"])
    text = f"""\
Simulated counts of {rows.cells[0]:,} cells and {rows.genes[0]:,} genes ({rows.csr_mib[0]:,} MiB as CSR) in {N_BATCHES}
batches; latent size {SIZES["n_latent"]}, w of {SIZES["n_w"]} dimensions, {N_CLUSTERS} components, minibatches of
{BATCH_SIZE} cells. The encoder has two layers of {SIZES["n_hidden"]} and the decoder one (published: 300 and 250; all
hidden layers of a model have one width here). CPU seconds of one thread, measured on {STEPS[1]} (M = 1) and {STEPS[10]}
(M = 10) minibatches at a time, median of {N_REPEATS - 1}, scaled up to an epoch; the components start from given
labels. Peak memory is that of the whole process, data included; the bar was {LIMIT_GIB} GiB."""
    REPORT.write("GMVAE at the size of the published study", lead(rows), text, markdown(lines), rows=rows)


def main() -> None:
    arguments = REPORT.parse(REPORT.parser(__doc__))
    if not arguments.table:
        run(arguments.again)
    write_page()


if __name__ == "__main__":
    main()
