"""The matrix of counts: where it is, whether it holds counts, and its rows block by block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from anndata import AnnData
from anndata.abc import CSCDataset, CSRDataset
from scipy.sparse import csr_matrix, issparse, vstack

# Cells read at once: a few MB, whatever the number of cells.
BLOCK = 4096

# Cells that are looked at where counts are searched for.
SAMPLE = 512

# A larger number is no count of molecules, and its sums leave the range of 32-bit floats.
LARGEST = 1e9

# Values this close to a whole number (relative to it) were counts before some rounding.
ROUNDING = 1e-3


def count_matrix(adata: AnnData, layer: str | None) -> Any:
    """The registered counts: ``X`` or a layer."""
    if layer is None:
        return adata.X
    found = [name for name in adata.layers.keys() if name is not None]  # a collection of files only has keys
    if layer not in found:
        raise ValueError(f"`layer`: there is no layer {layer!r} in `adata.layers`; found {found}.")
    return adata.layers[layer]


def place(layer: str | None) -> str:
    """How a user writes where the counts are."""
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def as_csr(block: Any) -> csr_matrix:
    """Some rows of any matrix as CSR, in a type that SciPy knows."""
    if issparse(block):
        return csr_matrix(block)
    block = np.asarray(block)
    if block.dtype == np.float16:
        block = block.astype(np.float32)
    return csr_matrix(block.astype(block.dtype.newbyteorder("="), copy=False))


def row_blocks(adata: AnnData, layer: str | None) -> Iterator[csr_matrix]:
    """Blocks of cells of dense, sparse or file-backed counts, each as CSR."""
    if hasattr(adata, "row_blocks"):  # cells of a datamodule, which have no matrix
        yield from adata.row_blocks()
        return
    x = count_matrix(adata, layer)
    for start in range(0, adata.n_obs, BLOCK):
        yield as_csr(x[start : start + BLOCK])


def with_genes(adata: AnnData, layer: str | None, genes: np.ndarray) -> Any:
    """The counts with these columns only; those in a file are read."""
    x = count_matrix(adata, layer)
    if isinstance(x, np.ndarray) or issparse(x):
        return x[:, genes]
    return vstack([block[:, genes] for block in row_blocks(adata, layer)], format="csr")


def check_matrix(x: Any, layer: str | None) -> None:
    """Raise a ValueError unless rows of ``x`` can be read as numbers."""
    where, dtype = place(layer), getattr(x, "dtype", None)
    if x is None:
        raise ValueError(f"`{where}` is empty. Give the layer that holds the counts: `layer=...`.")
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise ValueError(
            f"`{where}` is a masked array with {np.ma.count_masked(x)} masked values. Run "
            f"`{where} = np.ma.filled({where}, 0)` if they are zeros."
        )
    known = issparse(x) or isinstance(x, np.ndarray | CSRDataset | CSCDataset) or _is_array_in_a_file(x)
    if not known:
        name = f"{type(x).__module__.partition('.')[0]}.{type(x).__name__}"
        raise ValueError(
            f"`{where}` is a {name}, which is not read. Run `adata = adata.to_memory()`, or give a NumPy array or a "
            "SciPy sparse matrix (CSR is fastest)."
        )
    if dtype is not None and dtype.kind not in "buif":
        raise ValueError(
            f"`{where}` has dtype {dtype}, which is no type of real numbers. Run "
            f"`{where} = {where}.astype(np.float32)` if it holds counts."
        )


def _is_array_in_a_file(x: Any) -> bool:
    """Whether this is a dense array of an HDF5 file or a zarr store."""
    return type(x).__module__.partition(".")[0] in ("h5py", "zarr") and len(getattr(x, "shape", ())) == 2


def no_counts(values: np.ndarray) -> str | None:
    """What is wrong with these values if they are not all counts."""
    if values.dtype.kind in "bu" and values.max(initial=0) <= LARGEST:
        return None
    if not np.isfinite(values).all():
        return f"has {(~np.isfinite(values)).sum()} values that are NaN or infinite"
    if (values < 0).any():
        return f"has negative values (smallest {values.min():g}), so it holds no counts"
    if values.max(initial=0) > LARGEST:
        return f"has values as large as {values.max():g}, which are no counts"
    fractions = values != np.round(values)
    if fractions.any():
        return f"has values that are not whole numbers, such as {float(values[fractions][0])!r}"
    return None


def check_counts(values: np.ndarray, where: str) -> None:
    """Raise a ValueError unless all values are counts."""
    if problem := no_counts(values):
        raise ValueError(f"{where} {problem}. Give raw counts, for example `layer='counts'`.")


def remedy(adata: AnnData, layer: str | None, values: np.ndarray) -> str:
    """What to do about values that are no counts: round them, or take the counts from where they are."""
    where = place(layer)
    in_memory = "`adata = adata.to_memory()`, then " if adata.isbacked else ""
    with np.errstate(invalid="ignore"):
        nearly = np.isfinite(values).all() and np.allclose(values, np.round(values), rtol=1e-6, atol=ROUNDING)
    if nearly and (values > -ROUNDING).all() and values.max(initial=0) <= LARGEST:
        return f"They are whole numbers but for rounding: run {in_memory}`{where} = np.rint({where})`."
    for name in [name for name in adata.layers.keys() if name is not None and name != layer]:
        if _holds_counts(adata.layers[name]):
            return f"Counts are in `{place(name)}`: give `layer={name!r}`."
    if layer is not None and _holds_counts(adata.X):
        return "Counts are in `adata.X`: give `layer=None`."
    raw = getattr(adata, "raw", None)
    if raw is not None and _holds_counts(raw.X):
        if adata.var_names.isin(raw.var_names).all():
            step = "`adata.layers['counts'] = adata.raw[:, adata.var_names].X`, then give `layer='counts'`"
        else:
            step = "`adata = adata.raw.to_adata()`"
        return f"Counts are in `adata.raw.X`: run {in_memory}{step}."
    found = [name for name in adata.layers.keys() if name is not None]
    return f"Give raw counts, as a layer or in `adata.X`; there are none in X, raw and the layers {found}."


def _holds_counts(x: Any) -> bool:
    try:
        check_matrix(x, None)
    except ValueError:
        return False
    values = as_csr(x[:SAMPLE]).data
    return bool(values.any()) and no_counts(values) is None


def fingerprint(x: Any) -> tuple:
    """What changes when counts in memory are normalised, logged, scaled or replaced; a pass over the values.

    What lies in a file is not read again.
    """
    if issparse(x) and type(x).__module__.startswith("scipy"):
        return (x.shape, x.nnz, float(x.data.sum(dtype=np.float64)))
    if isinstance(x, np.ndarray):
        return (x.shape, x.dtype, float(x.sum(dtype=np.float64)))
    return (getattr(x, "shape", None),)


def gene_statistics(
    adata: AnnData, layer: str | None, target_total: float, size_factors: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean and sd of log1p of counts scaled to ``target_total`` for each gene, and the median total count of a cell.

    ``size_factors`` (n,), of median 1, take the place of the total counts as in the input of the networks. Streams over
    blocks of cells; memory does not depend on their number (but for one total a cell).
    """
    totals = np.concatenate([np.asarray(block.sum(axis=1)).ravel() for block in row_blocks(adata, layer)])
    median_total = float(np.median(totals))
    library = totals if size_factors is None else size_factors * median_total
    sums, squares = np.zeros(adata.n_vars), np.zeros(adata.n_vars)
    start = 0
    for block in row_blocks(adata, layer):
        scale = target_total / library[start : start + block.shape[0]]
        values = np.log1p(block.data * np.repeat(scale, np.diff(block.indptr)))
        sums += np.bincount(block.indices, weights=values, minlength=adata.n_vars)
        squares += np.bincount(block.indices, weights=values**2, minlength=adata.n_vars)
        start += block.shape[0]
    mean = sums / len(totals)
    sd = np.sqrt(np.maximum(squares / len(totals) - mean**2, 0))
    # a gene without variance carries nothing; an sd of 1 leaves its input at 0
    return mean, np.where(sd > 0, sd, 1.0), median_total


def proportion_statistics(adata: AnnData, layer: str | None) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean proportion of the largest value for each gene, one sd for all of them, and the largest value.

    Proportions are on one scale already; a sd for each gene would make the rarest ones the largest.
    """
    sums, squares, largest = np.zeros(adata.n_vars), 0.0, 0.0
    for block in row_blocks(adata, layer):
        sums += np.bincount(block.indices, weights=block.data, minlength=adata.n_vars)
        squares += float(np.square(block.data, dtype=np.float64).sum())
        largest = max(largest, float(block.data.max(initial=0)))
    mean = sums / adata.n_obs / largest
    variance = squares / largest**2 / adata.n_obs / adata.n_vars - np.square(mean).mean()
    return mean, np.full(adata.n_vars, np.sqrt(variance) if variance > 0 else 1.0), largest
