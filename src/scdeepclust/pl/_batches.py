from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scdeepclust.pl._style import PALETTE, categories, category_colors, finish

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

# More batches than this are drawn as the largest ones and the rest.
MAX_BATCHES = 12


def batches(
    adata: AnnData,
    key: str,
    batch_key: str,
    table: pd.DataFrame | None = None,
    *,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Batches of each cluster as bars, those of all cells on top, and what a check of them found beside.

    Parameters
    ----------
    adata
        Annotated data with cluster labels.
    key
        Column of `obs` with the clusters.
    batch_key
        Column of `obs` with the batches.
    table
        Result of :func:`scdeepclust.tl.check_batches`, whose verdicts are written beside the bars.
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
        If a column is missing, or the table is of other clusters.

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.simulate_counts(300, 100, n_clusters=3, n_batches=2)
    >>> table = sdc.tl.check_batches(adata, "cell_type", "batch")
    >>> ax = sdc.pl.batches(adata, "cell_type", "batch", table)
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['all', 'type_0', 'type_1', 'type_2']
    """
    labels, of_batch = categories(adata, key), categories(adata, batch_key)
    clusters = [str(name) for name in labels.categories]
    if table is not None and (not {"verdict"} <= set(table) or not set(clusters) >= set(map(str, table.index))):
        raise ValueError("`table` must be the result of `tl.check_batches` for the same clusters.")
    known = (labels.codes >= 0) & (of_batch.codes >= 0)
    shares = np.zeros((len(clusters) + 1, len(of_batch.categories)))
    np.add.at(shares, (labels.codes[known] + 1, of_batch.codes[known]), 1)
    shares[0] = shares[1:].sum(axis=0)
    shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1)
    order = np.argsort(-shares[0], kind="stable")
    names = [str(of_batch.categories[b]) for b in order[:MAX_BATCHES]]
    colors = np.asarray(category_colors(adata, batch_key, shares.shape[1]), dtype=object)[order[:MAX_BATCHES]].tolist()
    columns = [shares[:, b] for b in order[:MAX_BATCHES]]
    if shares.shape[1] > MAX_BATCHES:
        names, colors = [*names, "others"], [*colors, "0.8"]
        columns.append(shares[:, order[MAX_BATCHES:]].sum(axis=1))
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(5.5 if table is None else 8.5, 1.4 + 0.3 * len(clusters)), layout="constrained")
    places, left = np.arange(len(clusters) + 1) + np.r_[0, np.full(len(clusters), 0.3)], np.zeros(len(clusters) + 1)
    for name, color, width in zip(names, colors, columns, strict=True):
        ax.barh(places, width, left=left, color=color, label=name, edgecolor="white", linewidth=0.5)
        left = left + width
    ax.set_yticks(places, ["all", *clusters])
    ax.invert_yaxis()
    ax.set(xlim=(0, 1), xlabel=f"share of the cells, by {batch_key}", ylabel=key)
    if table is not None:
        verdicts = {str(name): verdict for name, verdict in table["verdict"].items() if verdict}
        for place, name in zip(places[1:], clusters, strict=True):
            if name in verdicts:
                ax.annotate(verdicts[name], (1, place), xytext=(5, 0), textcoords="offset points", va="center",
                            fontsize="small", color=PALETTE[1], annotation_clip=False)  # fmt: skip
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, frameon=False, fontsize="small")
    ax.spines[["top", "right"]].set_visible(False)
    return finish(ax, show, save)
