"""The charts that the pages start with: rows of dots, bars, and how they look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, as in the package; baselines are grey.
BLUE, ORANGE, GREEN, PINK, SKY, YELLOW, GREY = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#777777",
)  # fmt: skip
MODEL_COLORS = {"scdeepcluster": ORANGE, "gmvae": BLUE, "idc": GREEN, "mfcvae": PINK, "somvae": YELLOW}

STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handletextpad": 0.3,
    "figure.facecolor": "white",
    "svg.hashsalt": "scdeepclust",  # the same rows make the same file
}
WIDTH = 7.4  # inches: that of the text of a page


class Lead(NamedTuple):
    """What a page starts with: a chart, what it shows for who cannot see it, and what it says."""

    figure: Figure
    alt: str
    text: str


class Mark(NamedTuple):
    """How the dots of a method look."""

    name: str
    color: str
    marker: str = "o"
    filled: bool = True


def panels(n: int = 1, height: float = 3.0, widths: Sequence[float] | None = None) -> tuple[Figure, list[Axes]]:
    """A figure as wide as the text, with `n` axes side by side."""
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots(1, n, squeeze=False, width_ratios=widths)[0]
    return figure, list(axes)


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def dots(ax: Axes, table: pd.DataFrame, marks: Mapping[str, Mark], xlabel: str) -> None:
    """One row for each row of the table, from the top; one dot a column. A line spans the dots of a row."""
    with mpl.rc_context(STYLE):
        table = table[[column for column in marks if column in table]]
        y = np.arange(len(table))[::-1]
        ax.hlines(y, table.min(axis=1), table.max(axis=1), color="#dddddd", linewidth=1, zorder=1)
        for column in table:
            mark = marks[column]
            face = mark.color if mark.filled else "white"
            ax.scatter(
                table[column], y, s=26, marker=mark.marker, facecolor=face, edgecolor=mark.color, linewidths=1.1,
                zorder=3 if mark.filled else 2, label=mark.name,
            )  # fmt: skip
        ax.set_yticks(y, [str(name) for name in table.index])
        ax.set_ylim(-0.6, len(table) - 0.4)
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel(xlabel)
        ax.grid(axis="x", color="#eeeeee")
        ax.set_axisbelow(True)


def bars(
    ax: Axes,
    table: pd.DataFrame,
    colors: Sequence[str],
    xlabel: str,
    *,
    log: bool = False,
    form: str = "{:.2f}",
    error: tuple[pd.DataFrame, pd.DataFrame] | None = None,
) -> None:
    """Groups of lying bars: a group a row, from the top, a bar a column, with its number at the end.

    `error`: lower and upper ends, as `table`.
    """
    with mpl.rc_context(STYLE):
        n = table.shape[1]
        y, height = np.arange(len(table))[::-1], 0.8 / n
        for i, (column, color) in enumerate(zip(table, colors, strict=False)):
            place = y + (n - 1) / 2 * height - i * height
            ax.barh(place, table[column], 0.9 * height, color=color, label=str(column), linewidth=0)
            ends = table[column]
            if error is not None:
                low, high = (end[column] for end in error)
                ax.hlines(place, low, high, color="#222222", linewidth=1)
                ends = high
            for at, end, value in zip(place, ends, table[column], strict=True):
                if not np.isnan(value):
                    ax.annotate(form.format(value), (end, at), (3, 0), textcoords="offset points", va="center",
                                fontsize=7, color="#333333")  # fmt: skip
        ax.set_yticks(y, [str(name) for name in table.index])
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel(xlabel)
        if log:
            ax.set_xscale("log")
        ax.margins(x=0.12)


def legend_below(figure: Figure, ax: Axes, n_columns: int = 4) -> None:
    """The legend of `ax` under the figure."""
    with mpl.rc_context(STYLE):
        handles, labels = ax.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=n_columns, columnspacing=1.2)


def legend_in(ax: Axes, **where: object) -> None:
    with mpl.rc_context(STYLE):
        ax.legend(**where)


def titled(ax: Axes, title: str) -> None:
    with mpl.rc_context(STYLE):
        ax.set_title(title)
