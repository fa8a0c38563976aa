"""Counts made comparable between cells, for what works on expression instead of counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData

ALL = slice(None)


def log_normalised(
    adata: AnnData, layer: str | None, obs: list[str] | None = None, cells: slice | np.ndarray = ALL
) -> AnnData:
    """log1p of counts per 10,000 of these cells as new, sparse data, with these columns of ``obs``.

    To be called within ``train.one_thread``: compiled code of scanpy resets the threads that torch uses.
    """
    import scanpy as sc
    from anndata import AnnData
    from scipy.sparse import csr_matrix

    from scdeepclust.model._base import count_matrix

    counts = csr_matrix(count_matrix(adata, layer)[cells], dtype=np.float32, copy=True)
    logged = AnnData(counts, obs=adata.obs[obs or []].iloc[cells].copy(), var=adata.var[[]].copy())
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    return logged
