"""Colours and lookups that all drawings share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from anndata import AnnData

# Okabe and Ito's palette, told apart with every kind of colour vision, without its yellow (too pale on white).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#555555")


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
