from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scdeepclust.tl._arguments import checked
from scdeepclust.tl._gated import GatedData

if TYPE_CHECKING:
    from anndata import AnnData


@checked
def rank_gates(adata: AnnData, key: str = "idc", *, n_genes: int | None = None) -> pd.DataFrame:
    """Genes that each cluster was read from, the most important first.

    Genes are ranked by their *contribution*: the mean, over the cells of the cluster, of gate times standardised
    expression, which is how far the gene moves the input of the clustering away from that of an average cell. A gate
    alone does not say so: a gene may be open because its absence is telling.

    Parameters
    ----------
    adata
        Data after ``write_back`` of an :class:`~scdeepclust.model.IDC` model.
    key
        Key of the results.
    n_genes
        Genes of each cluster; all by default.

    Returns
    -------
    One row a cluster and gene, with columns

    - ``cluster``, ``rank`` (1 is the first), ``gene``,
    - ``contribution``: mean of gate times standardised expression over the cells of the cluster,
    - ``gate``: mean gate, ``open``: share of the cells whose gate is open, ``global_gate``: gate for the cluster,
    - ``log2_fold_change`` and ``wilcoxon_rank``: what :func:`scanpy.tl.rank_genes_groups` says about the cluster
      against all other cells, for comparison (missing for clusters of one cell).

    Raises
    ------
    ValueError
        If ``adata`` has no gates, or ``n_genes`` is not positive.

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.simulate_counts(300, 200, n_clusters=3, depth=200)
    >>> sdc.model.IDC.setup_anndata(adata)
    >>> model = sdc.model.IDC(adata, n_clusters=3, target_sparsity=0.1)
    >>> model.train(pretrain_epochs=40, max_epochs=2, enable_progress_bar=False)
    >>> model.write_back(adata)
    >>> table = sdc.tl.rank_gates(adata, n_genes=4)
    >>> table.groupby("cluster", observed=True).size().to_list()
    [4, 4, 4]
    """
    if n_genes is not None and n_genes < 1:
        raise ValueError(f"`n_genes` must be at least 1, found {n_genes}.")
    data = GatedData(adata, key)
    gate, opened, contribution = data.cluster_means()
    fold_change, wilcoxon = _wilcoxon(data)
    tables = []
    for cluster in data.labels.categories:
        order = np.argsort(-contribution[cluster].to_numpy(), kind="stable")[:n_genes]
        genes = data.genes[order]
        columns = {
            "cluster": cluster,
            "rank": np.arange(1, len(genes) + 1),
            "gene": genes,
            "contribution": contribution.loc[genes, cluster].to_numpy(),
            "gate": gate.loc[genes, cluster].to_numpy(),
            "open": opened.loc[genes, cluster].to_numpy(),
            "global_gate": data.global_gates[cluster].reindex(genes).to_numpy(),
            "log2_fold_change": fold_change[cluster].reindex(genes).to_numpy(),
            "wilcoxon_rank": wilcoxon[cluster].reindex(genes).to_numpy(),
        }
        tables.append(pd.DataFrame(columns))
    result = pd.concat(tables, ignore_index=True)
    result["cluster"] = pd.Categorical(result["cluster"], categories=data.labels.categories)
    return result


def _wilcoxon(data: GatedData) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Log2 fold changes and ranks of the Wilcoxon test, genes x clusters; missing where a cluster has one cell."""
    import scanpy as sc
    from anndata import AnnData

    from scdeepclust.train import one_thread

    obs = pd.DataFrame({"cluster": data.labels.astype(str)}, index=np.arange(len(data.labels)).astype(str))
    expression = AnnData(data.log_normalised(), obs=obs)
    expression.var_names = data.genes
    sizes = data.labels.value_counts()
    groups = [str(c) for c in data.labels.categories if sizes[c] > 1]
    missing = pd.DataFrame(np.nan, index=data.genes, columns=data.labels.categories)
    fold_change, ranks = missing.copy(), missing.copy()
    if not groups or len(data.labels.categories) < 2:
        return fold_change, ranks
    with one_thread():
        sc.tl.rank_genes_groups(expression, "cluster", groups=groups, method="wilcoxon")
    for cluster in data.labels.categories:
        if str(cluster) in groups:
            table = sc.get.rank_genes_groups_df(expression, str(cluster)).set_index("names")
            fold_change[cluster] = table["logfoldchanges"].reindex(data.genes)
            ranks[cluster] = pd.Series(np.arange(1, len(table) + 1), index=table.index).reindex(data.genes)
    return fold_change, ranks
