"""Training on a GPU: cells a second of an epoch and of a whole fit, beside scVI on the same card.

Counts are simulated on the card. What a step moves and how long the card is busy comes from the profiler of torch; the
ceiling of the memory is that of a large copy on the same card. Without a GPU there is nothing to measure.

    python benchmarks/gpu.py                      # what is missing
    python benchmarks/gpu.py --models 'gmvae*'    # a part of it
    python benchmarks/gpu.py --table              # only rewrite the page
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd
import torch
from _charts import BLUE, Lead, bars, panels
from _report import Report, markdown
from anndata import AnnData
from scipy.sparse import csr_matrix

from scdeepclust.model._systems import SYSTEMS

REPORT = Report(__file__, ("model", "cells", "batch_size", "precision"))

N_CELLS, N_GENES, N_TYPES, DEPTH = 200_000, 2000, 20, 1000
MODELS = ("SCVI", *(system.name for system in SYSTEMS))
BATCH_SIZES = (128, 1024)
N_STEPS = 600  # of a timed epoch, at least
PRECISIONS = ("32-true", "bf16-mixed")


def counts(n_cells: int) -> AnnData:
    """Poisson counts of a few types, drawn on the card block by block."""
    generator = torch.Generator("cuda").manual_seed(0)
    profiles = torch.randn(N_TYPES, N_GENES, device="cuda", generator=generator).mul(1.5).softmax(dim=1) * DEPTH
    types = torch.randint(N_TYPES, (n_cells,), device="cuda", generator=generator)
    blocks = [torch.poisson(profiles[rows], generator=generator).to_sparse_csr() for rows in types.split(20_000)]
    parts = [
        csr_matrix(tuple(x.cpu().numpy() for x in (b.values(), b.col_indices(), b.crow_indices())), b.shape)
        for b in blocks
    ]
    from scipy.sparse import vstack

    obs = pd.DataFrame({"cell_type": types.cpu().numpy().astype(str)}, index=[f"c{i}" for i in range(n_cells)])
    return AnnData(vstack(parts, format="csr"), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)]))


def model_of(name: str, adata: AnnData) -> Any:
    import scvi

    import scdeepclust as sdc

    model_class = scvi.model.SCVI if name == "SCVI" else getattr(sdc.model, name)
    model_class.setup_anndata(adata)
    if name == "SCVI":
        return model_class(adata)
    # an epoch that ends because labels have settled is not whole
    return model_class(adata, n_clusters=N_TYPES, **({"tol": 0.0} if name == "SCDeepCluster" else {}))


def train(name: str, model: Any, max_epochs: int | None, batch_size: int, precision: str, callbacks: list) -> None:
    options: dict[str, Any] = {"accelerator": "gpu", "batch_size": batch_size, "enable_progress_bar": False}
    if precision != "32-true":
        options["precision"] = precision
    if name != "SCVI" and max_epochs is not None:
        options["pretrain_epochs"] = 1  # the last phase is the one timed
    model.train(max_epochs=max_epochs, callbacks=callbacks, **options)


class Clock:
    """A Lightning callback that notes the end of each epoch, and profiles some steps of the last one."""

    def __new__(cls):
        from lightning.pytorch.callbacks import Callback

        class Ends(Callback):
            def __init__(self):
                self.ends: list[float] = []

            def on_train_start(self, trainer, pl_module):
                torch.cuda.synchronize()
                self.ends = [time.perf_counter()]

            def on_train_epoch_end(self, trainer, pl_module):
                torch.cuda.synchronize()
                self.ends.append(time.perf_counter())

        return Ends()


def busy_seconds(model: Any, name: str, adata: AnnData, batch_size: int, n: int = 30) -> float:
    """Seconds the card computes for one step, by the profiler."""
    from torch.profiler import ProfilerActivity, profile

    module = model.module.train()
    loader = model._make_data_loader(
        adata, batch_size=batch_size, **({} if name == "SCVI" else {"load_sparse_tensor": True})
    )
    tensors = next(iter(loader))
    tensors = {key: value.to("cuda") for key, value in tensors.items()}
    optimizer = torch.optim.Adam(module.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad()
        module(tensors)[2].loss.backward()
        optimizer.step()

    for _ in range(5):
        step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(n):
            step()
        torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in profiler.key_averages()) / n / 1e6


def copy_bandwidth() -> float:
    """Bytes a second of a large copy on the card, read and written."""
    x = torch.rand(2**30, device="cuda")
    y = torch.empty_like(x)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(10):
        y.copy_(x)
    torch.cuda.synchronize()
    return 10 * 2 * x.nbytes / (time.perf_counter() - started)


def measure(name: str, adata: AnnData, batch_size: int, precision: str, whole_fit: bool) -> pd.DataFrame:
    import scvi
    from sklearn.metrics import adjusted_rand_score

    scvi.settings.seed = 0
    small = adata[: batch_size * N_STEPS].copy() if batch_size * N_STEPS < adata.n_obs else adata
    model, clock = model_of(name, small), Clock()
    train(name, model, 3, batch_size, precision, [clock])
    epoch = float(np.median(np.diff(clock.ends)[1:]))
    n_steps = int(np.ceil(small.n_obs / batch_size))
    row: dict[str, Any] = {
        "model": name, "cells": adata.n_obs, "batch_size": batch_size, "precision": precision,
        "ms_a_step": 1e3 * epoch / n_steps, "cells_a_s": small.n_obs / epoch,
        "busy_ms_a_step": 1e3 * busy_seconds(model, name, small, batch_size),
        "fit_s": np.nan, "fit_steps": np.nan, "ari": np.nan, "card": torch.cuda.get_device_name(0),
        "copy_tb_s": copy_bandwidth() / 1e12, "peak_mib": torch.cuda.max_memory_allocated() / 2**20,
    }  # fmt: skip
    if whole_fit:
        model, clock = model_of(name, adata), Clock()
        started = time.perf_counter()
        train(name, model, None, batch_size, precision, [clock])
        torch.cuda.synchronize()
        row["fit_s"] = time.perf_counter() - started
        if name != "SCVI":
            row["fit_steps"] = sum(n for _, n in model.phases_) * int(np.ceil(adata.n_obs / batch_size))
            row["ari"] = adjusted_rand_score(adata.obs["cell_type"], model.predict())
    return pd.DataFrame([row])


def lead(rows: pd.DataFrame) -> Lead:
    """Milliseconds of a step."""
    table = rows.sort_values(["batch_size", "precision", "ms_a_step"])
    table.index = [f"{row.model}, {row.batch_size} cells, {row.precision}" for row in table.itertuples()]
    figure, (ax,) = panels(height=0.3 * len(table) + 0.9)
    bars(ax, table[["ms_a_step"]], (BLUE,), "ms a step, loading included", form="{:.1f}")
    busy = (rows.busy_ms_a_step / rows.ms_a_step).clip(upper=1)
    scvi = rows[rows.model == "SCVI"].set_index(["batch_size", "precision"]).ms_a_step
    ours = rows[rows.model != "SCVI"].set_index(["batch_size", "precision"])
    ratio = (scvi.reindex(ours.index) / ours.ms_a_step).set_axis(ours.model)
    slower = ", ".join(f"`{name}` {value:.1f}" for name, value in ratio[ratio < 0.95].items())
    text = f"""\
