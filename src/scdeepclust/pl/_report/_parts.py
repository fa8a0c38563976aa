"""What sections of a report are made of."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from scdeepclust.pl._report._svg import Picture


@dataclass
class Table:
    """A table of the page with its csv: numbers as text, bars for shares."""

    name: str
    data: pd.DataFrame
    caption: str = ""
    bars: tuple[str, ...] = ()
    whole: pd.DataFrame | None = None  # what the csv holds, where the page shows only its first rows

    @property
    def link(self) -> str:
        """The csv as an address that needs no network."""
        text = (self.data if self.whole is None else self.whole).to_csv(float_format="%.6g")
        return "data:text/csv;charset=utf-8;base64," + base64.b64encode(text.encode()).decode()

    @property
    def file(self) -> str:
        """Name for the csv."""
        return re.sub(r"\W+", "_", self.name.lower()).strip("_") + ".csv"

    @property
    def head(self) -> list[str]:
        """Names of the columns, that of the rows first."""
        return [str(self.data.index.name or ""), *map(str, self.data.columns)]

    @property
    def rows(self) -> Iterator[list[dict[str, Any]]]:
        """Cells as text, with the length of their bar."""
        for name, row in zip(self.data.index, self.data.to_numpy(dtype=object), strict=True):
            cells: list[dict[str, Any]] = [{"text": str(name)}]
            for column, value in zip(self.data.columns, row, strict=True):
                bar = column in self.bars and pd.notna(value)
                cells.append(
                    {
                        "text": f"{value:.2f}" if bar else as_text(value),
                        "number": isinstance(value, int | float | np.number),
                        "bar": round(100 * float(np.clip(value, 0, 1)), 1) if bar else None,
                        "mark": str(value).replace(" ", "-") if column == "verdict" else None,
                    }
                )
            yield cells


def as_text(value: Any) -> str:
    """Three digits of a number, "-" for a missing one."""
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return "-"
    if isinstance(value, int | np.integer) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


@dataclass
class Section:
    """A heading with what is below it."""

    title: str
    text: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    code: str = ""

    @property
    def anchor(self) -> str:
        """Where links within the page go."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")
