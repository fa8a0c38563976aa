"""What kind of file a path is, by its content, and the reader of scanpy, anndata or mudata that reads it."""

from __future__ import annotations

import gzip
import shutil
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anndata import AnnData

_KINDS = "h5ad, h5mu, zarr, loom, h5 of 10x or CellBender, and folders with matrix.mtx"
_GENES = "Gene Expression"
_REMEDIES = {
    ".rds": "an object of R: write it as h5ad there, for example with anndataR",
    ".rda": "an object of R: write it as h5ad there, for example with anndataR",
    ".csv": "a table: read it with `scanpy.read_csv`, cells as rows, and write h5ad",
    ".tsv": "a table: read it with `scanpy.read_text`, cells as rows, and write h5ad",
    ".txt": "a table: read it with `scanpy.read_text`, cells as rows, and write h5ad",
    ".zip": "an archive: unpack it first",
    ".tar": "an archive: unpack it first",
    ".tgz": "an archive: unpack it first",
    ".gz": "a compressed file: unpack it first",
}
_CELL_NAMES = ("CellID", "obs_names", "barcode", "barcodes", "cell_names")
_GENE_NAMES = ("Gene", "var_names", "gene_name", "gene_names", "Accession")


def open_as_anndata(path: Path, modality: str | None) -> tuple[AnnData, str]:
    """What the file holds, and the name of its kind.

    Raises
    ------
    OSError
        If there is no such file, or it is cut short.
    ValueError
        If it is of another kind, or of this kind and broken.
    ImportError
        If the package that reads it is not installed.
    """
    if path.is_file() and path.name.removesuffix(".gz").endswith("matrix.mtx"):
        path = path.parent
    kind, reader = _reader(path)
    if modality is not None and reader not in (_h5mu, _zarr_mudata):
        raise ValueError(f"{path}: `modality` is {modality!r}, but {kind} has no modalities; leave it out")
    try:
        with warnings.catch_warnings():
            # of old layouts, which are read all the same, and of names that are not unique, which we speak of ourselves
            warnings.simplefilter("ignore")
            adata = reader(path, modality) if modality is not None else reader(path)
        if reader in (_tenx_h5, _tenx_folder):
            adata = _gene_expression(path, adata)
    except (_Refusal, ImportError):
        raise
    except Exception as error:
        raise ValueError(
            f"{path}: cannot be read as {kind} ({_reason(error)}); if the file is incomplete, copy or download it again"
        ) from error
    return adata, kind


class _Refusal(ValueError):
    """A message that needs no further explanation."""


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__


# --- kinds


def _reader(path: Path) -> tuple[str, Callable[..., AnnData]]:
    if path.is_dir():
        return _reader_of_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if not _is_hdf5(path):
        suffixes = {suffix.lower() for suffix in path.suffixes}
        suffix = next((suffix for suffix in _REMEDIES if suffix in suffixes), "")  # .csv before .gz
        if path.suffix.lower() in (".h5ad", ".h5mu", ".h5", ".hdf5", ".loom"):
            finding = "has the name of an HDF5 file and not its content; copy or download it again"
        else:
            finding = f"is {_REMEDIES[suffix]}" if suffix else "is of an unknown kind"
        raise ValueError(f"{path}: {finding} (read are {_KINDS})")
    return _reader_of_hdf5(path)


def _is_hdf5(path: Path) -> bool:
    with path.open("rb") as file:  # mudata puts its name in a block of 512 bytes before the signature
        return any(file.seek(start) == start and file.read(8) == b"\x89HDF\r\n\x1a\n" for start in (0, 512, 1024, 2048))


def _reader_of_hdf5(path: Path) -> tuple[str, Callable[..., AnnData]]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            names = set(file)
            parts = {name: set(file[name]) for name in names if isinstance(file[name], h5py.Group)}
    except OSError as error:
        raise OSError(
            f"{path}: the file is cut short or damaged ({_reason(error)}); copy or download it again"
        ) from error
    if "mod" in names:
        return "MuData", _h5mu
    if {"row_attrs", "col_attrs"} <= names:
        return "loom", _loom
    if "barcodes" in parts.get("matrix", ()):
        return "10x h5", _tenx_h5
    if {"obs", "var"} <= names:
        return "AnnData", _h5ad
    if any({"barcodes", "genes"} <= inside for inside in parts.values()):
        return "10x h5 (version 2)", _tenx_h5
    hint = ", an h5Seurat file: convert it with SeuratDisk::Convert" if {"assays", "cell.names"} & names else ""
    raise ValueError(f"{path}: an HDF5 file of an unknown kind, with {_listed(names)}{hint} (read are {_KINDS})")


def _reader_of_folder(path: Path) -> tuple[str, Callable[..., AnnData]]:
    if any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zattrs")):
        inside = {entry.name for entry in path.iterdir() if entry.is_dir()}
        if "mod" in inside:
            return "MuData in zarr", _zarr_mudata
        if {"obs", "var"} <= inside:
            return "AnnData in zarr", _zarr
        raise ValueError(f"{path}: a zarr store without obs and var; found {_listed(inside)}. Name the part to read")
    matrices = _matrices(path)
    if len(matrices) == 1:
        return "10x folder", _tenx_folder
    if matrices:
        found = _listed(matrix.name for matrix in matrices)
        raise ValueError(f"{path}: has several matrices ({found}); give each its own folder")
    below = sorted({str(matrix.parent) for depth in ("*", "*/*") for matrix in _matrices(path, f"{depth}/")})
    below += sorted(str(file) for depth in ("*", "*/*") for file in path.glob(f"{depth}.h5*"))
    remedy = f"give {' or '.join(below[:3])}" if below else "name the folder that holds matrix.mtx(.gz)"
    raise ValueError(f"{path}: a folder without matrix.mtx, and no zarr store; {remedy}")


