"""Colours and lookups that all drawings share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

# Okabe and Ito's palette, told apart with every kind of colour vision, without its yellow (too pale on white).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#555555")

# From doubtful or little to sure or much, seen on white and on black.
DOUBT, SURE = PALETTE[1], "#9DB4C0"

# Characters of a name; longer ones would hide what they name, and go into a legend.
LONGEST_ON_PLOT = 8


class Panels(dict[str, "Axes"]):
    """Axes of a figure of several panels, by the name of the panel."""

    @property
    def figure(self) -> Figure:
        """The figure that they are on."""
        return figure_of(next(iter(self.values())))

    def savefig(self, *args: Any, **kwargs: Any) -> None:
        """As that of the figure."""
        self.figure.savefig(*args, **kwargs)


def figure_of(drawn: Axes | Panels) -> Figure:
    """The whole figure of what was drawn, also where it is a part of one."""
    if isinstance(drawn, Panels):
        return drawn.figure
    return drawn.get_figure(root=True)  # type: ignore[return-value]


Drawn = TypeVar("Drawn", "Axes", Panels)


def finish(drawn: Drawn, show: bool | None, save: str | Path | None) -> Drawn:
    """What every drawing ends with: a file, a window, and what was drawn on."""
    if save is not None:
        figure_of(drawn).savefig(save, dpi=150, bbox_inches="tight")
    if show:
        import matplotlib.pyplot as plt

        plt.show()
    return drawn


def given_axes(ax: Axes | Sequence[Axes], names: Sequence[str]) -> list[Axes]:
    """Axes that a user gave for panels of these names; ValueError if it is another number."""
    axes = list(np.atleast_1d(np.asarray(ax, dtype=object)).ravel())
    if len(axes) != len(names):
        raise ValueError(f"ax: {len(axes)} axes for {len(names)} panels ({', '.join(names)})")
    return axes


def category_colors(adata: AnnData, key: str, n: int) -> list[str]:
    """One colour a category: those scanpy stored for this column, else the palette, then its darker and paler shades.

    More than 21 categories share colours; their names are written on the plot.
    """
    from matplotlib.colors import to_hex, to_rgb

    stored = adata.uns.get(f"{key}_colors", ())
    if len(stored) >= n:
        return [str(color) for color in stored[:n]]
    base = np.array([to_rgb(color) for color in PALETTE])
    shades = np.concatenate([base, 0.55 * base, 0.5 + 0.5 * base])
    return [to_hex(shades[i % len(shades)]) for i in range(n)]


def categories(adata: AnnData, key: str) -> pd.Categorical:
    """Column `key` of obs as a categorical; ValueError if there is none."""
    column = obs_column(adata, key)
    return column.array if isinstance(column.dtype, pd.CategoricalDtype) else pd.Categorical(column)


def obs_column(adata: AnnData, key: str) -> pd.Series:
    """Column `key` of obs; ValueError if there is none."""
    if key not in adata.obs:
        raise ValueError(
            f"obs has no column {key!r}; it has {', '.join(adata.obs.columns) or 'none'}. "
            "Results are stored by `model.write_back(adata)`"
        )
    return adata.obs[key]


def written(ax: Axes, x: float, y: float, name: str, **style: Any) -> Text:
    """A name on the drawing, with a halo on which it can be read."""
    from matplotlib.patheffects import withStroke

    text = ax.text(x, y, name, **({"ha": "center", "va": "center", "fontsize": "small"} | style))
    text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    return text


def spread(ax: Axes, texts: list[Text]) -> None:
    """Push overlapping texts apart, up and down."""
    figure_of(ax).draw_without_rendering()  # only the layout decides how large a text is in units of the data
    boxes = np.array([text.get_window_extent().extents for text in texts])  # left, bottom, right, top in pixels
    shift = np.zeros(len(texts))
    for _ in range(100):
        moved = False
        for i in range(len(texts)):
            for j in range(i + 1, len(texts)):
                overlap = np.minimum(boxes[i, 2:], boxes[j, 2:]) - np.maximum(boxes[i, :2], boxes[j, :2])
                if (overlap > 0).all():
                    step = (overlap[1] / 2 + 0.5) * (1 if boxes[i, 1] >= boxes[j, 1] else -1)
                    for k, by in ((i, step), (j, -step)):
                        boxes[k, [1, 3]] += by
                        shift[k] += by
                    moved = True
        if not moved:
            break
    to_data = ax.transData.inverted()
    for text, by in zip(texts, shift, strict=True):
        x, y = ax.transData.transform(text.get_position())
        text.set_position(tuple(to_data.transform((x, y + by))))


def legend_beside(
    ax: Axes, colors: dict[str, Any], corner: Literal["upper left", "lower left"], title: str | None = None
) -> None:
    """Legend to the right of the axes: the search for a free place inside takes seconds with many cells."""
    handles = [ax.scatter([], [], s=25, color=color, linewidths=0, label=name) for name, color in colors.items()]
    earlier = ax.get_legend()
    ax.legend(
        handles=handles,
        title=title,
        loc=corner,
        bbox_to_anchor=(1.0, 1.0 if "upper" in corner else 0.0),
        frameon=False,
        fontsize="small",
        title_fontsize="small",
        handletextpad=0.3,
    )
    if earlier is not None:
        ax.add_artist(earlier)  # the new legend would replace it
