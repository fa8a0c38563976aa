from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scdeepclust.tl._arguments import checked

if TYPE_CHECKING:
    from anndata import AnnData


@checked
def score_clusters(
    adata: AnnData | pd.DataFrame, keys: str | Sequence[str], *, label_key: str, batch_key: str | None = None
) -> pd.DataFrame:
    """Compare clusterings with known labels.

    All scores are 1 for a perfect clustering. Read them together: one number hides what went wrong.

    ==================  ===================================================================================
    ``ARI``             Rand index over pairs of cells, corrected for chance (0 for a random clustering).
                        Large types dominate it.
    ``NMI``             Mutual information, normalised by the mean of the two entropies. Not corrected for
                        chance: it grows with the number of clusters.
    ``accuracy``        Share of cells on the diagonal after the best one-to-one matching of clusters and types.
    ``purity``          Share of cells that are of the majority type of their cluster. Grows with the number
                        of clusters, so compare it at equal numbers only.
    ``homogeneity``     Low when clusters mix types (too few clusters).
    ``completeness``    Low when types are split over clusters (too many clusters).
    ``f1[type]``        F1 score of the cluster that fits this type best. Shows whether a rare type was found,
                        whatever happened to the large ones.
    ==================  ===================================================================================

    Parameters
    ----------
    adata
        Annotated data, or a data frame like its `obs`.
    keys
        One or several columns of `obs` with cluster labels.
    label_key
        Column of `obs` with the known labels. Cells without one (missing value) are left out.
    batch_key
        Column of `obs`. If given, every clustering is scored on all cells and on each batch by itself.

    Returns
    -------
    One row a clustering, indexed by its key; with `batch_key` indexed by (key, batch), where the batch `"all"` comes
    first. Columns: the scores above, then `n_clusters`, `n_labels`, `n_cells`, and last one `f1[type]` for each type
    (missing where the type has no cell).

    Raises
    ------
    ValueError
        If a column is missing, a cluster label is missing, no cell has a known label, or a batch is named `"all"`.

    Examples
    --------
    >>> import pandas as pd, scdeepclust as sdc
    >>> obs = pd.DataFrame({"found": list("001122"), "type": list("TTBBBB")})
    >>> scores = sdc.tl.score_clusters(obs, "found", label_key="type")
    >>> scores.loc["found", ["purity", "completeness", "f1[T]", "f1[B]"]].round(2).to_dict()
    {'purity': 1.0, 'completeness': 0.58, 'f1[T]': 1.0, 'f1[B]': 0.67}
    """
    obs = adata if isinstance(adata, pd.DataFrame) else adata.obs
    keys = [keys] if isinstance(keys, str) else list(keys)
    _check_columns(obs, keys, label_key, batch_key)
    obs = obs[obs[label_key].notna()]
    if obs.empty:
        raise ValueError(f"label_key={label_key!r} holds no known label; nothing can be scored")
    for key in keys:
        if n_missing := int(obs[key].isna().sum()):
            raise ValueError(f"keys: {key!r} has no label for {n_missing} cells; remove these cells or label them")

    groups = {"all": obs}
    if batch_key is not None:
        groups |= {str(batch): cells for batch, cells in obs.groupby(batch_key, observed=True)}
    rows = {(key, group): _score(cells[key], cells[label_key]) for key in keys for group, cells in groups.items()}
    scores = pd.DataFrame(list(rows.values()))  # the first row, over all batches, has every type: it sets the columns
    scores.index = pd.MultiIndex.from_tuples(rows, names=["clustering", "batch"])
    return scores if batch_key is not None else scores.droplevel("batch")


def _score(clusters: pd.Series, labels: pd.Series) -> dict[str, float]:
    from scipy.optimize import linear_sum_assignment
    from sklearn import metrics

    cluster_codes, cluster_names = pd.factorize(clusters, sort=True)
    label_codes, label_names = pd.factorize(labels, sort=True)
    table = np.zeros((len(label_names), len(cluster_names)), dtype=np.int64)
    np.add.at(table, (label_codes, cluster_codes), 1)
    n_cells = len(label_codes)
    matched = table[linear_sum_assignment(table, maximize=True)].sum()
    homogeneity, completeness, nmi = metrics.homogeneity_completeness_v_measure(label_codes, cluster_codes)
    # F1 = 2 |both| / (|type| + |cluster|)
    f1 = (2 * table / (table.sum(axis=1, keepdims=True) + table.sum(axis=0))).max(axis=1)
    return {
        "ARI": metrics.adjusted_rand_score(label_codes, cluster_codes),
        "NMI": nmi,  # the V measure is the mutual information over the mean entropy
        "accuracy": matched / n_cells,
        "purity": table.max(axis=0).sum() / n_cells,
        "homogeneity": homogeneity,
        "completeness": completeness,
        "n_clusters": len(cluster_names),
        "n_labels": len(label_names),
        "n_cells": n_cells,
        **{f"f1[{name}]": value for name, value in zip(label_names, f1, strict=True)},
    }


def _check_columns(obs: pd.DataFrame, keys: list[str], label_key: str, batch_key: str | None) -> None:
    if not keys:
        raise ValueError("keys is empty; name at least one column of obs with cluster labels")
    asked = [("keys", key) for key in keys] + [("label_key", label_key)]
    if batch_key is not None:
        asked.append(("batch_key", batch_key))
    for argument, column in asked:
        if column not in obs:
            raise ValueError(f"{argument}: obs has no column {column!r}; it has {', '.join(map(str, obs.columns))}")
    if batch_key is not None and (obs[batch_key].astype(str) == "all").any():
        raise ValueError(
            f"batch_key={batch_key!r} has a batch named 'all', the name of the row over all batches: rename it"
        )