def _matrices(folder: Path, below: str = "") -> list[Path]:
    return sorted(path for end in ("", ".gz") for path in folder.glob(f"{below}*matrix.mtx{end}"))


def _listed(names) -> str:
    names = sorted(names)
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") if names else "nothing"


# --- readers


def _h5ad(path: Path) -> AnnData:
    import anndata

    return anndata.read_h5ad(path)


def _zarr(path: Path) -> AnnData:
    import anndata

    _check_chunks(path)
    return anndata.read_zarr(path)


def _check_chunks(path: Path) -> None:
    """Chunks that a copy has lost are zeros to zarr; no writer leaves out those of the values of a sparse matrix."""
    import zarr

    store: Any = zarr.open_group(path, mode="r")
    for name in ("X", *(f"layers/{layer}" for layer in store.get("layers", ())), "raw/X"):
        values = store.get(f"{name}/data")
        if values is not None and values.nchunks_initialized < values.nchunks:
            lost = values.nchunks - values.nchunks_initialized
            raise _Refusal(
                f"{path}: {lost:,} of {values.nchunks:,} chunks of {name} are missing; copy or download the store again"
            )


def _h5mu(path: Path, modality: str | None = None) -> AnnData:
    import h5py
    import mudata

    with h5py.File(path, "r") as file:
        names = list(file["mod"])
    return mudata.read_h5ad(path, _modality(path, names, modality))


def _zarr_mudata(path: Path, modality: str | None = None) -> AnnData:
    import mudata

    data = mudata.read_zarr(path)
    return data[_modality(path, list(data.mod), modality)]


def _modality(path: Path, names: list[str], wanted: str | None) -> str:
    if wanted is None:
        wanted = names[0] if len(names) == 1 else "rna"
    if wanted not in names:
        raise _Refusal(f"{path}: there is no modality {wanted!r}; `modality` is one of {', '.join(names)}")
    return wanted


def _loom(path: Path) -> AnnData:
    import h5py
    from anndata.io import read_loom

    if find_spec("loompy") is None:
        raise ImportError(
            f"{path}: loom files are read by loompy, which is not installed; run `pip install 'scdeepclust[loom]'`"
        )
    with h5py.File(path, "r") as file:
        cells, genes = list(file["col_attrs"]), list(file["row_attrs"])
    cell_names = next((name for name in _CELL_NAMES if name in cells), _CELL_NAMES[0])
    gene_names = next((name for name in _GENE_NAMES if name in genes), _GENE_NAMES[0])
    adata = read_loom(path, X_name="", obs_names=cell_names, var_names=gene_names)
    adata.obs_names, adata.var_names = adata.obs_names.astype(str), adata.var_names.astype(str)
    return adata


def _tenx_h5(path: Path) -> AnnData:
    import scanpy as sc

    return sc.read_10x_h5(path, gex_only=False)


def _tenx_folder(path: Path) -> AnnData:
    import scanpy as sc

    prefix = _matrices(path)[0].name.removesuffix(".gz").removesuffix("matrix.mtx")
    with TemporaryDirectory() as temporary:
        _as_cellranger_writes(path, Path(temporary), prefix)
        return sc.read_10x_mtx(Path(temporary), make_unique=False, gex_only=False)


def _as_cellranger_writes(folder: Path, target: Path, prefix: str) -> None:
    """Version 2 uncompressed or version 3 compressed, which is what scanpy reads; links where that is so already."""
    has_features = any((folder / f"{prefix}features.tsv{end}").exists() for end in ("", ".gz"))
    end = ".gz" if has_features else ""
    for name in ("matrix.mtx", "features.tsv" if has_features else "genes.tsv", "barcodes.tsv"):
        found = next((path for e in (end, "", ".gz") if (path := folder / f"{prefix}{name}{e}").exists()), None)
        if found is None:
            raise _Refusal(f"{folder}: there is {prefix}matrix.mtx, but no {prefix}{name}(.gz) beside it")
        copy = target / f"{name}{end}"
        if found.name.endswith(".gz") == copy.name.endswith(".gz"):
            copy.symlink_to(found.absolute())
            continue
        with (gzip.open if found.suffix == ".gz" else open)(found, "rb") as source:
            with gzip.open(copy, "wb", compresslevel=1) if end else copy.open("wb") as sink:
                shutil.copyfileobj(source, sink)


def _gene_expression(path: Path, adata: AnnData) -> AnnData:
    """The genes among several types of features, such as peaks and antibodies."""
    types = adata.var.get("feature_types")
    if types is None or (types == _GENES).all():
        return adata
    counted = ", ".join(f"{n:,} of {name}" for name, n in types.value_counts().items())
    if not (types == _GENES).any():
        raise _Refusal(f"{path}: has no features of {_GENES}, only {counted}; give the file that holds the genes")
    warnings.warn(f"{path} holds {counted}: {_GENES} is taken.", stacklevel=2)
    return adata[:, types == _GENES].copy()
