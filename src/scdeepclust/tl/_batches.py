from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdeepclust._keys import ResultKeys
from scdeepclust.tl._arguments import checked

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy.sparse import csr_matrix

# A cluster is of one batch if this share of its cells is, and less than that share of all cells.
ONE_BATCH, USUAL_SHARE = 0.9, 0.7

# Below this mixing the batches of a cluster lie side by side.
SIDE_BY_SIDE = 0.5

# Squared distance of a batch to the others in a cluster, over that in a typical cluster, from which they differ.
DIFFERENT = 3.0

# Cells of a batch in a cluster that can show two groups, those that are looked at, and the level of the evidence.
ENOUGH, AT_MOST, LEVEL = 50, 2000, 0.05

N_NEIGHBORS, N_COMPONENTS, N_GENES = 30, 15, 2000


@checked
def check_batches(
    adata: AnnData, key: str, batch_key: str, *, layer: str | None = None, use_rep: str | None = None, seed: int = 0
) -> pd.DataFrame:
    """Ask of each cluster whether batches were corrected too little, or too much. No labels are needed.

    Corrected too little, a type falls into clusters of one batch each. Corrected too much, types that a batch has alone
    are pulled into clusters of other types: inside of one batch, where there is nothing to correct, such a cluster
    holds two groups, or its batches differ more from each other than those of other clusters do.

    Parameters
    ----------
    adata
        Data with cluster labels and raw counts.
    key
        Column of ``obs`` with the clusters.
    batch_key
        Column of ``obs`` with the batches.
    layer
        Layer with the raw counts. Default: the one that ``write_back`` noted under ``key``, or ``X``.
    use_rep
        Embedding in ``obsm`` in which batches should be mixed. Default: that of ``key``.
    seed
        Seed of the halves of the counts.

    Returns
    -------
    One row a cluster:

    - ``n_cells``, ``n_batches``: cells, and batches among them.
    - ``batch``, ``share``, ``expected``: the batch with most cells, its share, and its share of all cells.
    - ``mixing``: mean entropy of the batches among the 30 nearest neighbours inside of the cluster, over that of
      neighbours drawn at random there. 1 where batches are mixed, 0 where they are apart; missing without an embedding,
      and with one batch.
    - ``shift``: how far the expression of a batch is from that of the others in the cluster (squared distance, largest
      over batches), as a multiple of the median cluster.
    - ``groups_in``: batches in which the cluster holds two groups: further apart in unused counts of this batch alone
      than one population (p at most .05, corrected for all that were looked at).
    - ``twin``: for a cluster of one batch, another one that differs from it by no more than batches differ elsewhere.
    - ``verdict``: the above in words, empty where nothing was found.

    Raises
    ------
    ValueError
        If a column is missing, or there are fewer than two batches.

    Notes
    -----
    Two groups inside of one batch can also mean that there are too few clusters: look whether all batches have them. A
    type that only one batch has is no fault, and looks like one of one batch without a twin.

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.simulate_counts(400, 200, n_clusters=3, n_batches=2, depth=500)
    >>> adata.obs["by_batch"] = adata.obs["cell_type"].astype(str) + adata.obs["batch"].astype(str)
    >>> table = sdc.tl.check_batches(adata, "by_batch", "batch")
    >>> table.loc["type_0batch_0", "verdict"]
    'split from type_0batch_1 by batch batch_0'
    """
    labels, batches = _columns(adata, key, batch_key)
    cells = np.flatnonzero(labels.codes >= 0)
    counts, logged = _expression(adata[cells], layer if layer is not None else _layer_of(adata, key))
    labels, batches = labels[cells], batches[cells]
    names = list(labels.categories)
    composition = pd.crosstab(labels.codes, batches.codes).reindex(range(len(names)), fill_value=0).to_numpy()
    expected = np.bincount(batches.codes, minlength=len(batches.categories)) / len(batches)
    largest = composition.argmax(axis=1)
    table = pd.DataFrame(index=pd.Index(names, name=key))
    table["n_cells"] = composition.sum(axis=1)
    table["n_batches"] = (composition > 0).sum(axis=1)
    table["batch"] = np.asarray(batches.categories)[largest]
    table["share"] = composition[np.arange(len(names)), largest] / np.maximum(table["n_cells"].to_numpy(), 1)
    table["expected"] = expected[largest]
    rep = ResultKeys(key).embedding if use_rep is None else use_rep
    if use_rep is not None and rep not in adata.obsm:
        raise ValueError(f"`use_rep`: there is no {rep!r} in `adata.obsm`; found {list(adata.obsm)}.")
    table["mixing"] = (
        _mixing(np.asarray(adata.obsm[rep])[cells], labels.codes, batches.codes, seed) if rep in adata.obsm else np.nan
    )
    apart = _distances(logged, labels.codes, batches.codes)
    typical = np.nanmedian(apart) if np.isfinite(apart).any() else np.nan
    worst = np.where(np.isfinite(apart), apart, -np.inf).max(axis=1)
    table["shift"] = np.where(np.isfinite(worst), np.maximum(worst, 0), np.nan) / typical
    table["groups_in"] = _groups(counts, labels.codes, batches, len(names), seed)
    table["twin"] = _twins(table, logged, labels.codes, composition, typical)
    table["verdict"] = [_verdict(row) for _, row in table.iterrows()]
    return table


