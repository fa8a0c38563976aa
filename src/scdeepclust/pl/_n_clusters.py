from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scdeepclust.pl._style import PALETTE, finish

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes


def n_clusters(
    table: pd.DataFrame, *, ax: Axes | None = None, show: bool | None = None, save: str | Path | None = None
) -> Axes:
    """Evidence for each number of clusters: how far apart the closest two are, with the shortlist marked.

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
    The axes, with the separation on a log scale. Points are full where one population does not explain the weakest
    split (p at most .05); lines mark the shortlist, the first of it in full.

    Raises
    ------
    ValueError
        If the table is not that of ``estimate_n_clusters``.

    Examples
    --------
    >>> import pandas as pd, scdeepclust as sdc
    >>> table = pd.DataFrame(
    ...     {"separation": [float("nan"), 9.0, 5.0, 2.0], "p": [0.0, 0.0, 1e-9, 0.8], "rank": [0, 0, 1, 0]},
    ...     index=pd.Index([1, 2, 3, 4], name="n_clusters"),
    ... )
    >>> sdc.pl.n_clusters(table).get_xlabel()
    'number of clusters'
    """
    missing = {"separation", "p", "rank"} - set(table)
    if missing:
        raise ValueError(
            f"`table` lacks the columns {', '.join(sorted(missing))}; give the result of `tl.estimate_n_clusters`."
        )
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(5.5, 3.5), layout="constrained")
    more = table[table.index > 1]
    apart = more["separation"].clip(lower=0.5).to_numpy()
    stands = (more["p"] <= 0.05).to_numpy()
    ax.plot(more.index, apart, "-", color="0.75", linewidth=1, zorder=1)
    for chosen, face, label in ((stands, PALETTE[0], "with evidence"), (~stands, "white", "without")):
        if chosen.any():
            ax.scatter(more.index[chosen], apart[chosen], s=36, facecolor=face, edgecolor=PALETTE[0], zorder=3,
                       label=label)  # fmt: skip
    ax.set(xlabel="number of clusters", ylabel="separation of the closest two (sd)", yscale="log")
    ticks = [tick for tick in (0.5, 1, 2, 3.5, 5, 10, 20, 50, 100) if tick <= apart.max(initial=1) * 1.5]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_yticks([], minor=True)
    ax.set_xticks(np.unique(np.linspace(1, max(table.index.max(), 2), 12).round().astype(int)))
    for number, rank in table["rank"][table["rank"] > 0].sort_values().items():
        ax.axvline(number, color=PALETTE[1], linewidth=1, linestyle="-" if rank == 1 else ":", zorder=0)
        ax.annotate(str(number), (number, 1.01), xycoords=("data", "axes fraction"), ha="center", va="bottom",
                    weight="bold" if rank == 1 else "normal")  # fmt: skip
    if len(more):
        ax.legend(title="weakest split", fontsize="small", title_fontsize="small", frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return finish(ax, show, save)
