"""The pictures of a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdeepclust._keys import ResultKeys
from scdeepclust.pl._embedding import draw_categories, draw_confidence
from scdeepclust.pl._own_view import own_views
from scdeepclust.pl._report._svg import Picture, picture
from scdeepclust.pl._style import DOUBT, LONGEST_ON_PLOT, PALETTE, SURE

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

    from scdeepclust.tl._report_facts import Facts

# Cells of a UMAP that has to be computed, and genes of a dot plot.
UMAP_CELLS = 20_000
DOT_GENES = 60


def with_umap(facts: Facts) -> AnnData | None:
    """Labels, columns and a UMAP of the cells, of a sample of them where there are many; None without an embedding."""
    from anndata import AnnData

    adata, keys = facts.adata, ResultKeys(facts.key)
    columns = [facts.key, keys.confidence, facts.batch_key, facts.label_key]
    obs = adata.obs[[name for name in dict.fromkeys(columns) if name in adata.obs]].copy()
    for name in obs:
        if name != keys.confidence:
            obs[name] = obs[name].astype("category").cat.rename_categories(str).cat.remove_unused_categories()
    colors = {name: value for name, value in adata.uns.items() if name.endswith("_colors")}
    if "X_umap" in adata.obsm:
        return AnnData(obs=obs, obsm={"X_umap": np.asarray(adata.obsm["X_umap"])[:, :2]}, uns=colors)
    if keys.embedding not in adata.obsm:
        return None
    cells = np.arange(adata.n_obs)
    if adata.n_obs > UMAP_CELLS:
        cells = np.sort(np.random.default_rng(0).choice(adata.n_obs, UMAP_CELLS, replace=False))
    drawn = AnnData(
        obs=obs.iloc[cells], obsm={"X": np.asarray(adata.obsm[keys.embedding], np.float32)[cells]}, uns=colors
    )
    import scanpy as sc

    from scdeepclust.train import one_thread

    with one_thread():
        sc.pp.neighbors(drawn, use_rep="X", transformer="sklearn", random_state=0)
        sc.tl.umap(drawn, random_state=0)
    return drawn


def maps(facts: Facts) -> Iterator[Picture]:
    """The cells coloured by clusters, confidence, batch and known types."""
    drawn = with_umap(facts)
    if drawn is None:
        return
    sample = f" ({drawn.n_obs:,} of {facts.adata.n_obs:,} cells)" if drawn.n_obs < facts.adata.n_obs else ""
    yield _map(drawn, facts.key, facts.key, f"UMAP of the cells coloured by cluster{sample}", "Clusters" + sample)
    if facts.confidence is not None:
        lowest = f"{np.nanquantile(facts.confidence, 0.01):.2f}"
        yield picture(
            lambda: _on_square(lambda ax: draw_confidence(drawn, facts.key, "X_umap", ax), 4.8),
            f"UMAP of the cells coloured by confidence, from {lowest} to 1",
            "Confidence: orange cells could as well be in another cluster",
        )
    if facts.batch_key is not None:
        yield _map(
            drawn,
            facts.key,
            facts.batch_key,
            "UMAP coloured by batch",
            f"Batches ({facts.batch_key}): should mix in a type",
        )
    if facts.label_key is not None:
        yield _map(drawn, facts.key, facts.label_key, "UMAP coloured by known type", f"Known types ({facts.label_key})")


def _map(drawn: AnnData, key: str, column: str, alt: str, caption: str) -> Picture:
    names_on_plot = column == key  # batches have no place on a UMAP where their name could stand
    wide = not names_on_plot or max(map(len, drawn.obs[column].cat.categories)) > LONGEST_ON_PLOT

    def draw(ax: Axes) -> None:
        draw_categories(drawn, column, "X_umap", ax, names_on_plot=names_on_plot)

    return picture(lambda: _on_square(draw, 6.0 if wide else 4.2), alt, caption)


def _on_square(draw: Callable[[Axes], object], width: float) -> Axes:
    import matplotlib.pyplot as plt

    _, ax = plt.subplots(figsize=(width, 4.0), layout="constrained")
    draw(ax)
    return ax


def sizes(facts: Facts) -> Picture:
    """Bars of the clusters."""
    from anndata import AnnData

    from scdeepclust.pl._clusters import cluster_sizes

    colors = {name: value for name, value in facts.adata.uns.items() if name == f"{facts.key}_colors"}
    drawn = AnnData(obs=pd.DataFrame({facts.key: facts.labels}), uns=colors)
    largest = facts.labels.value_counts()
    return picture(
        lambda: cluster_sizes(drawn, facts.key),
        f"Bars of the cluster sizes, from {largest.max():,} to {largest.min():,} cells",
        "Cells of each cluster",
    )


def dots(facts: Facts) -> Picture | None:
    """Dot plot of the best genes of each cluster."""
    import scanpy as sc
    from matplotlib.colors import LinearSegmentedColormap

    from scdeepclust.tl._counts import log_normalised
    from scdeepclust.train import one_thread

    n_clusters = len(facts.labels.cat.categories)
    best = facts.markers.groupby("cluster", sort=False).head(max(1, min(5, DOT_GENES // n_clusters)))
    best = best.drop_duplicates("gene")
    if best.empty:
        return None
    genes = {str(name): list(rows["gene"]) for name, rows in best.groupby("cluster", sort=False)}
    with one_thread():
        logged = log_normalised(facts.adata, dict(facts.about.get("setup", {})).get("layer"))
    logged.obs[facts.key] = facts.labels.to_numpy()
    logged.obs[facts.key] = logged.obs[facts.key].astype(facts.labels.dtype)

    def draw() -> Any:
        colors = LinearSegmentedColormap.from_list("expression", [SURE, DOUBT])
        size = (1.6 + 0.36 * n_clusters + 1.5, 0.9 + 0.24 * len(best))
        plot = sc.pl.DotPlot(logged, genes, facts.key, standard_scale="var", figsize=size)
        plot.swap_axes().style(cmap=colors).legend(
            colorbar_title="mean expression,\nshare of the largest", size_title="cells with a\ncount (%)", width=1.5
        )
        main = plot.get_axes()["mainplot_ax"]
        main.tick_params(labelsize=9)
        main.tick_params(axis="x", rotation=0 if max(map(len, facts.labels.cat.categories)) < 4 else 90)
        return main

    return picture(
        draw,
        "Dot plot of the best genes of each cluster: "
        + "; ".join(f"{k}: {', '.join(v[:3])}" for k, v in genes.items()),
        "Best genes of each cluster (rows) in all clusters (columns)",
    )


def composition(shares: pd.DataFrame, what: str, adata: AnnData, column: str) -> Picture:
    """Stacked bars: shares of batches or types in each cluster, and in all cells."""
    from scdeepclust.pl._style import category_colors

    def draw() -> Axes:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(5.2, 1.0 + 0.26 * len(shares)), layout="constrained")
        colors = category_colors(adata, column, shares.shape[1])
        left = np.zeros(len(shares))
        for name, color in zip(shares, colors, strict=True):
            ax.barh(list(shares.index), shares[name], left=left, color=color, label=name, height=0.8)
            left += shares[name].to_numpy()
        ax.axhline(len(shares) - 1.5, color=PALETTE[6], linewidth=0.8)
        ax.invert_yaxis()
        ax.set(xlim=(0, 1), xlabel=f"share of each {what}", ylabel="cluster")
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize="small")
        return ax

    return picture(
        draw, f"Stacked bars of the shares of each {what} in each cluster", f"Shares of each {what} in a cluster"
    )


def borders(facts: Facts) -> Picture | None:
    """Mean probability of each cluster in the cells of each other: what is taken for what."""
    stored = ResultKeys(facts.key).probabilities
    if stored not in facts.adata.obsm:
        return None
    probabilities = np.asarray(facts.adata.obsm[stored], dtype=float)
    names = [facts._name_of(column) for column in range(probabilities.shape[1])]
    table = pd.DataFrame(probabilities, columns=names).groupby(facts.labels.to_numpy()).mean()
    shown = [name for name in facts.labels.cat.categories if name in table.columns]
    if len(shown) < 2 or len(set(names)) < len(names):
        return None
    values = table.reindex(index=shown, columns=shown).to_numpy()

    def draw() -> Axes:
        import matplotlib.pyplot as plt

        side = 1.4 + 0.34 * len(shown)
        _, ax = plt.subplots(figsize=(side + 0.8, side), layout="constrained")
        image = ax.imshow(values, cmap="Blues", vmin=0, vmax=1)
        ax.set_xticks(range(len(shown)), shown)
        ax.set_yticks(range(len(shown)), shown)
        ax.set(xlabel="probability of cluster", ylabel="cells of cluster")
        ax.figure.colorbar(image, ax=ax, shrink=0.7, label="mean probability")
        return ax

    off = np.where(np.eye(len(shown), dtype=bool), 0, values)
    i, j = np.unravel_index(off.argmax(), off.shape)
    return picture(
        draw,
        f"Heat map of mean probabilities; cells of cluster {shown[i]} often nearly in {shown[j]} ({off.max():.2f})",
        "Which clusters are taken for each other: off the diagonal, dark pairs have no clear border",
    )


def agreement(table: pd.DataFrame, setting: str) -> Picture:
    """Adjusted Rand index between methods, on the diagonal between the seeds of one."""

    def draw() -> Axes:
        import matplotlib.pyplot as plt

        values = table.to_numpy(dtype=float)
        side = 0.62 * len(table)
        _, ax = plt.subplots(figsize=(side + 2.2, side + 1.2), layout="constrained")
        ax.imshow(values, cmap="Blues", vmin=0, vmax=1)
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                color = "white" if value > 0.6 else "black"
                ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize="small", color=color)
        ax.set_xticks(range(len(table)), table.columns, rotation=40, ha="right", rotation_mode="anchor")
        ax.set_yticks(range(len(table)), table.index)
        return ax

    return picture(
        draw,
        f"Heat map of the agreement between methods with {setting}",
        f"{setting}: adjusted Rand index between methods; on the diagonal between the seeds of one",
    )


def own_view(facts: Facts) -> Iterator[Picture]:
    """What only this system can show: gates, facets, or the map with its transitions."""
    known = [column for column in (facts.label_key, facts.batch_key) if column is not None]
    for view in own_views(facts.adata, facts.key, known):
        yield picture(view.draw, view.alt, view.caption)


def tree(facts: Facts) -> Picture | None:
    """The tree of the clusters with the evidence of each split, where `uns` of the results holds one."""
    from scdeepclust.pl._cluster_tree import cluster_tree
    from scdeepclust.tl._cluster_tree import ClusterTree

    kept = facts.about.get("tree")
    if kept is None:
        return None
    return picture(
        lambda: cluster_tree(ClusterTree(kept["splits"], kept["linkage"], list(kept["clusters"]))),
        "Tree of the clusters with the evidence of each split",
        "How far the sides of each split are apart in counts that did not make it, and the genes that are higher there",
    )