def _columns(adata: AnnData, key: str, batch_key: str) -> tuple[pd.Categorical, pd.Categorical]:
    for argument, column in (("key", key), ("batch_key", batch_key)):
        if column not in adata.obs:
            raise ValueError(f"`{argument}`: there is no column {column!r} in `adata.obs`; found {list(adata.obs)}.")
    labels, batches = (
        pd.Categorical(adata.obs[column].astype(str).where(adata.obs[column].notna())) for column in (key, batch_key)
    )
    if (batches.codes < 0).any():
        raise ValueError(f"`batch_key`: column {batch_key!r} of `adata.obs` has missing values.")
    if isinstance(adata.obs[key].dtype, pd.CategoricalDtype):  # in the order of the user
        names = [str(name) for name in adata.obs[key].cat.categories if str(name) in set(labels.categories)]
        labels = labels.reorder_categories(names)
    if len(batches.categories) < 2:
        raise ValueError(f"`batch_key`: column {batch_key!r} of `adata.obs` holds a single batch.")
    return labels, batches


def _layer_of(adata: AnnData, key: str) -> str | None:
    entry: Any = adata.uns.get(key, {})
    layer = entry.get("setup", {}).get("layer") if hasattr(entry, "get") else None
    return layer if layer is not None and layer in adata.layers else None


def _expression(adata: AnnData, layer: str | None) -> tuple[csr_matrix, np.ndarray]:
    """Counts of the genes that vary most (n, G), and log1p of counts per 10,000 of them, dense float32."""
    from scipy.sparse import csr_matrix

    from scdeepclust.model._base import count_matrix
    from scdeepclust.tl._genes import variable_genes
    from scdeepclust.train import one_thread

    with one_thread():
        chosen = variable_genes(adata, layer, None, N_GENES)
        counts = csr_matrix(count_matrix(adata, layer)[:], dtype=np.float32)
        totals = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1)
        counts = csr_matrix(counts[:, chosen])
        return counts, _logged(counts, totals)


def _logged(counts: csr_matrix, totals: np.ndarray) -> np.ndarray:
    logged = counts.multiply((1e4 / totals)[:, None]).tocsr()
    return np.log1p(logged.toarray()).astype(np.float32)


def _mixing(points: np.ndarray, labels: np.ndarray, batches: np.ndarray, seed: int) -> list[float]:
    """Entropy of the batches of neighbours over what is expected at random, cluster by cluster."""
    from sklearn.neighbors import NearestNeighbors

    from scdeepclust.train import one_thread

    rng, mixing = np.random.default_rng(seed), []
    for k in range(labels.max() + 1):
        rows = np.flatnonzero(labels == k)
        if len(rows) > AT_MOST:
            rows = rng.choice(rows, AT_MOST, replace=False)
        here = batches[rows]
        n_neighbors = min(N_NEIGHBORS, len(rows) - 1)
        if n_neighbors < 2 or len(np.unique(here)) < 2:
            mixing.append(np.nan)
            continue
        with one_thread():
            neighbours = NearestNeighbors(n_neighbors=n_neighbors).fit(points[rows]).kneighbors(return_distance=False)
        found, by_chance = (_entropy(codes[neighbours]) for codes in (here, rng.permutation(here)))
        mixing.append(float(found / by_chance) if by_chance else np.nan)
    return mixing


def _entropy(codes: np.ndarray) -> float:
    """Mean entropy of the codes (n, k) in a row."""
    from scipy.stats import entropy

    shares = np.stack([(codes == code).mean(axis=1) for code in np.unique(codes)], axis=1)
    return float(entropy(shares, axis=1).mean())


