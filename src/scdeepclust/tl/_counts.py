"""Counts made comparable between cells, for what works on expression instead of counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData


def log_normalised(adata: AnnData, layer: str | None, obs: list[str] | None = None) -> AnnData:
    """log1p of counts per 10,000 as new, sparse data, with these columns of ``obs``.

    To be called within ``train.one_thread``: compiled code of scanpy resets the threads that torch uses.
    """
    import scanpy as sc
    from anndata import AnnData
    from scipy.sparse import csr_matrix

    from scdeepclust.model._base import count_matrix

    counts = csr_matrix(count_matrix(adata, layer)[:], dtype=np.float32, copy=True)
    logged = AnnData(counts, obs=adata.obs[obs or []].copy(), var=adata.var[[]].copy())
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    return logged


def variable_genes(adata: AnnData, layer: str | None, batch_key: str | None, n_top_genes: int) -> np.ndarray:
    """Which genes vary most, (G,) bool; all of them where there are no more than asked for."""
    import scanpy as sc

    from scdeepclust.train import one_thread

    if n_top_genes >= adata.n_vars:
        return np.ones(adata.n_vars, dtype=bool)
    with one_thread():
        logged = log_normalised(adata, layer, [] if batch_key is None else [batch_key])
        if batch_key is not None:
            logged.obs[batch_key] = logged.obs[batch_key].astype(str).astype("category")
        chosen = sc.pp.highly_variable_genes(logged, n_top_genes=n_top_genes, batch_key=batch_key, inplace=False)
    return chosen["highly_variable"].to_numpy()