scVI takes {ratio.min():.1f} to {ratio.max():.1f} times the time of a step of our models. The card computes in
{busy.min():.0%} to {busy.max():.0%} of
that time, and waits for the rest. **What is lost:**
{"slower than scVI by that ratio: " + slower if slower else "nothing in this table"}."""
    return Lead(figure, "Bars of milliseconds a step by model", text)


def page(rows: pd.DataFrame) -> None:
    if rows.empty:
        print("no rows yet, no page written")
        return
    scvi = rows[rows.model == "SCVI"].set_index("batch_size").ms_a_step
    lines = [["model", "cells a step", "precision", "ms a step", "scVI / this", "card busy", "whole fit, s", "ARI"]]
    for row in rows.sort_values(["batch_size", "model", "precision"]).itertuples():
        ratio = scvi.get(row.batch_size, np.nan) / row.ms_a_step
        whole = "-" if np.isnan(row.fit_s) else f"{row.fit_s:.0f} ({row.fit_steps:,.0f} steps)"
        lines.append(
            [
                row.model, f"{row.batch_size}", row.precision, f"{row.ms_a_step:.2f}", f"{ratio:.1f}",
                f"{min(1.0, row.busy_ms_a_step / row.ms_a_step):.0%}", whole,
                "-" if np.isnan(row.ari) else f"{row.ari:.2f}",
            ]
        )  # fmt: skip
    first = rows.iloc[0]
    REPORT.write(
        "Training on a GPU",
        lead(rows),
        f"{first.cells:,.0f} simulated cells x {N_GENES:,} genes on one {first.card}, whose memory copies at "
        f"{first.copy_tb_s:.1f} TB/s. A step is timed over whole epochs of the last phase, with loading and Lightning; "
        "*card busy* is the share of that time in which the card computes, by the profiler. The whole fit is that of "
        "the defaults, from counts to labels. Models without a row were not measured.",
        markdown(lines),
        rows=rows,
    )


def main() -> None:
    parser = REPORT.parser(__doc__, models=MODELS)
    arguments = REPORT.parse(parser)
    if not arguments.table:
        if not torch.cuda.is_available():
            raise SystemExit("there is no GPU here: nothing measured (--table rewrites the page)")
        adata = counts(N_CELLS)
        for batch_size in BATCH_SIZES:
            for precision in PRECISIONS:
                for name in arguments.models:
                    if precision != "32-true" and name not in ("GMVAE", "SCDeepCluster"):
                        continue
                    known = {"model": name, "cells": adata.n_obs, "batch_size": batch_size, "precision": precision}
                    if REPORT.has(**known) and not arguments.again:
                        continue
                    whole = precision == "32-true" and batch_size == 128 and name in ("GMVAE", "SCDeepCluster")
                    row = measure(name, adata, batch_size, precision, whole)
                    REPORT.append(row)
                    print(row.drop(columns="card").to_string(index=False), flush=True)
    page(REPORT.read())


if __name__ == "__main__":
    main()
