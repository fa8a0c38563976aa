from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scdeepclust.tl._arguments import checked, with_data
from scdeepclust.tl._unused_counts import gene_test, judging_cells

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy.sparse import csr_matrix

    from scdeepclust.model._base import ClusteringModel


@checked
def rank_genes(
    model: ClusteringModel, key: str | None = None, *, n_halvings: int = 2, key_added: str = "rank_genes_groups"
) -> pd.DataFrame:
    """Genes that are higher in each cluster, tested on counts that did not say who is in it.

    A test of the genes of clusters that were found in the same counts finds some whatever the truth: cells are in a
    cluster because their counts are high. Here the counts of each cell are halved. One half names the cells, by a
    linear discriminant of the clusters in denoised expression; the other half is tested (Welch's t-test of
    log-normalised counts, the cells of the name against all others), and then the other way round.

    Parameters
    ----------
    model
        A trained model with its data.
    key
        Column of ``adata.obs`` with the clusters, for example after they were renamed or merged; cells without a value
        are left out. Default: what ``write_back`` calls it.
    n_halvings
        Ways of halving the counts; scores and changes are averaged over them and over both ways, p-values by their
        normal scores.
    key_added
        Name in ``adata.uns`` for the table as scanpy's plots take it, for example
        ``sc.pl.rank_genes_groups_dotplot(adata)``.

    Returns
    -------
    One row for each cluster and gene, the surest genes of each cluster first:

    - ``group``, ``names``: cluster and gene.
    - ``scores``: t statistic, negative where the gene is lower in the cluster.
    - ``logfoldchanges``: log2 fold change in unused counts, of means taken on the log scale, as scanpy gives it.
    - ``pvals``, ``pvals_adj``: p-value, and adjusted for all genes of the cluster (Benjamini and Hochberg).
    - ``pct_nz_group``, ``pct_nz_reference``: share of cells with the gene in half of their counts, in the cluster and
      elsewhere.
    - ``gate``: only with an IDC, mean gate of the gene in the cells of the cluster.

    Raises
    ------
    RuntimeError
        If the model is not trained.
    ValueError
        If the model has no data, there is no such column, or it holds fewer than two clusters of two cells.

    Notes
    -----
    The halves are independent if counts are negative binomial around what the model expects, with its dispersion (they
    are split by a beta-binomial with it); Poisson counts are split evenly. Clusters and networks have seen the whole
    counts, but a cell is named by its one half alone: what it has in the other half has a part in that only as one of
    all the cells that the networks and the discriminant were fitted to. Cells, not samples, are compared: for a
    difference between conditions, sum the cells of each sample first.

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.simulate_counts(300, 200, n_clusters=3, marker_log_fold_change=3, depth=300)
    >>> sdc.model.GMVAE.setup_anndata(adata)
    >>> model = sdc.model.GMVAE(adata, n_clusters=3)
    >>> model.train(pretrain_epochs=40, max_epochs=2, enable_progress_bar=False)
    >>> model.write_back()
    >>> table = sdc.tl.rank_genes(model)
    >>> table.shape
    (600, 8)
    >>> adata.uns["rank_genes_groups"]["params"]["groupby"]
    'gmvae'
    """
    adata = with_data(model)
    key = type(model).__name__.lower() if key is None else key
    if key not in adata.obs:
        raise ValueError(
            f"`key`: there is no column {key!r} in `adata.obs`. Run `model.write_back()`, or name another."
        )
    rows = np.flatnonzero(adata.obs[key].notna())
    column = adata.obs[key].iloc[rows].astype("category").cat.remove_unused_categories()
    names, labels = list(map(str, column.cat.categories)), column.cat.codes.to_numpy().astype(int)
    if len(names) < 2 or np.bincount(labels).min() < 2:
        raise ValueError(f"`key`: column {key!r} must hold at least two clusters, of at least two cells each.")
    chosen = judging_cells(labels)
    rows, labels = rows[chosen], labels[chosen]
    roles = []
    for halves in model._halves(rows, n_halvings, independent=True):
        for points, counts in zip(halves.points, halves.counts[::-1], strict=True):
            roles.append((_named(points, labels), counts))
    genes = pd.Index(model.gene_names_, name="names")
    tables = [_of_cluster(k, roles, genes) for k in range(len(names))]
    if hasattr(model, "get_gates"):
        gates = model.get_gates(indices=rows)
        for k, table in enumerate(tables):
            table["gate"] = np.asarray(gates[labels == k].mean(axis=0)).ravel()
    tables = [table.sort_values("scores", ascending=False, kind="stable").reset_index() for table in tables]
    _for_scanpy(adata, key, key_added, dict(zip(names, tables, strict=True)))
    for name, table in zip(names, tables, strict=True):
        table.insert(0, "group", name)
    return pd.concat(tables, ignore_index=True)


def _named(points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cluster of each cell by one half of its counts."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    n = labels.max() + 1
    return LinearDiscriminantAnalysis("lsqr", "auto", priors=np.full(n, 1 / n)).fit(points, labels).predict(points)


def _of_cluster(k: int, roles: list[tuple[np.ndarray, csr_matrix]], genes: pd.Index) -> pd.DataFrame:
    """Test of each gene, averaged over the roles of the halves."""
    from scipy.stats import false_discovery_control

    tests = [gene_test(counts, named == k) for named, counts in roles]
    found = [((counts[named == k] > 0).mean(axis=0), (counts[named != k] > 0).mean(axis=0)) for named, counts in roles]
    inside, outside = (np.nan_to_num(np.mean([np.asarray(each[i]).ravel() for each in found], axis=0)) for i in (0, 1))
    p = _of_all([test.p for test in tests], [test.score for test in tests])
    table = {
        "scores": np.mean([test.score for test in tests], axis=0),
        "logfoldchanges": np.mean([test.change for test in tests], axis=0),
        "pvals": p,
        "pvals_adj": false_discovery_control(p),
        "pct_nz_group": inside,
        "pct_nz_reference": outside,
    }
    return pd.DataFrame(table, index=genes)


def _of_all(p: list[np.ndarray], scores: list[np.ndarray]) -> np.ndarray:
    """One p-value of several two-sided ones of the same gene, by the mean of their normal scores.

    Such a mean varies at most as much as one of them does, however they depend on each other, and is read as one: the
    p-value is never too small for that, and a gene that is high in all of them is not lost.
    """
    from scipy.stats import norm

    sizes = norm.isf(np.maximum(p, np.finfo(float).tiny) / 2)
    return 2 * norm.sf(np.abs(np.mean(np.sign(scores) * sizes, axis=0)))


def _for_scanpy(adata: AnnData, key: str, key_added: str, tables: dict[str, pd.DataFrame]) -> None:
    """The tables in the form of :func:`scanpy.tl.rank_genes_groups`."""
    params = {"groupby": key, "reference": "rest", "method": "t-test of unused counts", "use_raw": False}
    entry: dict[str, object] = {"params": params | {"layer": None, "corr_method": "benjamini-hochberg"}}
    kinds = {"names": object, "scores": np.float32, "logfoldchanges": np.float32, "pvals": float, "pvals_adj": float}
    for column, kind in kinds.items():
        values = [table[column].to_numpy().astype(kind) for table in tables.values()]
        entry[column] = np.rec.fromarrays(values, dtype=[(name, kind) for name in tables])
    adata.uns[key_added] = entry
