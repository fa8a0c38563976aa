from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdeepclust.tl._arguments import with_data
from scdeepclust.tl._unused_counts import gene_test, judging_cells

if TYPE_CHECKING:
    from anndata import AnnData

    from scdeepclust.model._base import ClusteringModel
    from scdeepclust.model._base._halves import Halves


# Splits with at most this p stand.
LEVEL = 0.05


@dataclass(frozen=True)
class ClusterTree:
    """Clusters joined pair by pair, with the evidence for each split.

    Parameters
    ----------
    splits
        One row a split, the one at the root last; see :func:`cluster_tree`.
    linkage
        The same tree as :mod:`scipy.cluster.hierarchy` has it, (K - 1, 4), with separations as heights; leaves are in
        the order of ``clusters``.
    clusters
        Names of the clusters.

    Examples
    --------
    >>> import numpy as np, pandas as pd, scdeepclust as sdc
    >>> splits = pd.DataFrame({"separation": [2.0, 9.0], "p": [1.0, 1e-9]})
    >>> tree = sdc.tl.ClusterTree(splits, np.array([[0, 1, 2.0, 2], [2, 3, 9.0, 3]]), ["0", "1", "2"])
    >>> tree.cut()
    {'0': '0', '1': '0', '2': '1'}
    >>> tree.to_uns("gmvae")["categories_ordered"]
    ['2', '0', '1']
    """

    splits: pd.DataFrame
    linkage: np.ndarray
    clusters: list[str]

    def cut(self, alpha: float = 0.05, *, separation: float = 0.0) -> dict[str, str]:
        """Which clusters are joined when only splits with evidence stay.

        Parameters
        ----------
        alpha
            Largest p of a split that stays; so do those above it.
        separation
            Least separation of a split that stays, for example to see broad types.

        Returns
        -------
        New name of each cluster, ``"0"``, ``"1"``, ... by the first of its clusters, for
        ``model.merge_clusters(tree.cut())`` or ``adata.obs["gmvae"].map(tree.cut(separation=5))``.
        """
        from scdeepclust.train import cut, least_p_below

        p = self.splits["p"].where(self.splits["separation"] >= separation, np.inf)
        groups = cut(self.linkage, least_p_below(self.linkage, p.to_numpy()) > alpha)
        return {name: str(group) for name, group in zip(self.clusters, groups, strict=True)}

    def write(self, adata: AnnData, key: str) -> None:
        """Keep the tree with the results ``key``, where ``tl.report`` and scanpy's dendrograms find it.

        Parameters
        ----------
        adata
            Data with the results that the tree is of.
        key
            Name of these results, as ``write_back`` used it: the tree goes to ``adata.uns[key]["tree"]`` and
            ``adata.uns[f"dendrogram_{key}"]``, until results are written there again.

        Raises
        ------
        ValueError
            If there are no such results, or they are of other clusters.
        """
        if key not in adata.uns or key not in adata.obs:
            raise ValueError(f"`key`: there are no results {key!r} in `adata`. Run `model.write_back()`.")
        if set(adata.obs[key].dropna().astype(str)) != set(self.clusters):
            raise ValueError(f"`key`: the clusters in `adata.obs[{key!r}]` are not those of the tree.")
        kept = {"splits": self.splits, "linkage": self.linkage, "clusters": np.array(self.clusters, dtype=object)}
        adata.uns[key]["tree"] = kept
        adata.uns[f"dendrogram_{key}"] = self.to_uns(key)

    def to_uns(self, key: str) -> dict[str, Any]:
        """The tree as scanpy's plots take it: ``adata.uns[f"dendrogram_{key}"] = tree.to_uns(key)``.

        Parameters
        ----------
        key
            Column of ``obs`` with the clusters; scanpy refuses a tree of another one.

        Returns
        -------
        What :func:`scanpy.tl.dendrogram` writes.
        """
        from scipy.cluster.hierarchy import dendrogram

        drawn = dendrogram(self.linkage, labels=self.clusters, no_plot=True)
        return {
            "linkage": self.linkage,
            "categories_ordered": drawn["ivl"],
            "categories_idx_ordered": drawn["leaves"],
            "dendrogram_info": drawn,
            "groupby": [key],
        }


