"""Which genes to cluster by: one choice for the command line, the comparison and the guide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scdeepclust.tl._arguments import checked
from scdeepclust.tl._counts import ALL, log_normalised

if TYPE_CHECKING:
    from anndata import AnnData

N_TOP_GENES = 2000

# Genes are ranked by this many cells at most: more change few of them, and would have to fit into memory.
MAX_CELLS = 50_000


@checked
def select_genes(
    adata: AnnData,
    n_top_genes: int = N_TOP_GENES,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    seed: int = 0,
) -> pd.Series:
    """The genes that vary most between cells, to cluster by.

    Genes are ranked by their dispersion among genes of like mean, in counts per 10,000
    (:func:`scanpy.pp.highly_variable_genes`, flavour ``"seurat"``). Which genes are taken can matter more than the
    model.

    Parameters
    ----------
    adata
        Annotated data with counts; may be backed by a file. It stays as it is.
    n_top_genes
        Number of genes.
    layer
        Layer with the counts; None for ``X``.
    batch_key
        Column of ``obs`` with batches. Genes are then ranked within each of them, so that what differs between batches
        only is not taken.
    seed
        Seed of the 50,000 cells that genes are ranked by where there are more.

    Returns
    -------
    One bool a gene, named ``"highly_variable"`` and indexed by ``adata.var_names``; all are True where there are no
    more genes than asked for.

    Raises
    ------
    ValueError
        If there is no such layer or column, the values are no counts, or a cell has none in the genes that were chosen.

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.pbmc68k_reduced()
    >>> genes = sdc.tl.select_genes(adata, 500, layer="counts", batch_key="batch")
    >>> int(genes.sum())
    500
    >>> adata = adata[:, genes].copy()
    """
    from scdeepclust.model._base import check_anndata, check_obs_keys, row_blocks

    check_anndata(adata, layer)  # values on a log scale would be taken without a word, and choose other genes
    check_obs_keys(adata, {"batch_key": batch_key})
    chosen = variable_genes(adata, layer, batch_key, n_top_genes, seed)
    if not chosen.all():
        counts = (block[:, chosen].sum(axis=1) for block in row_blocks(adata, layer))
        if n_empty := sum(int((of_cells == 0).sum()) for of_cells in counts):
            raise ValueError(
                f"`n_top_genes`: {n_empty} cells have no counts in the {chosen.sum()} most variable genes; use more "
                "genes, or remove the cells with the fewest counts."
            )
    return pd.Series(chosen, index=adata.var_names, name="highly_variable")


def variable_genes(
    adata: AnnData, layer: str | None, batch_key: str | None, n_top_genes: int, seed: int = 0
) -> np.ndarray:
    """Which genes vary most, (G,) bool, whatever cells are left with; see :func:`select_genes`."""
    import scanpy as sc

    from scdeepclust.train import one_thread

    if n_top_genes >= adata.n_vars:
        return np.ones(adata.n_vars, dtype=bool)
    cells: slice | np.ndarray = ALL
    if adata.n_obs > MAX_CELLS:
        cells = np.sort(np.random.default_rng(seed).choice(adata.n_obs, MAX_CELLS, replace=False))
    with one_thread():
        logged = log_normalised(adata, layer, [] if batch_key is None else [batch_key], cells)
        if batch_key is not None:  # as text: scanpy takes groups of nothing else
            logged.obs[batch_key] = logged.obs[batch_key].astype(str).astype("category")
        ranked = sc.pp.highly_variable_genes(logged, n_top_genes=n_top_genes, batch_key=batch_key, inplace=False)
    return ranked["highly_variable"].to_numpy()
