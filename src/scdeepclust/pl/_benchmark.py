from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scdeepclust.pl._style import finish

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes

TOTALS = ("Bio conservation", "Batch correction", "Total")


def benchmark_table(
    table: pd.DataFrame,
    *,
    cmap: str = "YlGnBu",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Scores of embeddings as a heat map with their values, one row an embedding.

    Colours are the scores themselves, on one scale for all rows and columns; the best of a column is bold.

    Parameters
    ----------
    table
        Result of :func:`scdeepclust.tl.benchmark_integration`.
    cmap
        Colour map of matplotlib.
    ax
        Where to draw. Default: a new figure.
    show
        Also show the figure, as a script needs it.
    save
        Also write the figure to this file; its ending sets the format.

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
    high = np.nanmax(values, axis=0, initial=0.0)
    ax.imshow(values, cmap=cmap, vmin=0, vmax=1.6, aspect="auto")  # the pale part, on which black numbers can be read
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
    return finish(ax, show, save)