def cluster_tree(model: ClusteringModel, *, n_genes: int = 5, n_halvings: int = 2) -> ClusterTree:
    """Tree of the clusters of a model, with evidence for each split from counts that did not make it.

    The counts of each cell are halved at random, as if the cell had been sequenced twice. One half says in which
    direction two groups of cells differ and which side a cell is on; the other half says how far the sides are apart,
    and which genes differ. The two groups that are least apart are joined first, until one is left.

    Parameters
    ----------
    model
        A trained model with its data, whatever its number of clusters (but at least 2).
    n_genes
        Genes named for each split and side.
    n_halvings
        Ways of halving the counts, over which the evidence is averaged.

    Returns
    -------
    :class:`ClusterTree`, whose ``splits`` has one row a split:

    - ``left``, ``right``: clusters on either side, joined by ``+``; ``n_left``, ``n_right``: their cells.
    - ``separation``: distance of the sides in standard deviations, measured on unused counts. Of many cells, one
      population cut in two has at most 2.7 (Gaussian) to 3.5 (uniform).
    - ``p``: how well one population explains the separation, corrected for the number of splits. Cells are drawn with
      the covariance of these, uniformly along the split. The sides have to be clearly further apart than theirs, and
      the middle between them clearly emptier.
    - ``stands``: whether the split, or one below it, has a p of at most .05, as ``n_clusters=None`` asks for.
    - ``repeats``: share of the cells that both halves of their counts put on the same side.
    - ``left_genes``, ``right_genes``: genes that are higher on that side in unused counts, the surest first, with the
      log2 fold change in brackets; empty if none has a false discovery rate below .05.
    - ``batches``: share of the batches with cells on both sides (only with more than one batch).

    Raises
    ------
    RuntimeError
        If the model is not trained.
    ValueError
        If the model has no data, or a single cluster.

    Notes
    -----
    Separations come from halves as two sequencings of a cell would give them, which share its own expression; genes are
    tested in the independent halves of :func:`rank_genes`. The networks were trained on the whole counts, which no
    theorem covers: how often single populations are split at a level is measured, see the benchmarks.

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.simulate_counts(300, 200, n_clusters=3, marker_log_fold_change=3, depth=300)
    >>> sdc.model.GMVAE.setup_anndata(adata)
    >>> model = sdc.model.GMVAE(adata, n_clusters=3)
    >>> model.train(pretrain_epochs=40, max_epochs=2, enable_progress_bar=False)
    >>> tree = sdc.tl.cluster_tree(model)
    >>> len(tree.splits), tree.linkage.shape
    (2, (2, 4))
    """
    from scdeepclust.train import least_p_below, members, separation_linkage, split_p_values

    with_data(model)
    names, labels = np.unique(model.predict().astype(int), return_inverse=True)
    if len(names) < 2:
        raise ValueError("`model` has one cluster: there is nothing to split.")
    cells = judging_cells(labels)
    points = [halves.points for halves in model._halves(cells, n_halvings)]
    (independent,) = model._halves(cells, 1, independent=True)
    linkage = separation_linkage(labels[cells], points)
    batch = np.asarray(model.adata_manager.get_from_registry("batch")).ravel()[cells]
    sizes = np.bincount(labels)
    below, rows = members(linkage), []
    for a, b in linkage[:, :2].astype(int):
        inside = np.isin(labels[cells], np.concatenate([below[a], below[b]]))
        side = np.isin(labels[cells][inside], below[b])
        row = {
            "left": "+".join(str(names[k]) for k in below[a]),
            "right": "+".join(str(names[k]) for k in below[b]),
            "n_left": int(sizes[below[a]].sum()),
            "n_right": int(sizes[below[b]].sum()),
            **_evidence(points, independent, inside, side, model.gene_names_, n_genes),
        }
        if batch.max() > 0:
            row["batches"] = len(set(batch[inside][side]) & set(batch[inside][~side])) / len(set(batch[inside]))
        rows.append(row)
    splits = pd.DataFrame(rows)
    p = split_p_values(labels[cells], linkage, points, model._start_seed)
    splits.insert(5, "p", p)
    splits.insert(6, "stands", least_p_below(linkage, p) <= LEVEL)
    return ClusterTree(splits, linkage, [str(name) for name in names])


def _evidence(
    halvings: Sequence[tuple[np.ndarray, np.ndarray]],
    independent: Halves,
    inside: np.ndarray,
    side: np.ndarray,
    genes: np.ndarray,
    n_genes: int,
) -> dict[str, Any]:
    """Separation, repeats and genes of one split of the cells ``inside``."""
    from scipy.stats import false_discovery_control

    from scdeepclust.train import mean_gap, sides

    repeats = []
    for halves in halvings:
        first, second = (half[inside] for half in halves)
        repeats.append(float((sides(first, side) == sides(second, side)).mean()))
    points, counts = independent
    # named on one half, tested on the other, both ways
    a, b = (gene_test(counts[1 - i][inside], sides(points[i][inside], side)) for i in (0, 1))
    # the mean of two p-values, times two, is a p-value whatever their dependence
    table = pd.DataFrame({"change": (a.change + b.change) / 2, "p": np.minimum(a.p + b.p, 1.0)}, index=genes)
    table = table[false_discovery_control(table["p"]) < 0.05].sort_values("p", kind="stable")
    named = {
        name: ", ".join(f"{gene} ({abs(change):.1f})" for gene, change in chosen["change"].head(n_genes).items())
        for name, chosen in (("left_genes", table[table.change < 0]), ("right_genes", table[table.change > 0]))
    }
    apart = mean_gap(halvings, inside, side).separation
    return {"separation": apart, "repeats": float(np.mean(repeats))} | named
