"""Claims about one model: each a text and a function of the seed that returns numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from _report import Report, markdown

# Text, and numbers by what they are; no numbers where data are missing.
Claim = tuple[str, Callable[[int], dict[str, float]]]

KEYS = ("claim", "seed")


def run(report: Report, doc: str | None, claims: dict[str, Claim]) -> None:
    """Measure what the options of the command line ask for."""
    arguments = report.parse(report.parser(doc, claims=list(claims)))
    for claim in [] if arguments.table else arguments.claims:
        for seed in arguments.seeds:
            if report.has(claim=claim, seed=seed) and not arguments.again:
                continue
            scores = claims[claim][1](seed)
            if not scores:
                continue
            rows = {"claim": claim, "seed": seed, "quantity": list(scores), "value": list(scores.values())}
            report.append(pd.DataFrame(rows).round(4))
            print(claim, seed, {name: round(float(value), 3) for name, value in scores.items()}, flush=True)


def sections(rows: pd.DataFrame, claims: dict[str, Claim]) -> list[str]:
    """One section a claim that was measured: its text, and each number over the seeds."""
    found = []
    for claim, (text, _) in claims.items():
        part = rows[rows.claim == claim]
        if part.empty:
            continue
        values = part.groupby("quantity", sort=False)["value"].agg(["mean", "std", "min", "max"])
        lines = [["quantity", "mean", "sd", "smallest", "largest"]]
        for name, row in values.iterrows():
            lines.append([str(name), *("-" if np.isnan(value) else f"{value:.3f}" for value in row)])
        found.append(f"## {claim}\n\n{text} Seeds: {part.seed.nunique()}.\n\n{markdown(lines)}")
    return found
