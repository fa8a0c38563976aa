"""How much faster than the plain way: kernels, layers, steps and epochs -> one CSV, then one Markdown page.

Both sides of a comparison do the same work on the same data and take turns in one process, on one thread; a round is
CPU time, the ratio is taken round by round, and a gate is passed when the *lower quartile* of the ratios reaches it.
Pin the process to a core for quiet numbers:

    taskset -c 1 python benchmarks/speed.py                                     # what is missing
    taskset -c 1 python benchmarks/speed.py --sections kernels,linear --again   # these sections, again
    python benchmarks/speed.py --table                                          # only write the page
"""

from __future__ import annotations

from _threads import one_thread  # first: it sets the number of threads

# isort: split
import inspect
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from _charts import BLUE, Lead, bars, panels
from _report import Report, markdown
from _speed_cases import SECTIONS, Case, onednn_is_faster

REPORT = Report(__file__, ("section",))

N_WARMUP, N_ROUNDS = 3, 15


def measure(case: Case) -> dict[str, object]:
    """Rounds of both sides in turn; CPU milliseconds of a round and their ratio."""
    n_warmup, n_rounds = (1, case.n_rounds) if case.n_rounds else (N_WARMUP, N_ROUNDS)
    times = np.array([[cpu_ms(case.theirs), cpu_ms(case.ours)] for _ in range(n_warmup + n_rounds)])[n_warmup:]
    theirs, ours = np.median(times, axis=0) / case.n_repeats
    if case.is_difference:  # what ours costs more than theirs, in ms; smaller is better
        low, middle, high = np.quantile((times[:, 1] - times[:, 0]) / case.n_repeats, [0.25, 0.5, 0.75])
        passed = high <= case.gate
    else:
        low, middle, high = np.quantile(times[:, 0] / times[:, 1], [0.25, 0.5, 0.75])
        passed = low >= case.gate
    row = {"theirs_ms": theirs, "ours_ms": ours, "low": low, "middle": middle, "high": high}
    row = {key: round(float(value), 3) for key, value in row.items()}
    checks = {name: check() for name, check in case.checks.items()}
    passed = bool(passed and all(found <= bound for found, bound in checks.values()))
    facts = "; ".join(f"{name} {found:.2g} (at most {bound:g})" for name, (found, bound) in checks.items())
    return {
        "name": case.name,
        "kind": "ms more" if case.is_difference else "times faster",
        **row,
        "gate": case.gate,
        "target": case.target,
        "checks": facts,
        "passed": passed,
    }


def cpu_ms(function: Callable[[], object]) -> float:
    start = time.process_time()
    result = function()
    return result if isinstance(result, float) else 1000 * (time.process_time() - start)


# ---- the machine -----------------------------------------------------------------------------------------------------


def machine() -> dict[str, str]:
    """What the numbers depend on: processor, load, speed of both routes of a matrix product."""
    from scdeepclust.nn import _linear

    x, weight = torch.randn(512, 2048), torch.randn(512, 2048)
    default = gflops(lambda: x @ weight.T)
    onednn = gflops(lambda: _linear._onednn(x, weight)) if _linear._operator_works() else float("nan")
    return {
        "cpu": cpu_model(),
        "load": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "gflops": f"{default:.0f} default, {onednn:.0f} oneDNN ({'taken' if onednn_is_faster() else 'not taken'})",
    }


def gflops(product: Callable[[], object]) -> float:
    return 2 * 512 * 512 * 2048 / min(cpu_ms(product) for _ in range(20)) / 1e6


def cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


# ---- all of them -----------------------------------------------------------------------------------------------------


def run(names: list[str], again: bool) -> None:
    for section in names:
        if REPORT.has(section=section) and not again:
            continue
        before = machine()
        print(f"{section}: {before['cpu']}, load {before['load']}, GFLOP/s {before['gflops']}", flush=True)
        rows = []
        for case in SECTIONS[section]():
            row = measure(case)
            print(f"  {summary(row)}", flush=True)
            rows.append({"section": section, **row, **before})
        REPORT.append(pd.DataFrame(rows))


