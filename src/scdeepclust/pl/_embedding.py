from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scdeepclust._keys import ResultKeys
from scdeepclust.pl._style import categories, category_colors, obs_column

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FAINTEST = 0.08  # a cell of no confidence can still be seen
_FEW = 0.03  # share of the cells
_UNLABELLED = "#D9D9D9"
_LONGEST_ON_PLOT = 8  # characters; longer names would hide the cells and go into a legend


def confidence(adata: AnnData, key: str, *, basis: str = "X_umap", ax: Axes | None = None) -> Axes:
    """Clusters on an embedding, faint where the assignment is uncertain.

    Opacity is `obs["{key}_confidence"]`, the highest assignment probability of the cell. Faint borders between
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
    return _draw_categories(adata, key, basis, ax, opacity=np.clip(certainty, _FAINTEST, 1.0))


def overview(adata: AnnData, key: str, *, label_key: str | None = None, basis: str = "X_umap") -> Figure:
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

    Returns
    -------
    The figure.

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
    >>> figure = sdc.pl.overview(adata, "mine", label_key="cell_type")
    """
    import matplotlib.pyplot as plt

    certainty = obs_column(adata, ResultKeys(key).confidence).to_numpy(dtype=float)
    drawn = [key] if label_key is None else [key, label_key]
    for column in drawn:  # all checks before a figure is made
        obs_column(adata, column)
    xy = _coordinates(adata, basis)

    figure, axes = plt.subplots(1, len(drawn) + 1, figsize=(4.7 * len(drawn) + 4.7, 4.4), layout="compressed")
    _draw_categories(adata, key, basis, axes[0])
    order = np.argsort(-certainty, kind="stable")  # doubtful cells on top: they are few
    points = axes[1].scatter(
        xy[order, 0], xy[order, 1], c=certainty[order], s=_point_size(len(xy)), cmap="cividis", vmin=0, vmax=1, lw=0
    )
    figure.colorbar(points, ax=axes[1], shrink=0.6)
    axes[1].set_title(f"confidence of {key}")
    _bare(axes[1], basis)
    if label_key is not None:
        _draw_categories(adata, label_key, basis, axes[2])
    return figure


def _draw_categories(adata: AnnData, key: str, basis: str, ax: Axes | None, opacity: np.ndarray | None = None) -> Axes:
    from matplotlib.colors import to_rgba_array

    labels, xy = categories(adata, key), _coordinates(adata, basis)
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(5.5, 5), layout="compressed")
    names = [str(name) for name in labels.categories]
    colors = category_colors(adata, key, len(names))
    rgba = to_rgba_array([*colors, _UNLABELLED])[labels.codes]  # code -1: no label
    if opacity is not None:
        rgba[:, 3] = opacity
    order = np.random.default_rng(0).permutation(len(xy))  # no category on top of the others
    ax.scatter(xy[order, 0], xy[order, 1], c=rgba[order], s=_point_size(len(xy)), linewidths=0)
    _bare(ax, basis)
    ax.set_title(key if opacity is None else f"{key}, opacity = confidence")

    on_plot = max(map(len, names)) <= _LONGEST_ON_PLOT
    if not on_plot:
        _legend_beside(ax, dict(zip(names, colors, strict=True)), "upper left")
    if opacity is not None:
        shades = {f"{level:g}": (0, 0, 0, max(level, _FAINTEST)) for level in (1.0, 0.5, 0.0)}
        _legend_beside(ax, shades, "lower left", title="confidence")
    if on_plot:  # last: names are moved apart by their size, which depends on the room that the legends leave
        _write_names(ax, labels, xy)
    return ax


def _write_names(ax: Axes, labels: pd.Categorical, xy: np.ndarray) -> None:
    """Write each category amid its cells (above them if they are few), moved where two names would overlap."""
    from matplotlib.patheffects import withStroke

    present = [code for code in range(len(labels.categories)) if (labels.codes == code).any()]
    texts = []
    for code in present:
        cells = xy[labels.codes == code]
        x, y = np.median(cells, axis=0)
        few = len(cells) < _FEW * len(xy)  # a name would hide them
        if few:
            y = np.quantile(cells[:, 1], 0.9)
        text = ax.text(
            x, y, str(labels.categories[code]), ha="center", va="bottom" if few else "center", fontsize="small",
            weight="bold",
        )  # fmt: skip
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
        texts.append(text)
    _spread(ax, texts)


def _spread(ax: Axes, texts: list) -> None:
    """Push overlapping texts apart, up and down."""
    from matplotlib.figure import Figure

    figure = ax.get_figure()
    if isinstance(figure, Figure):
        figure.draw_without_rendering()  # only the layout decides how large a text is in units of the data
    boxes = np.array([text.get_window_extent().extents for text in texts])  # left, bottom, right, top in pixels
    shift = np.zeros(len(texts))
    for _ in range(100):
        moved = False
        for i in range(len(texts)):
            for j in range(i + 1, len(texts)):
                overlap = np.minimum(boxes[i, 2:], boxes[j, 2:]) - np.maximum(boxes[i, :2], boxes[j, :2])
                if (overlap > 0).all():
                    step = (overlap[1] / 2 + 0.5) * (1 if boxes[i, 1] >= boxes[j, 1] else -1)
                    for k, by in ((i, step), (j, -step)):
                        boxes[k, [1, 3]] += by
                        shift[k] += by
                    moved = True
        if not moved:
            break
    to_data = ax.transData.inverted()
    for text, by in zip(texts, shift, strict=True):
        x, y = ax.transData.transform(text.get_position())
        text.set_position(to_data.transform((x, y + by)))


def _coordinates(adata: AnnData, basis: str) -> np.ndarray:
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


def _legend_beside(
    ax: Axes, colors: dict[str, Any], corner: Literal["upper left", "lower left"], title: str | None = None
) -> None:
    """Legend to the right of the axes: the search for a free place inside takes seconds with many cells."""
    handles = [ax.scatter([], [], s=25, color=color, linewidths=0, label=name) for name, color in colors.items()]
    earlier = ax.get_legend()
    ax.legend(
        handles=handles,
        title=title,
        loc=corner,
        bbox_to_anchor=(1.0, 1.0 if "upper" in corner else 0.0),
        frameon=False,
        fontsize="small",
        title_fontsize="small",
        handletextpad=0.3,
    )
    if earlier is not None:
        ax.add_artist(earlier)  # the new legend would replace it
