from __future__ import annotations

from typing import TYPE_CHECKING

from scdeepclust.pl._style import PALETTE, finish

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes


def n_clusters(
    table: pd.DataFrame, *, ax: Axes | None = None, show: bool | None = None, save: str | Path | None = None
) -> Axes:
    """Separation and stability of the clusters against their number, with the shortlist marked.

    Parameters
    ----------
    table
        Result of :func:`scdeepclust.tl.estimate_n_clusters`.
    ax
        Where to draw. Default: a new figure.
    show
        Also show the figure, as a script needs it.
    save
        Also write the figure to this file; its ending sets the format.

    Returns
    -------
    The axes with the separation, on a log scale; the stability has an axis of its own on the right.

    Raises
    ------
    ValueError
        If the table is not that of ``estimate_n_clusters``.

    Examples
    --------
    >>> import pandas as pd, scdeepclust as sdc
    >>> table = pd.DataFrame(
    ...     {"separation": [0.5, 0.2, 0.01], "gap": [0.9, 3.0, 0.2], "stability": [1.0, 0.9, 0.5], "rank": [2, 1, 0]},
    ...     index=pd.Index([2, 3, 4], name="n_clusters"),
    ... )
    >>> sdc.pl.n_clusters(table).get_xlabel()
    'number of clusters'
    """
    missing = {"separation", "stability", "rank"} - set(table)
    if missing:
        raise ValueError(
            f"`table` lacks the columns {', '.join(sorted(missing))}; give the result of `tl.estimate_n_clusters`."
        )
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(5.5, 3.5), layout="constrained")
    separation, stability = PALETTE[0], PALETTE[1]
    ax.plot(table.index, table["separation"], "o-", color=separation, markersize=3)
    ax.set(xlabel="number of clusters", yscale="log")
    ax.set_ylabel("separation of the closest two", color=separation)
    right = ax.twinx()
    right.plot(table.index, table["stability"], "s-", color=stability, markersize=3, alpha=0.8)
    right.set_ylim(0, 1.03)
    right.set_ylabel("stability (adjusted Rand index)", color=stability)
    for number, rank in table["rank"][table["rank"] > 0].sort_values().items():
        ax.axvline(number, color=PALETTE[6], linewidth=1, linestyle="-" if rank == 1 else ":")
        ax.annotate(str(number), (number, 1.01), xycoords=("data", "axes fraction"), ha="center", va="bottom",
                    weight="bold" if rank == 1 else "normal")  # fmt: skip
    return finish(ax, show, save)
