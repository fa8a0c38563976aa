from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scdeepclust.pl._style import PALETTE, finish, spread, written

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.text import Text

    from scdeepclust.tl._cluster_tree import ClusterTree

# Splits whose genes are written beside them, at most: more would lie on top of each other.
MAX_ANNOTATED = 12


def cluster_tree(
    tree: ClusterTree,
    *,
    n_genes: int = 2,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Tree of clusters with the evidence for each split: how far its sides are apart in unused counts.

    Splits without evidence, which one population explains, are grey and dashed.

    Parameters
    ----------
    tree
        Result of :func:`scdeepclust.tl.cluster_tree`.
    n_genes
        Genes written beside a split that stands, for each side.
    ax
        Where to draw. Default: a new figure.
    show
        Also show the figure, as a script needs it.
    save
        Also write the figure to this file; its ending sets the format.

    Returns
    -------
    The axes.

    Examples
    --------
    >>> import numpy as np, pandas as pd, scdeepclust as sdc
    >>> splits = pd.DataFrame(
    ...     {
    ...         "left": ["0", "0+1"],
    ...         "right": ["1", "2"],
    ...         "n_left": [50, 90],
    ...         "n_right": [40, 30],
    ...         "separation": [2.0, 9.0],
    ...         "p": [1.0, 1e-9],
    ...         "stands": [False, True],
    ...         "repeats": [0.7, 1.0],
    ...         "left_genes": ["", "CD3D (2.1)"],
    ...         "right_genes": ["", "MS4A1 (3.0)"],
    ...     }
    ... )
    >>> linkage = np.array([[0, 1, 2.0, 2], [2, 3, 9.0, 3]])
    >>> tree = sdc.tl.ClusterTree(splits, linkage, ["0", "1", "2"])
    >>> sdc.pl.cluster_tree(tree).get_xlabel()
    'separation in unused counts (sd)'
    """
    from scipy.cluster.hierarchy import dendrogram

    names, sizes = tree.clusters, _sizes(tree)
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(7, 1.2 + 0.32 * len(names)), layout="constrained")
    drawn = dendrogram(tree.linkage, no_plot=True)
    where = {leaf: 5.0 + 10 * place for place, leaf in enumerate(drawn["leaves"])}
    height = dict.fromkeys(range(len(names)), 0.0)
    annotated = set(tree.splits.index[tree.splits["stands"]][::-1][:MAX_ANNOTATED])
    texts: list[Text] = []
    for row, (a, b, apart, _) in enumerate(tree.linkage):
        a, b, node = int(a), int(b), len(names) + row
        line = {"color": PALETTE[0]} if tree.splits["stands"].iloc[row] else {"color": "0.65", "linestyle": (0, (3, 2))}
        low, high = sorted((where[a], where[b]))
        ax.plot([height[a], apart, apart, height[b]], [where[a], where[a], where[b], where[b]], lw=1.5, **line)
        where[node], height[node] = (low + high) / 2, apart
        if row in annotated:
            texts += _annotate(ax, tree.splits.iloc[row], apart, (where[a], where[b]), n_genes)
    ax.set_yticks([where[k] for k in range(len(names))])
    ax.set_yticklabels([f"{name}  ({size:,})" for name, size in zip(names, sizes, strict=True)])
    ax.set(
        xlabel="separation in unused counts (sd)", ylabel="cluster (cells)", xlim=(0, 1.35 * tree.linkage[:, 2].max())
    )
    ax.set_xscale("function", functions=(np.sqrt, np.square))  # the splits that matter are the small ones
    if not tree.splits["stands"].all():
        from matplotlib.lines import Line2D

        lines = [Line2D([], [], color=PALETTE[0]), Line2D([], [], color="0.65", linestyle=(0, (3, 2)))]
        ax.legend(lines, ["split with evidence", "explained by one population"], loc="upper center",
                  bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize="x-small")  # fmt: skip
        ax.set_ylim(-2, 10 * len(names) + 6)
    ax.spines[["top", "right"]].set_visible(False)
    spread(ax, texts)  # when the axes have their scale and their place
    return finish(ax, show, save)


def _sizes(tree: ClusterTree) -> list[int]:
    """Cells of each cluster, from the sides of the splits that are a single cluster."""
    rows = [row for _, row in tree.splits.iterrows()]
    sides = [(row[side], row[f"n_{side}"]) for row in rows for side in ("left", "right")]
    alone = {name: size for name, size in sides if "+" not in name}
    return [alone[name] for name in tree.clusters]


def _annotate(ax: Axes, split, apart: float, places: tuple[float, float], n_genes: int) -> list[Text]:
    """Names of the genes of a split, each beside the branch they are high in."""
    texts = []
    for place, genes in zip(places, (split["left_genes"], split["right_genes"]), strict=True):
        chosen = [gene.rpartition(" (")[0] for gene in genes.split(", ")[:n_genes] if gene]
        if chosen:
            texts.append(written(ax, apart, place, f" {' '.join(chosen)}", ha="left", fontsize="x-small", color="0.3"))
    return texts
