from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

if TYPE_CHECKING:
    from anndata import AnnData

# `raw.X` is printed with three decimals, so log1p(expected) is known to half a thousandth (plus float32 noise).
_ROUNDING = 6e-4
_TARGET_SUM = 1e4


def pbmc68k_reduced() -> AnnData:
    """Real counts without a download: 700 blood cells, 765 genes, ten cell types.

    scanpy ships this subset of the 68,000 PBMC of [1]_ normalised and log-transformed.
    The transformation is undone here: the stored values and the library size of each cell fix the
    integer counts uniquely, and the result is checked against the file.

    The types come from the nearest bulk profile of a purified population and are noisy (several T cell types
    overlap). Good for a demo and for tests, too small for a benchmark.

    Returns
    -------
    AnnData of shape 700 x 765 with

    - `X` and `layers["counts"]`: the counts, CSR float32, independent copies (so that `X` can be normalised),
    - `obs["cell_type"]`: ten types, categorical,
    - `obs["batch"]`: the GEM well the cell was captured in, eight of them, read from its barcode,
    - `obs["n_counts"]`: UMI of the cell over **all** genes. The 765 kept here hold about a fifth of them.

    Raises
    ------
    ValueError
        If the file inside the installed scanpy does not hold what the recovery relies on.

    References
    ----------
    .. [1] Zheng et al., Massively parallel digital transcriptional profiling of single cells,
       Nature Communications 8, 14049 (2017).

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.pbmc68k_reduced()
    >>> adata.shape
    (700, 765)
    >>> int(adata.layers["counts"].max())
    259
    """
    import scanpy as sc
    from anndata import AnnData

    stored = sc.datasets.pbmc68k_reduced()
    counts = _counts_from_log1p(sparse.csr_matrix(stored.raw.X), stored.obs["n_counts"].to_numpy())
    obs = pd.DataFrame(
        {
            "cell_type": stored.obs["bulk_labels"].astype(str).astype("category"),
            "batch": pd.Categorical(stored.obs_names.str.rsplit("-", n=1).str[-1]),
            "n_counts": stored.obs["n_counts"],
        },
        index=stored.obs_names.rename(None),
    )
    var = pd.DataFrame(index=stored.raw.var_names.rename(None))
    return AnnData(counts, obs=obs, var=var, layers={"counts": counts.copy()})


def _counts_from_log1p(log_normalized: sparse.csr_matrix, library_size: np.ndarray) -> sparse.csr_matrix:
    """Integer counts of which `log_normalized` is log1p(counts per 10,000) to three decimals."""
    if len(library_size) != log_normalized.shape[0]:
        raise ValueError(f"library_size has {len(library_size)} entries for {log_normalized.shape[0]} cells")
    per_value = np.repeat(library_size.astype(np.float64), np.diff(log_normalized.indptr)) / _TARGET_SUM
    counts = np.round(np.expm1(log_normalized.data.astype(np.float64)) * per_value)
    # A neighbouring integer would print differently wherever one count moves log1p by more than the rounding:
    # then a match everywhere is a proof.
    mismatch = np.abs(np.log1p(counts / per_value) - log_normalized.data)
    spacing = np.log1p((counts + 1) / per_value) - np.log1p(counts / per_value)
    if not (np.all(mismatch <= _ROUNDING) and np.all(spacing > 2 * _ROUNDING) and np.all(counts >= 1)):
        raise ValueError(
            "the counts of pbmc68k_reduced cannot be recovered: `raw.X` in the installed scanpy is no longer "
            "log1p of counts per 10,000 with three decimals; install a scanpy release that ships the original file"
        )
    return sparse.csr_matrix(
        (counts.astype(np.float32), log_normalized.indices.copy(), log_normalized.indptr.copy()),
        shape=log_normalized.shape,
    )
