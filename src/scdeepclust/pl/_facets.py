from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scdeepclust._keys import ResultKeys
from scdeepclust.pl._style import Panels, categories, finish, given_axes

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes


def facets(
    adata: AnnData,
    key: str = "mfcvae",
    *,
    covariates: str | Sequence[str] = (),
    n_genes: int = 3,
    ax: Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Panels:
    """What the facets of a model follow, and the genes they are made of.

    On the left the normalised mutual information of each facet with the other facets and with columns of ``obs``. Then
    for each facet with more than one cluster the genes that are highest in each of its clusters.

    Parameters
    ----------
    adata
        Data with the results of :meth:`scdeepclust.model.MFCVAE.write_back`.
    key
        Its ``key_added``.
    covariates
        Columns of ``obs`` (categories) to compare the facets with.
    n_genes
        Genes of each cluster. A gene is drawn once, under the cluster in which it is highest.
    ax
        Where to draw: as many axes as panels. Default: a new figure.
    show
        Also show the figure, as a script needs it.
    save
        Also write the figure to this file; its ending sets the format.

    Returns
    -------
    The axes by name: ``"mutual information"``, ``"facet 0"``, ...

    Raises
    ------
    ValueError
        If there are no facets under this key, or a column is missing.

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.simulate_counts(400, 300, n_clusters=3, n_facet_groups=2, depth=200)
    >>> sdc.model.MFCVAE.setup_anndata(adata)
    >>> model = sdc.model.MFCVAE(adata, n_clusters=3, n_facet_clusters=2)
    >>> model.train(pretrain_epochs=6, max_epochs=2, enable_progress_bar=False)
    >>> model.write_back(adata)
    >>> list(sdc.pl.facets(adata, covariates=["cell_type", "facet"]))[0]
    'mutual information'
    """
    covariates = [covariates] if isinstance(covariates, str) else list(covariates)
    keys = ResultKeys(key)
    columns: list[str] = []
    while keys.facet(len(columns)).labels in adata.obs:
        columns.append(keys.facet(len(columns)).labels)
    if not columns:
        raise ValueError(
            f"obs has no column {keys.facet(0).labels!r}; write results with `model.write_back(adata, {key!r})`"
        )
    loadings = {j: adata.varm[keys.facet(j).loadings].dropna() for j in range(len(columns))}
    loadings = {j: table for j, table in loadings.items() if table.shape[1] > 1}
    names = [f"facet {j}" for j in range(len(columns))]
    left = 0.6 * (len(columns) + len(covariates)) + 1.5
    widths = [left, *(0.35 * table.shape[1] + 1.6 for table in loadings.values())]
    genes = {j: _genes_of_clusters(table, n_genes) for j, table in loadings.items()}
    height = max(0.2 * max(map(len, genes.values()), default=0) + 1.2, 0.5 * len(columns) + 2.0)
    if ax is None:
        import matplotlib.pyplot as plt

        size = (sum(widths), height)
        ax = plt.subplots(1, len(widths), figsize=size, width_ratios=widths, layout="constrained", squeeze=False)[1][0]
    shown = ["mutual information", *(names[j] for j in loadings)]
    panels = Panels(zip(shown, given_axes(ax, shown), strict=True))
    _draw_information(panels["mutual information"], adata, columns, covariates, names)
    for j, table in loadings.items():
        _draw_genes(panels[names[j]], table.loc[genes[j]])
        panels[names[j]].set_title(names[j])
    return finish(panels, show, save)


def _draw_information(ax: Axes, adata: AnnData, columns: list[str], covariates: list[str], names: list[str]) -> None:
    """Facets against facets and covariates: normalised mutual information, 0 to 1."""
    from sklearn.metrics import normalized_mutual_info_score

    rows = [categories(adata, column).codes for column in columns]
    others = rows + [categories(adata, column).codes for column in covariates]
    table = np.array([[normalized_mutual_info_score(a, b) for b in others] for a in rows])
    ax.imshow(table, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(table):
        own = i == j
        ax.text(
            j, i, "" if own else f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else "black"
        )
    ax.set_xticks(range(len(others)), [*names, *covariates], rotation=45, ha="right")
    ax.set_yticks(range(len(rows)), names)
    ax.set_title("mutual information")


def _genes_of_clusters(loadings: pd.DataFrame, n_genes: int) -> list[str]:
    """For each cluster the genes that are highest in it, of those that are highest there by the largest change."""
    highest = loadings.to_numpy().argmax(axis=1)
    genes: list[str] = []
    for cluster, name in enumerate(loadings):
        own = loadings[name].where(highest == cluster, -np.inf)
        # a cluster in which no gene is highest shows its own largest ones, unless they are drawn already
        values = own if np.isfinite(own).any() else loadings[name].drop(genes)
        genes += list(values[np.isfinite(values)].nlargest(n_genes).index)
    return list(dict.fromkeys(genes))


def _draw_genes(ax: Axes, top: pd.DataFrame) -> None:
    """Log fold changes, genes x clusters."""
    limit = float(np.abs(top.to_numpy()).max())
    image = ax.imshow(top, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    ax.set_xticks(range(top.shape[1]), top.columns)
    ax.set_yticks(range(len(top)), top.index, fontsize="small")
    ax.set_xlabel("cluster")
    ax.figure.colorbar(image, ax=ax, label="log fold change", shrink=0.8)
