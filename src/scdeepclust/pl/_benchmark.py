from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

TOTALS = ("Bio conservation", "Batch correction", "Total")


def benchmark_table(table: pd.DataFrame, *, ax: Axes | None = None, cmap: str = "YlGnBu") -> Axes:
    """Scores of embeddings as a heat map with their values, one row an embedding.

    Colours compare the embeddings within a column, from its worst to its best score.

    Parameters
    ----------
    table
        Result of :func:`scdeepclust.tl.benchmark_integration`.
    ax
        Axes to draw on; a new figure by default.
    cmap
        Colour map of matplotlib.

    Returns
    -------
    The axes.

    Raises
    ------
    ValueError
        If the table is not that of ``benchmark_integration``.

    Examples
    --------
    >>> import pandas as pd, scdeepclust as sdc
    >>> table = pd.DataFrame(
    ...     {
    ...         "iLISI": [0.5, 0.1],
    ...         "Bio conservation": [0.7, 0.8],
    ...         "Batch correction": [0.6, 0.2],
    ...         "Total": [0.66, 0.56],
    ...     },
    ...     index=["X_gmvae", "X_pca"],
    ... )
    >>> [text.get_text() for text in sdc.pl.benchmark_table(table).get_yticklabels()]
    ['X_gmvae', 'X_pca']
    """
    missing = [name for name in TOTALS if name not in table]
    if missing:
        raise ValueError(
            f"`table` lacks the columns {', '.join(missing)}; give the result of `tl.benchmark_integration`."
        )
    if ax is None:
        import matplotlib.pyplot as plt

        size = (2.0 + 0.62 * table.shape[1], 1.8 + 0.42 * len(table))
        _, ax = plt.subplots(figsize=size, layout="constrained")
    values = table.to_numpy(dtype=float)
    low, high = np.nanmin(values, axis=0, initial=1.0), np.nanmax(values, axis=0, initial=0.0)
    shade = np.where(high > low, (values - low) / np.where(high > low, high - low, 1.0), 0.5)
    shade[np.isnan(values)] = np.nan
    ax.imshow(shade, cmap=cmap, vmin=0, vmax=1.8, aspect="auto")  # the pale part, on which black numbers can be read
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            weight = "bold" if value == high[column] and len(table) > 1 else "normal"
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize="small", weight=weight)
    ax.set_xticks(range(table.shape[1]), table.columns, rotation=40, ha="left", rotation_mode="anchor")
    ax.set_yticks(range(len(table)), table.index)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    first_total = table.columns.get_loc(TOTALS[0])
    for edge in (first_total - 0.5, first_total + len(TOTALS) - 0.5):
        ax.axvline(edge, color="white", linewidth=3)
    ax.spines[:].set_visible(False)
    return ax