def _distances(logged: np.ndarray, labels: np.ndarray, batches: np.ndarray) -> np.ndarray:
    """Squared distance of each batch to the others in each cluster, less what few cells make, (K, B); or NaN."""
    apart = np.full((labels.max() + 1, batches.max() + 1), np.nan)
    for k, b in np.ndindex(*apart.shape):
        apart[k, b] = _distance(logged[(labels == k) & (batches == b)], logged[(labels == k) & (batches != b)])
    return apart


def _distance(some: np.ndarray, others: np.ndarray) -> float:
    """Squared distance of two means, without the part that is noise."""
    if min(len(some), len(others)) < 10:
        return np.nan
    noise = sum(float(part.var(axis=0, ddof=1).sum()) / len(part) for part in (some, others))
    return float(np.square(some.mean(axis=0) - others.mean(axis=0)).sum()) - noise


def _groups(counts: csr_matrix, labels: np.ndarray, batches: pd.Categorical, n_clusters: int, seed: int) -> list[str]:
    """Batches in which a cluster holds two groups, joined by commas."""
    looked_at = {
        (k, b): rows
        for k in range(n_clusters)
        for b in range(len(batches.categories))
        if len(rows := np.flatnonzero((labels == k) & (batches.codes == b))) >= ENOUGH
    }
    rng, found = np.random.default_rng(seed), {}
    for place, rows in looked_at.items():
        rows = rng.choice(rows, min(len(rows), AT_MOST), replace=False)
        found[place] = _p_of_two(counts[rows], rng, seed) * len(looked_at) <= LEVEL
    return [
        ", ".join(str(name) for b, name in enumerate(batches.categories) if found.get((k, b)))
        for k in range(n_clusters)
    ]


def _p_of_two(counts: csr_matrix, rng: np.random.Generator, seed: int) -> float:
    """How well one population explains the best split of these cells in two, by counts that did not make it."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    from scdeepclust.train import one_thread, separation_linkage, split_p_values

    halvings = []
    for _ in range(2):
        first = counts.copy()
        first.data = rng.binomial(counts.data.astype(np.int64), 0.5).astype(np.float32)
        halvings.append((first, counts - first))
    with one_thread():
        logged = _logged(counts, np.maximum(counts.sum(axis=1).A1, 1))
        pca = PCA(min(N_COMPONENTS, len(logged) - 1, logged.shape[1]), svd_solver="randomized", random_state=seed)
        points = pca.fit_transform(logged)
        labels = KMeans(2, n_init=5, random_state=seed).fit_predict(points)
        pairs = [
            tuple(pca.transform(_logged(half, np.maximum(half.sum(axis=1).A1, 1))) for half in halving)
            for halving in halvings
        ]
    if len(np.unique(labels)) < 2:
        return 1.0
    return float(split_p_values(labels, separation_linkage(labels, pairs), pairs, seed)[0])


def _twins(
    table: pd.DataFrame, logged: np.ndarray, labels: np.ndarray, composition: np.ndarray, typical: float
) -> list[str]:
    """For each cluster of one batch, the closest one without that batch, if batches explain their distance."""
    twins, shares = [], composition / np.maximum(composition.sum(axis=1, keepdims=True), 1)

    def distance(k: int, j: int) -> float:
        apart = _distance(logged[labels == k], logged[labels == j])
        return np.inf if np.isnan(apart) else apart

    for k, row in enumerate(table.itertuples()):
        batch = composition[k].argmax()
        others = [j for j in range(len(table)) if j != k and shares[j, batch] <= 1 - ONE_BATCH]
        if not (row.share >= ONE_BATCH and row.expected < USUAL_SHARE and others):
            twins.append("")
            continue
        apart = {j: distance(k, j) for j in others}
        closest = min(others, key=apart.__getitem__)
        # where no cluster has several batches, nothing but clusters of the same batch says how much it makes
        same_batch = [distance(k, j) for j in range(len(table)) if j not in (k, *others)]
        bound = DIFFERENT * typical if np.isfinite(typical) else min([*same_batch, np.inf]) / 2
        twins.append(str(table.index[closest]) if apart[closest] <= bound else "")
    return twins


def _verdict(row: pd.Series) -> str:
    words = []
    if row["twin"]:
        words.append(f"split from {row['twin']} by batch {row['batch']}")
    elif row["share"] >= ONE_BATCH and row["expected"] < USUAL_SHARE:
        words.append(f"of batch {row['batch']} alone")
    elif row["mixing"] < SIDE_BY_SIDE:
        words.append("batches lie side by side")
    if row["groups_in"]:
        words.append(f"holds two groups in {row['groups_in']}")
    if row["shift"] >= DIFFERENT:
        words.append("its batches differ more than elsewhere")
    return "; ".join(words)
