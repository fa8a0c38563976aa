"""Reading of files of all common kinds, and the search for the counts in them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import sparse

from ._formats import open_as_anndata

if TYPE_CHECKING:
    from anndata import AnnData

_BLOCK = 2**22  # values looked at at once
_LOOKED_AT = 2000  # cells from which it is said what a matrix looks like


class Found(NamedTuple):
    """A file that was read.

    Parameters
    ----------
    adata
        What it holds.
    layer
        Layer with the counts; None for ``X``.
    summary
        What was found, in a line.
    """

    adata: AnnData
    layer: str | None
    summary: str


def read(path: str | Path, *, layer: str | None = None, raw: bool = False, modality: str | None = None) -> AnnData:
    """Read a file of any common kind, with its counts where ``setup_anndata`` looks for them.

    Kinds are told by content: h5ad, h5mu, zarr stores of AnnData or MuData, loom (with the extra ``loom``), h5 files of
    10x Genomics and CellBender, and folders with ``matrix.mtx`` as CellRanger 2 and 3 write them, compressed or not.
    The readers are those of scanpy, anndata and mudata.

    Counts are whole numbers. They are looked for in ``X``, then in ``layers["counts"]`` and the other layers, then in
    ``raw``.

    Parameters
    ----------
    path
        File or folder.
    layer
        Take the counts from this layer instead of looking for them.
    raw
        Take the counts from ``adata.raw`` instead of looking for them.
    modality
        Part of a MuData file; by default ``"rna"``, or the only one.

    Returns
    -------
    AnnData with the counts in ``X``, and unique gene names. If ``X`` held something else, that is in ``layers["X"]``
    now; if the counts are those of ``raw`` and ``raw`` has other genes than ``X``, it has the genes of ``raw``. Of
    several types of features in a 10x file it has the genes.

    Raises
    ------
    OSError
        If there is no such file, or it is cut short.
    ValueError
        If the file is of an unknown kind or damaged, or holds no counts.
    ImportError
        If a loom file is given and loompy is not installed.

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> sdc.datasets.simulate_counts(100, 60, n_clusters=2, n_markers=10).write_h5ad("cells.h5ad")
    >>> adata = sdc.datasets.read("cells.h5ad")
    >>> adata.shape
    (100, 60)
    >>> sdc.model.GMVAE.setup_anndata(adata)
    """
    found = find_counts(path, layer=layer, raw=raw, modality=modality)
    adata = found.adata
    if found.layer is not None:
        counts, before = adata.layers[found.layer], adata.X
        adata.X = counts.copy()
        if before is not None:
            adata.layers["X"] = before
    return adata


def find_counts(path: str | Path, *, layer: str | None = None, raw: bool = False, modality: str | None = None) -> Found:
    """Read a file and find its counts; nothing is moved but the counts of ``raw``, which no model can read."""
    path = Path(path)
    if layer is not None and raw:
        raise ValueError(f"{path}: `layer` and `raw` are both given; counts come from one place")
    adata, kind = open_as_anndata(path, modality)
    if min(adata.shape) == 0:
        raise ValueError(f"{path}: {kind} of {adata.n_obs:,} cells x {adata.n_vars:,} genes, nothing to work on")
    _look_at_features(path, adata)
    place = _place_of_counts(path, adata, layer, raw)
    x_is = "" if place is None or adata.X is None else f" (X looks {looks_like(adata.X)})"
    if place == _RAW:
        adata, place = _counts_out_of_raw(path, adata)
        where = "raw"
    else:
        where = "X" if place is None else f"layers[{place!r}]"
    _make_names_unique(path, adata)
    summary = f"{path}: {kind}, {adata.n_obs:,} cells x {adata.n_vars:,} genes, counts in {where}{x_is}"
    return Found(adata, place, summary)


_RAW = "\0raw"  # no name of a layer


def _place_of_counts(path: Path, adata: AnnData, layer: str | None, raw: bool) -> str | None:
    """Name of a layer, None for ``X``, or ``_RAW``."""
    layers = [name for name in adata.layers if name is not None]
    if layer is not None and layer not in layers:
        raise ValueError(f"{path}: `layer`: there is no layer {layer!r}; found {', '.join(layers) or 'none'}")
    if raw and adata.raw is None:
        raise ValueError(f"{path}: `raw`: the file has no raw; leave it out, or name a `layer`")
    matrices: dict[str | None, Any] = {None: adata.X}
    matrices |= {name: adata.layers[name] for name in sorted(layers, key=lambda name: name != "counts")}
    if adata.raw is not None:
        matrices[_RAW] = adata.raw.X
    if layer is not None or raw:
        matrices = {key: matrices[key] for key in [_RAW if raw else layer]}
    for place, matrix in matrices.items():
        if are_counts(matrix):
            return place
    names = {None: "X", _RAW: "raw"} | {name: f"layers[{name!r}]" for name in layers}
    findings = "; ".join(f"{names[place]} looks {looks_like(matrix)}" for place, matrix in matrices.items())
    where = "has no counts" if len(matrices) == 1 else "has no counts in any place"
    raise ValueError(f"{path}: {where}: {findings}. Give raw counts, whole numbers that are not normalised")


def _counts_out_of_raw(path: Path, adata: AnnData) -> tuple[AnnData, str | None]:
    """Counts of raw as a layer, where the genes are the same ones; else an AnnData of the genes of raw."""
    names = adata.raw.var_names
    if len(names) == adata.n_vars and set(names) == set(adata.var_names) and names.is_unique:
        layer = "counts" if "counts" not in adata.layers else "raw_counts"
        adata.layers[layer] = adata.raw[:, adata.var_names].X
        return adata, layer
    warnings.warn(f"{path}: raw has {len(names):,} genes and X {adata.n_vars:,}: those of raw are taken.", stacklevel=2)
    return adata.raw.to_adata(), None


def _look_at_features(path: Path, adata: AnnData) -> None:
    types = adata.var.get("feature_types")
    if types is not None and types.nunique() > 1:
        warnings.warn(
            f"{path}: var['feature_types'] has {', '.join(map(str, types.unique()))}, and all are used. Leave out what "
            "are no genes.",
            stacklevel=2,
        )


def _make_names_unique(path: Path, adata: AnnData) -> None:
    for what, names in (("gene", adata.var_names), ("cell", adata.obs_names)):
        if names.is_unique:
            continue
        duplicated = names[names.duplicated()]
        warnings.warn(
            f"{path}: {len(duplicated):,} {what} names occur before, such as {duplicated[0]!r}: a number is added.",
            stacklevel=2,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adata.var_names_make_unique() if what == "gene" else adata.obs_names_make_unique()


# --- what a matrix holds


def are_counts(matrix: Any) -> bool:
    """Whether all values are whole, finite and at least 0, and some are more."""
    if matrix is None or matrix.dtype.kind not in "biuf":
        return False
    some = False
    for values in _values(matrix):
        if not np.isfinite(values).all() or (values < 0).any() or (values != np.rint(values)).any():
            return False
        some = some or bool(values.any())
    return some


def _values(matrix: Any) -> Iterator[np.ndarray]:
    if sparse.issparse(matrix):
        for start in range(0, len(matrix.data), _BLOCK):
            yield matrix.data[start : start + _BLOCK]
    else:
        rows = max(1, _BLOCK // matrix.shape[1])
        for start in range(0, matrix.shape[0], rows):
            yield np.asarray(matrix[start : start + rows])


def looks_like(matrix: Any) -> str:
    """What a matrix seems to hold, judged by its first cells, for people."""
    if matrix is None:
        return "empty"
    if matrix.dtype.kind not in "biuf":
        return f"not numeric ({matrix.dtype})"
    cells = matrix[:_LOOKED_AT]
    cells = np.asarray(cells.toarray() if sparse.issparse(cells) else cells, dtype=np.float64)
    if not np.isfinite(cells).all():
        return f"incomplete ({(~np.isfinite(cells)).sum():,} values are NaN or infinite)"
    if (cells < 0).any():
        return f"scaled (negative values, smallest {cells.min():.3g})"
    if not cells.any():
        return "empty (all values are 0)"
    fractions = cells[cells != np.rint(cells)]
    if not len(fractions):
        return "like counts"
    largest = cells.max()
    if np.abs(fractions - np.rint(fractions)).max() < 1e-3:
        return f"like counts with rounding errors (such as {fractions[0]!r}); `numpy.rint` makes whole numbers of them"
    if largest < 25 and (total := _common_total(np.expm1(cells))):
        return f"log-normalised (log1p of {total:,.0f} per cell)"
    if total := _common_total(cells):
        return f"normalised ({total:,.6g} per cell)"
    if largest < 25:
        return f"log-transformed (not whole numbers, largest {largest:.3g})"
    return f"estimated or corrected (not whole numbers, such as {fractions[0]:.6g})"


def _common_total(cells: np.ndarray) -> float:
    """Total of each cell where all have the same, 0 otherwise."""
    totals = cells.sum(axis=1)
    totals = totals[totals > 0]
    return float(np.median(totals)) if len(totals) > 1 and np.ptp(totals) < 0.01 * np.median(totals) else 0.0
