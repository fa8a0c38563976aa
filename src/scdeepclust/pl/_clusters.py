from __future__ import annotations

from typing import TYPE_CHECKING

from scdeepclust.pl._style import categories, category_colors, finish

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes


def cluster_sizes(
    adata: AnnData, key: str, *, ax: Axes | None = None, show: bool | None = None, save: str | Path | None = None
) -> Axes:
    """Number of cells of each cluster, as bars with the number and the share beside them.

    Parameters
    ----------
    adata
        Annotated data with cluster labels.
    key
        Column of `obs` with the labels.
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
        If `obs` has no column `key`.

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.simulate_counts(200, 100, n_clusters=3)
    >>> ax = sdc.pl.cluster_sizes(adata, "cell_type")
    >>> len(ax.patches)
    3
    """
    labels = categories(adata, key)
    sizes = labels.value_counts().loc[labels.categories]  # in the order of the categories, without missing labels
    names = [str(name) for name in labels.categories]
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(4.5, 0.8 + 0.28 * len(names)), layout="constrained")
    bars = ax.barh(names, sizes, color=category_colors(adata, key, len(names)))
    ax.bar_label(bars, [f"{n:,}  ({n / adata.n_obs:.1%})" for n in sizes], padding=3, fontsize="small")
    ax.margins(x=0.25, y=0.02)  # room for the numbers
    ax.invert_yaxis()  # first category on top
    ax.set(xlabel="cells", title=key)
    ax.spines[["top", "right"]].set_visible(False)
    return finish(ax, show, save)
