from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdeepclust._keys import ResultKeys
from scdeepclust.pl._style import (
    LONGEST_ON_PLOT,
    Panels,
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

# Inches of one panel, and nodes of the longest arrow.
_PANEL = 3.2
_LONGEST = 1.2
_STANDARD = ("clusters", "hits", "u_matrix")


def som(
    adata: AnnData,
    key: str = "somvae",
    *,
    color: str | Sequence[str] = _STANDARD,
    n_columns: int = 3,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Panels:
    """The map of a SOMVAE model, one panel for each thing it is coloured by.

    Parameters
    ----------
    adata
        Annotated data with the results of :meth:`scdeepclust.model.SOMVAE.write_back`.
    key
        The `key_added` of `write_back`.
    color
        What to colour the nodes by: ``"clusters"``, ``"hits"`` (cells of each node), ``"u_matrix"`` (distance to the
        nodes around: dark valleys are regions, bright ridges their borders), the name of a gene (its expected counts in
        10,000, decoded at the node), or a column of `obs` (mean of numbers such as time; the most frequent category of
        others, paler where others mix in). White lines separate clusters; crossed nodes have no cells.
    n_columns
        Panels in a row.
    ax
        Where to draw: as many axes as panels. Default: a new figure.
    show
        Also show the figure, as a script needs it.
    save
        Also write the figure to this file; its ending sets the format.

    Returns
    -------
    The axes by what they are coloured by.

    Raises
    ------
    ValueError
        If there are no results under `key`, or `color` names nothing.

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.simulate_counts(200, 100, n_clusters=3)
    >>> sdc.model.SOMVAE.setup_anndata(adata)
    >>> model = sdc.model.SOMVAE(adata, n_clusters=3, grid=(3, 4))
    >>> model.train(pretrain_epochs=2, max_epochs=1, enable_progress_bar=False)
    >>> model.write_back()
    >>> list(sdc.pl.som(adata, color=["hits", "gene_0"]))
    ['hits', 'gene_0']
    """
    results = som_results(adata, key)
    names = [color] if isinstance(color, str) else list(color)
    panels = [(name, *_node_values(adata, key, results, name)) for name in names]
    axes = _new_axes(len(names), n_columns, results["grid"]) if ax is None else given_axes(ax, names)
    for panel, (name, values, style) in zip(axes, panels, strict=True):
        _draw_plane(panel, adata, key, results, values, style)
        panel.set_title(name)
    for panel in axes:  # when all panels have their place
        spread(panel, list(panel.texts))
    return finish(Panels(zip(names, axes, strict=True)), show, save)


def _new_axes(n: int, n_columns: int, grid: Sequence[int]) -> list[Axes]:
    import matplotlib.pyplot as plt

    n_columns = min(n_columns, n)
    n_rows = -(-n // n_columns)
    width = _PANEL * min(max(grid[1] / grid[0], 0.8), 2)
    size = (n_columns * (width + 0.7), n_rows * (_PANEL + 0.3))
    _, axes = plt.subplots(n_rows, n_columns, figsize=size, layout="constrained", squeeze=False)
    for unused in axes.flat[n:]:
        unused.remove()
    return list(axes.flat[:n])


def transitions(
    adata: AnnData,
    key: str = "somvae",
    *,
    min_count: float = 5.0,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Where cells go on the map: an arrow from each node along the mean step of its cells.

    Parameters
    ----------
    adata
        Annotated data with the results of a SOMVAE model that was registered with time.
    key
        The `key_added` of `write_back`.
    min_count
        Nodes with fewer transitions get no arrow.
    ax
        Where to draw. Default: a new figure.
    show
        Also show the figure, as a script needs it.
    save
        Also write the figure to this file; its ending sets the format.

    Returns
    -------
    The axes. The colour of a node is that of its cluster; the length of an arrow is that of the mean step, in nodes
    (steps of more than 1.2 are drawn as 1.2, so that arrows do not hide each other); nodes whose cells stay get a dot.

    Raises
    ------
    ValueError
        If there are no results under `key`, or the model has no transitions.

    Examples
    --------
    >>> import numpy as np, scdeepclust as sdc
    >>> adata = sdc.datasets.simulate_counts(200, 100, n_clusters=3, n_time_points=4)
    >>> sdc.model.SOMVAE.setup_anndata(adata, time_key="time", trajectory_key="trajectory")
    >>> model = sdc.model.SOMVAE(adata, n_clusters=3, grid=(3, 4))
    >>> model.train(pretrain_epochs=2, max_epochs=1, enable_progress_bar=False)
    >>> model.write_back()
    >>> sdc.pl.transitions(adata).get_title()
    'transitions'
    """
    import matplotlib.pyplot as plt

    results = som_results(adata, key)
    if "transition_counts" not in results:
        raise ValueError(
            f"uns[{key!r}] has no transitions: the model was fitted without time. Give `time_key` or `transition_key` "
            "to `setup_anndata`, and fit again"
        )
    if ax is None:
        n_rows, n_columns = results["grid"]
        longer = max(n_rows, n_columns)
        _, ax = plt.subplots(figsize=(1 + 4.5 * n_columns / longer, 0.6 + 4.5 * n_rows / longer), layout="constrained")
    values, style = _node_values(adata, key, results, "clusters")
    _draw_plane(ax, adata, key, results, values, style | {"alpha": 0.55})
    counts = np.asarray(results["transition_counts"], dtype=float)
    totals = counts.sum(axis=1)
    enough = totals >= min_count
    at = results["map"][["column", "row"]].to_numpy(dtype=float)
    step = (counts @ at) / np.maximum(totals, 1e-12)[:, None] - at
    length = np.linalg.norm(step, axis=1)
    step *= (np.minimum(length, _LONGEST) / np.maximum(length, 1e-12))[:, None]
    moving = enough & (length > 0.15)
    ax.quiver(
        *at[moving].T, *step[moving].T, angles="xy", scale_units="xy", scale=1, pivot="tail", color="0.1",
        width=0.05 / max(results["grid"]), headwidth=3.5, headlength=4, zorder=3,
    )  # fmt: skip
    ax.scatter(at[enough & ~moving, 0], at[enough & ~moving, 1], s=80 / max(results["grid"]), color="0.1", zorder=3)
    ax.set_title("transitions")
    spread(ax, list(ax.texts))
    return finish(ax, show, save)


def som_results(adata: AnnData, key: str) -> dict[str, Any]:
    """What `write_back` stored of a map; ValueError if there is none."""
    results = adata.uns.get(key)
    if results is None or "map" not in results:
        raise ValueError(
            f"uns has no map under {key!r}. Results are stored by `write_back` of a SOMVAE model; give its `key_added`"
        )
    return results


def _node_values(adata: AnnData, key: str, results: dict, name: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Value of each node (K,), and how to draw it."""
    keys, nodes = ResultKeys(key), results["map"]
    if name == "clusters":
        # names and colours follow the labels of the cells, as in every other plot, even if they were renamed
        labels = obs_column(adata, keys.labels).astype("category").cat
        clusters = nodes["cluster"].astype(str)
        of_cells = clusters.set_axis(nodes["node"].astype(str)).reindex(adata.obs[keys.node].astype(str))
        codes = pd.crosstab(of_cells.to_numpy(), labels.codes.to_numpy()).idxmax(axis=1)
        names = [str(category) for category in labels.categories]
        return codes.reindex(clusters).fillna(-1).astype(int).to_numpy(), {"categories": names, "column": keys.labels}
    if name == "hits":
        return nodes["hits"].to_numpy(dtype=float), {"cmap": "Greys", "label": "cells"}
    if name == "u_matrix":
        return nodes["u_distance"].to_numpy(dtype=float), {"cmap": "magma", "label": "distance"}
    if name in adata.var_names:
        shares = np.asarray(adata.varm[keys.profiles])[adata.var_names.get_loc(name)]
        if np.isnan(shares).any():
            raise ValueError(f"`color`: gene {name!r} is not among the genes that the model was fitted to")
        return 1e4 * shares, {"cmap": "viridis", "label": "in 10,000"}
    if name in adata.obs:
        return _node_summary(adata, keys, list(nodes["node"]), name)
    raise ValueError(
        f"`color`: {name!r} is none of {', '.join(map(repr, _STANDARD))}, no gene, and no column of obs "
        f"({', '.join(adata.obs.columns)})"
    )


def _node_summary(adata: AnnData, keys: ResultKeys, names: list[str], column: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Of each node the mean of a numeric column of obs, or the most frequent category and its share."""
    node = pd.Categorical(adata.obs[keys.node].astype(str), categories=names)
    values = adata.obs[column]
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        mean = values.groupby(node, observed=False).mean().reindex(names).to_numpy(dtype=float)
        return mean, {"cmap": "cividis", "label": f"mean {column}"}
    values = values.astype("category")
    table = pd.crosstab(node, values, dropna=False).reindex(index=names, columns=values.cat.categories, fill_value=0)
    sizes = table.sum(axis=1).to_numpy()
    winner = np.where(sizes > 0, table.to_numpy().argmax(axis=1), -1)
    share = table.to_numpy().max(axis=1) / np.maximum(sizes, 1)
    return winner, {"categories": [str(c) for c in table.columns], "column": column, "share": share}


def _draw_plane(ax: Axes, adata: AnnData, key: str, results: dict, values: np.ndarray, style: dict[str, Any]) -> None:
    """One square a node, white lines between clusters, crosses where there are no cells."""
    n_rows, n_columns = results["grid"]
    shape = (int(n_rows), int(n_columns))
    if "categories" in style:
        _draw_categories(ax, adata, values, shape, style)
    else:
        image = ax.imshow(values.reshape(shape), cmap=style["cmap"], aspect="equal", interpolation="nearest")
        bar = ax.figure.colorbar(image, ax=ax, shrink=0.75, pad=0.02, aspect=15)
        bar.set_label(style["label"], fontsize="small")
        bar.ax.tick_params(labelsize="small")
        bar.outline.set_visible(False)
    _draw_borders(ax, results["map"]["cluster"].to_numpy().reshape(shape))
    empty = results["map"]["hits"].to_numpy() == 0
    at = results["map"][["column", "row"]].to_numpy()[empty]
    ax.scatter(at[:, 0], at[:, 1], marker="x", s=min(60, 3000 / max(shape) ** 2), color="0.45", linewidth=0.8, zorder=2)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)


def _draw_categories(
    ax: Axes, adata: AnnData, codes: np.ndarray, shape: tuple[int, int], style: dict[str, Any]
) -> None:
    """Squares in the colours of their category, with its name in the middle of its region."""
    from matplotlib.colors import to_rgb

    names = style["categories"]
    palette = np.array([to_rgb(c) for c in category_colors(adata, style["column"], len(names))] + [(1.0, 1.0, 1.0)])
    alpha = np.asarray(style.get("share", style.get("alpha", 1.0)))[..., None]
    rgb = 1 - (1 - palette[codes]) * np.broadcast_to(alpha, (len(codes), 1))
    ax.imshow(rgb.reshape(*shape, 3), aspect="equal", interpolation="nearest")
    present = np.unique(codes[codes >= 0])
    if max(len(names[code]) for code in present) > LONGEST_ON_PLOT:
        legend_beside(ax, {names[code]: tuple(palette[code]) for code in present}, "upper left")
        return
    for code in np.unique(codes[codes >= 0]):
        rows, columns = np.divmod(np.flatnonzero(codes == code), shape[1])
        # on the node of the category that is closest to its middle, so that the name never lies on another one
        middle = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
        written(ax, columns[middle], rows[middle], names[code], zorder=4)


def _draw_borders(ax: Axes, cluster: np.ndarray) -> None:
    from matplotlib.collections import LineCollection

    lines = [
        [(column + 0.5, row - 0.5), (column + 0.5, row + 0.5)]
        for row, column in zip(*np.nonzero(cluster[:, 1:] != cluster[:, :-1]), strict=True)
    ] + [
        [(column - 0.5, row + 0.5), (column + 0.5, row + 0.5)]
        for row, column in zip(*np.nonzero(cluster[1:] != cluster[:-1]), strict=True)
    ]
    ax.add_collection(LineCollection(lines, colors="white", linewidths=3, zorder=1, capstyle="projecting"))
    ax.add_collection(LineCollection(lines, colors="0.15", linewidths=1.2, zorder=1, capstyle="projecting"))
