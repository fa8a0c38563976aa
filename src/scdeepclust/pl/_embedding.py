from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scdeepclust._keys import ResultKeys
from scdeepclust.pl._style import (
    DOUBT,
    LONGEST_ON_PLOT,
    SURE,
    Panels,
    categories,
    category_colors,
    finish,
    given_axes,
    legend_beside,
    obs_column,
    spread,
    written,
)

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes

_FAINTEST = 0.08  # a cell of no confidence can still be seen
_FEW = 0.03  # share of the cells
_SPREAD_SHARE = 0.7  # of the spread of all cells within categories: above it, they are everywhere
_FEW_DOUBTS = 0.01  # share of the cells that lie below the colour scale
_UNLABELLED = "#D9D9D9"


def confidence(
    adata: AnnData,
    key: str,
    *,
    basis: str = "X_umap",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Clusters on an embedding, faint where the assignment is uncertain.

    Opacity is `obs["{key}_confidence"]`. Faint borders between
    clusters are normal; a cluster that is faint throughout is one to doubt.

    Parameters
    ----------
    adata
        Annotated data after `model.write_back(adata)`.
    key
        Key of the results: the name of the model in lower case, or `key_added`.
    basis
        Entry of `obsm`, of which the first two columns are drawn.
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
        If labels, confidence or the embedding are missing.

    Examples
    --------
    >>> import numpy as np, scdeepclust as sdc
    >>> adata = sdc.datasets.simulate_counts(200, 100, n_clusters=3)
    >>> adata.obs["mine"] = adata.obs["cell_type"]
    >>> adata.obs["mine_confidence"] = np.linspace(0, 1, 200)
    >>> adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(200, 2))
    >>> ax = sdc.pl.confidence(adata, "mine")
    """
    certainty = obs_column(adata, ResultKeys(key).confidence).to_numpy(dtype=float)
    ax = draw_categories(adata, key, basis, ax, opacity=np.clip(certainty, _FAINTEST, 1.0))
    return finish(ax, show, save)


def overview(
    adata: AnnData,
    key: str,
    *,
    label_key: str | None = None,
    basis: str = "X_umap",
    ax: Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Panels:
    """One embedding side by side: clusters, confidence, and known labels if there are any.

    Parameters
    ----------
    adata
        Annotated data after `model.write_back(adata)`.
    key
        Key of the results: the name of the model in lower case, or `key_added`.
    label_key
        Column of `obs` with known labels.
    basis
        Entry of `obsm`, of which the first two columns are drawn.
    ax
        Where to draw: as many axes as panels. Default: a new figure.
    show
        Also show the figure, as a script needs it.
    save
        Also write the figure to this file; its ending sets the format.

    Returns
    -------
    The axes by what they are coloured by: `key`, its confidence, and `label_key`.

    Raises
    ------
    ValueError
        If labels, confidence or the embedding are missing.

    Examples
    --------
    >>> import numpy as np, scdeepclust as sdc
    >>> adata = sdc.datasets.simulate_counts(200, 100, n_clusters=3)
    >>> adata.obs["mine"] = adata.obs["cell_type"]
    >>> adata.obs["mine_confidence"] = np.linspace(0, 1, 200)
    >>> adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(200, 2))
    >>> list(sdc.pl.overview(adata, "mine", label_key="cell_type"))
    ['mine', 'mine_confidence', 'cell_type']
    """
    obs_column(adata, certainty := ResultKeys(key).confidence)
    drawn = [key, certainty] if label_key is None else [key, certainty, label_key]
    for column in drawn:  # all checks before a figure is made
        obs_column(adata, column)
    coordinates(adata, basis)
    if ax is None:
        ax = _axes_of_overview(len(drawn))
    panels = Panels(zip(drawn, given_axes(ax, drawn), strict=True))
    for column, panel in panels.items():
        if column == certainty:
            draw_confidence(adata, key, basis, panel)
        else:
            apart = column == key or _lie_apart(categories(adata, column), coordinates(adata, basis))
            draw_categories(adata, column, basis, panel, names_on_plot=apart)
    return finish(panels, show, save)


def _lie_apart(labels: pd.Categorical, xy: np.ndarray) -> bool:
    """Whether a name amid the cells of a category is read as theirs: batches, whose cells are everywhere, do not."""
    known = labels.codes >= 0
    table = pd.DataFrame(xy[known])
    within = table.groupby(labels.codes[known]).transform("mean") - table
    return bool(np.square(within.to_numpy()).sum() < _SPREAD_SHARE * np.square((table - table.mean()).to_numpy()).sum())


def _axes_of_overview(n: int) -> Sequence[Axes]:
    import matplotlib.pyplot as plt

    size, room = (4.9 * n, 4.4), {"wspace": 0.15}  # for the colour bar
    _, axes = plt.subplots(1, n, figsize=size, layout="constrained", gridspec_kw=room, squeeze=False)
    return list(axes[0])


def draw_confidence(adata: AnnData, key: str, basis: str, ax: Axes) -> None:
    """Cells coloured by their confidence, on a scale from the lowest but for a few to 1."""
    xy, certainty = coordinates(adata, basis), adata.obs[ResultKeys(key).confidence].to_numpy(dtype=float)
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list("confidence", [DOUBT, SURE])
    order = np.argsort(-certainty, kind="stable")  # doubtful cells on top: they are few
    lowest = min(float(np.nanquantile(certainty, _FEW_DOUBTS)), 0.99)
    points = ax.scatter(
        xy[order, 0], xy[order, 1], c=certainty[order], s=_point_size(len(xy)), cmap=colors, vmin=lowest, vmax=1,
        lw=0, rasterized=True,
    )  # fmt: skip
    # within the room of the axes: a bar beside a square panel is laid out over its neighbour
    place = ax.inset_axes((1.03, 0.2, 0.04, 0.6))
    bar = ax.figure.colorbar(points, cax=place, extend="min" if np.nanmin(certainty) < lowest else "neither")
    bar.outline.set_visible(False)
    place.tick_params(labelsize="small")
    ax.set_title(f"confidence of {key}")
    _bare(ax, basis)


def draw_categories(
    adata: AnnData,
    key: str,
    basis: str,
    ax: Axes | None,
    opacity: np.ndarray | None = None,
    names_on_plot: bool = True,
) -> Axes:
    """Cells in the colours of their category, its name amid them, or beside the plot where it is long."""
    from matplotlib.colors import to_rgba_array

    labels, xy = categories(adata, key), coordinates(adata, basis)
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(5.5, 5), layout="compressed")
    names = [str(name) for name in labels.categories]
    colors = category_colors(adata, key, len(names))
    rgba = to_rgba_array([*colors, _UNLABELLED])[labels.codes]  # code -1: no label
    if opacity is not None:
        rgba[:, 3] = opacity
    order = np.random.default_rng(0).permutation(len(xy))  # no category on top of the others
    ax.scatter(xy[order, 0], xy[order, 1], c=rgba[order], s=_point_size(len(xy)), linewidths=0, rasterized=True)
    _bare(ax, basis)
    ax.set_title(key if opacity is None else f"{key}, opacity = confidence")

    on_plot = names_on_plot and max(map(len, names)) <= LONGEST_ON_PLOT
    if not on_plot:
        legend_beside(ax, dict(zip(names, colors, strict=True)), "upper left")
    if opacity is not None:
        shades = {f"{level:g}": (0, 0, 0, max(level, _FAINTEST)) for level in (1.0, 0.5, 0.0)}
        legend_beside(ax, shades, "lower left", title="confidence")
    if on_plot:  # last: names are moved apart by their size, which depends on the room that the legends leave
        _write_names(ax, labels, xy)
    return ax


def _write_names(ax: Axes, labels: pd.Categorical, xy: np.ndarray) -> None:
    """Write each category amid its cells (above them if they are few), moved where two names would overlap."""
    present = [code for code in range(len(labels.categories)) if (labels.codes == code).any()]
    texts = []
    for code in present:
        cells = xy[labels.codes == code]
        x, y = np.median(cells, axis=0)
        few = len(cells) < _FEW * len(xy)  # a name would hide them
        if few:
            y = np.quantile(cells[:, 1], 0.9)
        texts.append(written(ax, x, y, str(labels.categories[code]), va="bottom" if few else "center", weight="bold"))
    spread(ax, texts)


def coordinates(adata: AnnData, basis: str) -> np.ndarray:
    if basis not in adata.obsm:
        raise ValueError(
            f"basis: obsm has no {basis!r}; it has {', '.join(adata.obsm) or 'nothing'}. For a UMAP of the latent "
            "space: scanpy.pp.neighbors(adata, use_rep='X_...'), then scanpy.tl.umap(adata)"
        )
    return np.asarray(adata.obsm[basis])[:, :2]


def _point_size(n_cells: int) -> float:
    return float(np.clip(20_000 / n_cells, 1.0, 20.0))


def _bare(ax: Axes, basis: str) -> None:
    """An embedding has directions, but no units."""
    name = basis.removeprefix("X_")
    ax.set(xticks=[], yticks=[], xlabel=f"{name} 1", ylabel=f"{name} 2")
    ax.set_box_aspect(1)
    ax.spines[["top", "right"]].set_visible(False)
