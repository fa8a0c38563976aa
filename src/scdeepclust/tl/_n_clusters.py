from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scdeepclust.tl._arguments import checked, with_data
from scdeepclust.tl._unused_counts import judging_cells

if TYPE_CHECKING:
    from scdeepclust.model._base import ClusteringModel

# Levels of evidence whose numbers are listed, the first one first.
LEVELS = (0.05, 0.001, 0.25)


@checked
def estimate_n_clusters(model: ClusteringModel) -> pd.DataFrame:
    """What speaks for each number of clusters: the tree that ``n_clusters=None`` cuts, number by number.

    Parameters
    ----------
    model
        A trained model with its data, whatever its own number of clusters (also None).

    Returns
    -------
    Indexed by ``n_clusters``, from 1 to the number of communities that Leiden finds, with columns

    - ``separation``: of the weakest split that this number needs, as in :func:`cluster_tree`.
    - ``p``: how well one population explains that split. All numbers with a p of at most ``alpha`` have evidence for
      each of their splits, and ``n_clusters=None`` takes the largest of them.
    - ``merges``, ``splits``: what becomes of the clusters that the model has, such as ``"1+4"``, or ``"2 3"``.
    - ``rank``: 1 for the number at a level of .05, then those at .001 and .25 where they differ, 0 for all others.

    Raises
    ------
    RuntimeError
        If the model is not trained.
    ValueError
        If the model has no data.

    Notes
    -----
    There is no true number: cell types have subtypes. A split without evidence can be real, in data that are too
    shallow to show it. Communities are looked for in the trained model, ``n_clusters=None`` does so before its
    clustering phase: the numbers can differ by one or two.

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.simulate_counts(300, 200, n_clusters=4, marker_log_fold_change=3, depth=200)
    >>> sdc.model.GMVAE.setup_anndata(adata)
    >>> model = sdc.model.GMVAE(adata, n_clusters=3)
    >>> model.train(pretrain_epochs=60, max_epochs=10, enable_progress_bar=False)
    >>> table = sdc.tl.estimate_n_clusters(model)
    >>> list(table)
    ['separation', 'p', 'merges', 'splits', 'rank']
    >>> int(table["rank"].eq(1).idxmax())
    4
    """
    from scdeepclust.train import cut, least_p_below, leiden_labels, separation_linkage, split_p_values

    with_data(model)
    labels = model.predict().astype(int)
    cells = judging_cells(labels)
    labels = labels[cells]
    communities = np.unique(leiden_labels(model._start_points(cells), seed=model._start_seed), return_inverse=True)[1]
    splits = []
    if communities.max():
        points = [halves.points for halves in model._halves(cells)]
        linkage = separation_linkage(communities, points)
        p = least_p_below(linkage, split_p_values(communities, linkage, points, model._start_seed))
        # the weakest first, and what is below a split before it
        splits = sorted(range(len(linkage)), key=lambda row: (-p[row], row))
    rows = []
    for n_undone in range(len(splits) + 1):
        undone = np.isin(np.arange(len(splits)), splits[:n_undone])
        groups = cut(linkage, undone)[communities] if splits else communities
        weakest = splits[n_undone] if n_undone < len(splits) else None
        rows.append(
            {
                "n_clusters": len(splits) + 1 - n_undone,
                "separation": np.nan if weakest is None else linkage[weakest, 2],
                "p": 0.0 if weakest is None else p[weakest],
                **_changes(labels, groups),
            }
        )
    table = pd.DataFrame(rows).set_index("n_clusters").sort_index()
    table["rank"] = 0
    for level in LEVELS:
        number = table.index[table["p"] <= level].max()
        if not table.loc[number, "rank"]:
            table.loc[number, "rank"] = table["rank"].max() + 1
    return table


def _changes(labels: np.ndarray, groups: np.ndarray) -> dict[str, str]:
    """Which clusters groups of cells (n,) would merge, and which ones they would split."""
    shared = pd.crosstab(labels, groups)
    of_cluster = shared.idxmax(axis=1)  # group that most of its cells are in
    merged = ["+".join(map(str, part)) for part in of_cluster.groupby(of_cluster).groups.values() if len(part) > 1]
    others = shared.loc[:, ~shared.columns.isin(of_cluster)]
    split = sorted(set(others.idxmax())) if others.shape[1] else []
    return {"merges": " ".join(merged), "splits": " ".join(map(str, split))}