def summary(row: dict[str, object]) -> str:
    spread = f"{row['middle']:.2f} [{row['low']:.2f}, {row['high']:.2f}] {row['kind']}"
    verdict = "passes" if row["passed"] else "FAILS"
    return f"{row['name']}: {row['theirs_ms']:.2f} -> {row['ours_ms']:.2f} ms, {spread}, {verdict} {row['checks']}"


def lead(rows: pd.DataFrame) -> Lead:
    """How many times faster each part is, with its gate."""
    faster = rows[rows.kind == "times faster"].set_index("name")
    figure, (ax,) = panels(height=0.27 * len(faster) + 0.8)
    table = faster[["middle"]]
    ends = tuple(faster[[end]].set_axis(["middle"], axis=1) for end in ("low", "high"))
    bars(ax, table, (BLUE,), "times faster than the plain form (line: quartiles; tick: what is required)", log=True,
         form="{:.1f}x", error=ends)  # fmt: skip
    ax.scatter(faster.gate, np.arange(len(faster))[::-1], marker="|", s=90, color="#D55E00", zorder=4)
    ax.set_xlim(1, 2 * faster.high.max())
    ax.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    ax.minorticks_off()
    epochs = faster[faster.section == "epochs"].middle
    text = f"""\
A whole epoch takes {epochs.min():.1f} to {epochs.max():.1f} times less than with the parts of scVI and PyTorch that
it is made of; single
parts between {faster.middle.min():.1f} and {faster.middle.max():.1f} times. {int(rows.passed.sum())} of {len(rows)}
rows reach the gate that they have to reach. **What is lost:**
{loss(rows)}"""
    return Lead(figure, "Bars of how many times faster each part is than its plain form", text)


def loss(rows: pd.DataFrame) -> str:
    more = rows[rows.kind != "times faster"]
    below = rows[(rows.kind == "times faster") & (rows.middle < rows.target.astype(float))]
    texts = [f"{row.name} costs {row.middle:.1f} ms more" for row in more.itertuples(index=False)]
    if len(below):
        texts.append(f"{len(below)} rows are below the target that was set for them")
    return ", and ".join(texts) + "."


def write_page(rows: pd.DataFrame) -> None:
    sections = []
    order = {section: place for place, section in enumerate(SECTIONS)}
    for section, part in sorted(rows.fillna("").groupby("section"), key=lambda item: order[item[0]]):
        first = part.iloc[0]
        lines = [["", "plain, ms", "here, ms", "median [quartiles]", "gate", "target", "also", ""]]
        for row in part.itertuples():
            unit, sign = ("x", "≥") if row.kind == "times faster" else (" ms more", "≤")
            ratio = f"{row.middle:.2f}{unit} [{row.low:.2f}, {row.high:.2f}]"
            bounds = [f"{sign} {row.gate:g}", f"{sign} {row.target:g}" if row.target else ""]
            verdict = "passes" if row.passed else "**fails**"
            lines.append([row.name, f"{row.theirs_ms:.2f}", f"{row.ours_ms:.2f}", ratio, *bounds, row.checks, verdict])
        sections += [
            f"## {section.capitalize()}",
            str(inspect.getdoc(SECTIONS[section])),
            markdown(lines),
            f"Load {first.load} (1, 5, 15 minutes); GFLOP/s of a matrix product: {first.gflops}.",
        ]
    text = f"""\
Same data, sizes, minibatch and `float32` on both sides, which take turns in one process on one thread. CPU time,
{N_ROUNDS} rounds after {N_WARMUP} for warming up (fewer for epochs); the ratio is taken round by round. A row passes
when its lower quartile reaches the gate, and what stands under *also* holds."""
    REPORT.write("Speed", lead(rows), text, *sections, f"Processor: {rows.cpu.iloc[-1]}.", rows=rows)


def main() -> None:
    arguments = REPORT.parse(REPORT.parser(__doc__, sections=list(SECTIONS)))
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    one_thread()
    if not arguments.table:
        run(arguments.sections, arguments.again)
    rows = REPORT.read()
    write_page(rows)
    if not (arguments.table or rows.passed.all()):
        raise SystemExit(f"below the gate: {', '.join(rows.name[~rows.passed])}")


if __name__ == "__main__":
    main()
