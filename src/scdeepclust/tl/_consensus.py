from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scdeepclust._keys import ResultKeys
from scdeepclust.tl._arguments import checked
from scdeepclust.tl._labels import written_clusters

if TYPE_CHECKING:
    from anndata import AnnData


@checked
def consensus(adata: AnnData, keys: Sequence[str]) -> pd.DataFrame:
    """Combine several clusterings of the same cells, for example one model trained with several seeds.

    The clustering that agrees best with all others (largest mean adjusted Rand index) names the clusters. Clusters of
    the others are matched to them one to one by the cells they share (Hungarian method); what finds no partner counts
    for the cluster it shares most cells with. Then every clustering votes on every cell, with its assignment
    probabilities where they are stored and with one whole vote where they are not.

    Parameters
    ----------
    adata
        Data with the clusterings: columns of ``obs``, and ``obsm["{key}_probabilities"]`` where
        ``write_back(key_added=key)`` of a model put them.
    keys
        At least two columns of ``obs`` with cluster labels.

    Returns
    -------
    One row a cell. ``consensus``: the cluster with most votes, named ``"0"``, ``"1"``, ... by size, largest first.
    ``agreement``: share of the clusterings whose own label is that cluster, between 0 and 1. Low agreement marks cells
    that another seed would put elsewhere; high agreement does not make a label right, for clusterings can share an
    error.

    Raises
    ------
    ValueError
        If there are fewer than two keys, a column is missing, or a cell has no label.

    Examples
    --------
    >>> import anndata, pandas as pd, scdeepclust as sdc
    >>> obs = pd.DataFrame({"a": list("00011"), "b": list("yyyzz"), "c": list("00111")}, index=list("vwxyz"))
    >>> sdc.tl.consensus(anndata.AnnData(obs=obs), ["a", "b", "c"])["consensus"].tolist()
    ['0', '0', '0', '1', '1']
    """
    keys = [keys] if isinstance(keys, str) else list(keys)
    _check(adata, keys)
    factorized = [pd.factorize(adata.obs[key], sort=True) for key in keys]
    reference = _most_typical([codes for codes, _ in factorized])
    ref_codes, ref_names = factorized[reference]
    votes = np.zeros((adata.n_obs, len(ref_names)))
    own = np.empty((len(keys), adata.n_obs), dtype=np.int64)
    for row, key, (codes, names) in zip(own, keys, factorized, strict=True):
        partner = _partners(codes, ref_codes, len(names), len(ref_names))
        row[:] = partner[codes]
        votes += _votes(adata, key, codes, names) @ np.eye(len(ref_names))[partner]
    winner = votes.argmax(axis=1)
    sizes = np.bincount(winner, minlength=len(ref_names))
    rank = np.argsort(np.argsort(-sizes, kind="stable"))
    labels = pd.Categorical.from_codes(rank[winner], [str(k) for k in range(len(ref_names))])
    return pd.DataFrame(
        {"consensus": labels.remove_unused_categories(), "agreement": (own == winner).mean(axis=0)},
        index=adata.obs_names,
    )


def _check(adata: AnnData, keys: list[str]) -> None:
    if len(keys) < 2:
        raise ValueError(f"`keys` names {len(keys)} clusterings; a consensus needs at least 2.")
    for key in keys:
        if key not in adata.obs:
            raise ValueError(f"`keys`: there is no column {key!r} in `adata.obs`; found {list(adata.obs)}.")
        if n_missing := int(adata.obs[key].isna().sum()):
            raise ValueError(f"`keys`: column {key!r} of `adata.obs` has no label for {n_missing} cells.")


def _most_typical(clusterings: list[np.ndarray]) -> int:
    """Index of the clustering with the largest mean adjusted Rand index to all."""
    from sklearn.metrics import adjusted_rand_score

    return int(np.argmax([sum(adjusted_rand_score(a, b) for b in clusterings) for a in clusterings]))


def _partners(codes: np.ndarray, ref_codes: np.ndarray, n: int, n_ref: int) -> np.ndarray:
    """Reference cluster that each of n clusters stands for, (n,)."""
    from scdeepclust.train import matched

    shared = np.zeros((n, n_ref), dtype=np.int64)
    np.add.at(shared, (codes, ref_codes), 1)
    partner = matched(ref_codes, codes)
    return np.where(partner < 0, shared.argmax(axis=1), partner)


def _votes(adata: AnnData, key: str, codes: np.ndarray, names: pd.Index) -> np.ndarray:
    """Votes of one clustering, cells x its clusters: stored probabilities, or 1 for the label."""
    stored = ResultKeys(key).probabilities
    columns = written_clusters(codes, adata.obsm[stored]) if stored in adata.obsm else {}
    if not columns:
        return np.eye(len(names))[codes]
    # a cluster without cells has no column of votes
    return np.asarray(adata.obsm[stored], dtype=float)[:, [columns[code] for code in range(len(names))]]
