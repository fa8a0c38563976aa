"""Rows of a results CSV, for the smaller benchmarks."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pandas as pd


def append_rows(path: Path, rows: pd.DataFrame, keys: list[str]) -> None:
    """Add rows to a CSV; where one with the same keys is there, the new one takes its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        rows = pd.concat([pd.read_csv(path), rows]).drop_duplicates(keys, keep="last")
    rows.sort_values(keys).to_csv(path.with_suffix(".part"), index=False)
    path.with_suffix(".part").replace(path)


def package_list(*more: str) -> str:
    """Versions of this package, torch, scvi-tools and others."""
    names = ("scdeepclust", "torch", "scvi-tools", *more)
    return " ".join(f"{name}={version(name)}" for name in names)


def seed_list(text: str) -> list[int]:
    """'0-4' or '0,2,5' or a mixture."""
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds.extend(range(int(first), int(last or first) + 1))
    return seeds
