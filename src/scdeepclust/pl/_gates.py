from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scdeepclust._keys import ResultKeys
from scdeepclust.pl._style import PALETTE, Panels, finish
from scdeepclust.tl._gated import GatedData

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes


def gates(
    adata: AnnData,
    key: str = "idc",
    *,
    n_genes: int = 4,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Panels:
    """Genes that each cluster was read from, as a dot plot: clusters x genes.

    The size of a dot is the share of cells whose gate is open, its colour the mean of gate times standardised
    expression: how far the gene moves the cells of the cluster away from the average cell (blue: it is expressed less
    than there, and that was looked at).

    Parameters
    ----------
    adata
        Data after `write_back` of an :class:`~scdeepclust.model.IDC` model.
    key
        Key of the results.
    n_genes
        Genes of each cluster, the first ones of :func:`scdeepclust.tl.rank_gates`. A gene is drawn once, under the
        first cluster that has it.
    ax
        Where to draw: the room of one axes, for dots and legends. Default: a new figure.
    show
        Also show the figure, as a script needs it.
    save
        Also write the figure to this file; its ending sets the format.

    Returns
    -------
    The axes of :class:`scanpy.pl.DotPlot` by name; `"mainplot_ax"` holds the dots.

    Raises
    ------
    ValueError
        If `adata` has no gates, or `n_genes` is not positive.

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.simulate_counts(300, 200, n_clusters=3, depth=200)
    >>> sdc.model.IDC.setup_anndata(adata)
    >>> model = sdc.model.IDC(adata, n_clusters=3, target_sparsity=0.1)
    >>> model.train(pretrain_epochs=40, max_epochs=2, enable_progress_bar=False)
    >>> model.write_back(adata)
    >>> axes = sdc.pl.gates(adata)
    """
    import scanpy as sc
    from anndata import AnnData

    if n_genes < 1:
        raise ValueError(f"`n_genes` must be at least 1, found {n_genes}.")
    data = GatedData(adata, key)
    _, opened, contribution = data.cluster_means()
    shown: dict[str, list[str]] = {}
    drawn: set[str] = set()
    for cluster in data.labels.categories:
        first = contribution[cluster].sort_values(ascending=False, kind="stable").index[:n_genes]
        shown[str(cluster)] = [gene for gene in first if gene not in drawn]
        drawn |= set(first)
    genes = [gene for group in shown.values() for gene in group]
    labels = pd.Categorical(data.labels.astype(str), categories=[str(c) for c in data.labels.categories])
    # DotPlot draws the tables that it is given; it wants data with these names
    names = AnnData(np.zeros((len(labels), len(genes)), dtype=np.float32), obs={key: labels})
    names.var_names = genes
    size, color = (table.loc[genes].T.set_axis(labels.categories) for table in (opened, contribution))
    top = float(color.max(axis=1).median())  # one rare cluster may be far off the scale of the others
    plot = sc.pl.DotPlot(
        names,
        {cluster: group for cluster, group in shown.items() if group},
        key,
        dot_size_df=size,
        dot_color_df=color,
        vmin=-top,
        vmax=top,
        ax=ax,
    )
    plot.style(cmap="RdBu_r", dot_max=1.0, dot_min=0.0)
    plot.legend(colorbar_title="gate x expression\n(mean, in sd)", size_title="cells with the\ngate open (%)")
    return finish(Panels(plot.get_axes()), show, save)


def cell_gates(
    adata: AnnData,
    cell: str | int,
    key: str = "idc",
    *,
    n_genes: int = 15,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Why this cell is in its cluster: the genes that moved it furthest from the average cell.

    A bar is gate times standardised expression in this cell: how many standard deviations the cell is away from the
    average of all cells in a gene that its gate lets pass. Bars to the right are genes that it expresses more, those to
    the left genes that it expresses less, which counts as evidence too. The line across a bar is the mean over the
    cluster: a bar that ends far from it is where the cell is unlike its cluster. In brackets: counts of the cell.

    Parameters
    ----------
    adata
        Data after `write_back` of an :class:`~scdeepclust.model.IDC` model.
    cell
        Name of the cell, or its row.
    key
        Key of the results.
    n_genes
        Number of genes.
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
        If `adata` has no gates or no such cell.

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.simulate_counts(300, 200, n_clusters=3, depth=200)
    >>> sdc.model.IDC.setup_anndata(adata)
    >>> model = sdc.model.IDC(adata, n_clusters=3, target_sparsity=0.1)
    >>> model.train(pretrain_epochs=40, max_epochs=2, enable_progress_bar=False)
    >>> model.write_back(adata)
    >>> ax = sdc.pl.cell_gates(adata, adata.obs_names[0])
    """
    from matplotlib import rcParams

    data = GatedData(adata, key)
    row = _row(adata, cell)
    label = data.labels[row]
    _, gate, u = next(data.blocks(np.array([row])))
    moved = pd.Series((gate * u)[0], index=data.genes)
    order = moved.abs().sort_values(ascending=False, kind="stable").index[:n_genes]
    genes = [gene for gene in order if moved[gene] != 0]
    of_cluster = data.cluster_means()[2].loc[genes, label]
    counts = data.counts[row].toarray()[0][data.genes.get_indexer(genes)]
    height = 1.8 + 0.26 * max(len(genes), 1)
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(4.8, height), layout="constrained")
    values = moved[genes].to_numpy()
    places = np.arange(len(genes))
    ax.barh(places, values, color=[PALETTE[0] if value > 0 else PALETTE[1] for value in values], height=0.7)
    ax.vlines(
        of_cluster, places - 0.42, places + 0.42, color=rcParams["text.color"], lw=1.5, label=f"mean of cluster {label}"
    )
    ax.set_yticks(places, [f"{gene} ({count:g})" for gene, count in zip(genes, counts, strict=True)])
    ax.axvline(0, color="0.6", lw=0.8)
    ax.invert_yaxis()
    confidence = adata.obs.get(ResultKeys(key).confidence)
    sure = "" if confidence is None else f", confidence {float(confidence.iloc[row]):.2f}"
    ax.set_title(f"{adata.obs_names[row]}\n{key} {label}{sure}", fontsize="medium")
    ax.set_xlabel("less  \u2190  than the average cell  \u2192  more\n(gate x standardised expression, in sd)")
    ax.set_ylabel("gene (counts of the cell)")
    below = (0.5, -1.15 / height)
    ax.legend(fontsize="small", frameon=False, loc="upper center", bbox_to_anchor=below)
    ax.spines[["top", "right"]].set_visible(False)
    return finish(ax, show, save)


def _row(adata: AnnData, cell: str | int) -> int:
    if isinstance(cell, str):
        if cell not in adata.obs_names:
            raise ValueError(f"`cell`: there is no cell {cell!r}, such as {adata.obs_names[0]!r}; or give a row.")
        return int(adata.obs_names.get_loc(cell))
    if not -adata.n_obs <= cell < adata.n_obs:
        raise ValueError(f"`cell`: there are {adata.n_obs} cells, found row {cell}.")
    return int(cell) % adata.n_obs
