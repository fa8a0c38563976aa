"""Files as other tools write them, imitated: each function writes the same cells and returns the path."""

from __future__ import annotations

import gzip
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import io, sparse

from scdeepclust.datasets import simulate_counts

LAYOUTS: dict[str, Callable[[AnnData, Path], Path]] = {}


def layout(function: Callable[[AnnData, Path], Path]) -> Callable[[AnnData, Path], Path]:
    LAYOUTS[function.__name__] = function
    return function


@pytest.fixture(scope="session")
def cells() -> AnnData:
    """80 cells x 60 genes, two types, two batches, counts in X only."""
    adata = simulate_counts(80, 60, n_clusters=2, n_batches=2, n_markers=10, marker_log_fold_change=2.5, depth=150)
    del adata.layers["counts"], adata.uns["simulation"], adata.varm["true_log_fold_changes"]
    del adata.var["marker_of"]
    return adata


def _h5ad(adata: AnnData, folder: Path) -> Path:
    adata.write_h5ad(folder / "cells.h5ad")
    return folder / "cells.h5ad"


def log_normalized(adata: AnnData) -> AnnData:
    import scanpy as sc

    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata


# --- AnnData


@layout
def h5ad(adata, folder):
    return _h5ad(adata, folder)


@layout
def h5ad_dense(adata, folder):
    adata.X = adata.X.toarray()
    return _h5ad(adata, folder)


@layout
def h5ad_csc_of_integers(adata, folder):
    adata.X = sparse.csc_matrix(adata.X.astype(np.int64))
    return _h5ad(adata, folder)


@layout
def h5ad_unsigned_indices(adata, folder):
    path = _h5ad(adata, folder)
    with h5py.File(path, "r+") as file:
        for name in ("indices", "indptr"):
            values = file["X"][name][:].astype(np.uint32)
            del file["X"][name]
            file["X"][name] = values
    return path


@layout
def h5ad_counts_in_layer(adata, folder):
    adata.layers["shares"], adata.layers["umi"] = adata.X / 7, adata.X.copy()
    return _h5ad(log_normalized(adata), folder)


@layout
def h5ad_counts_in_raw(adata, folder):
    adata.raw = adata.copy()
    return _h5ad(log_normalized(adata), folder)


@layout
def h5ad_counts_in_raw_with_more_genes(adata, folder):
    adata.raw = adata.copy()
    return _h5ad(log_normalized(adata)[:, 10:40].copy(), folder)


@layout
def h5ad_missing_values(adata, folder):
    """A factor of R with NA, which is code -1."""
    adata.obs["treatment"] = pd.Categorical([None, "a", "b", "b"] * 20)
    return _h5ad(adata, folder)


@layout
def h5ad_nullable_strings(adata, folder):
    adata.obs["donor"] = pd.array(["p1", None] * 40, dtype="string")
    adata.obs_names, adata.var_names = adata.obs_names.astype("string"), adata.var_names.astype("string")
    with anndata.settings.override(allow_write_nullable_strings=True):
        return _h5ad(adata, folder)


@layout
def h5ad_of_seurat_disk(adata, folder):
    """With the index among the columns, under the name that is reserved for it."""
    adata.raw = adata.copy()
    path = _h5ad(adata, folder)
    with h5py.File(path, "r+") as file:
        for table in (file["obs"], file["raw/var"]):
            table.attrs["column-order"] = np.array([*table.attrs["column-order"], "_index"], dtype=h5py.string_dtype())
    return path


@layout
def h5ad_column_twice(adata, folder):
    path = _h5ad(adata, folder)
    with h5py.File(path, "r+") as file:
        columns = [*file["obs"].attrs["column-order"], "cell_type"]
        file["obs"].attrs["column-order"] = np.array(columns, dtype=h5py.string_dtype())
    return path


@layout
def h5ad_index_named_like_a_result(adata, folder):
    adata.obs_names.name = "scdeepcluster"
    return _h5ad(adata, folder)


@layout
def h5ad_of_anndata_0_7(adata, folder):
    """Categories beside the columns, in `__categories`."""
    path = _h5ad(adata, folder)
    with h5py.File(path, "r+") as file:
        obs = file["obs"]
        for name in ("cell_type", "batch"):
            codes, categories = obs[name]["codes"][:], obs[name]["categories"][:]
            del obs[name]
            obs[name] = codes
            obs[f"__categories/{name}"] = categories
            obs[name].attrs["categories"] = obs[f"__categories/{name}"].ref
        for table in (obs, file["var"]):
            table.attrs["encoding-version"] = "0.1.0"
        for name in file.attrs:
            del file.attrs[name]
    return path


@layout
def h5ad_of_anndata_0_6(adata, folder):
    """Tables as arrays of records, categories in uns."""
    path = folder / "cells.h5ad"
    with h5py.File(path, "w") as file:
        x = file.create_group("X")
        x.attrs["h5sparse_format"], x.attrs["h5sparse_shape"] = "csr", adata.shape
        for name in ("data", "indices", "indptr"):
            x[name] = getattr(adata.X, name)
        for name in ("cell_type", "batch"):
            file.create_dataset(
                f"uns/{name}_categories", data=adata.obs[name].cat.categories.tolist(), dtype=h5py.string_dtype()
            )
        columns = {"index": adata.obs_names.to_numpy().astype("S")}
        columns |= {name: adata.obs[name].cat.codes.to_numpy() for name in ("cell_type", "batch")}
        file["obs"] = np.rec.fromarrays(list(columns.values()), names=list(columns))
        file["var"] = np.rec.fromarrays([adata.var_names.to_numpy().astype("S")], names=["index"])
    return path


@layout
def zarr_store(adata, folder):
    adata.write_zarr(folder / "cells.zarr")
    return folder / "cells.zarr"


# --- MuData


def _proteins(adata: AnnData) -> AnnData:
    return AnnData(np.ones((adata.n_obs, 3), np.float32), obs=pd.DataFrame(index=adata.obs_names))


@layout
def h5mu(adata, folder):
    import mudata

    mudata.MuData({"prot": _proteins(adata), "rna": adata}).write_h5mu(folder / "cells.h5mu")
    return folder / "cells.h5mu"


@layout
def h5mu_of_one(adata, folder):
    import mudata

    mudata.MuData({"gex": adata}).write_h5mu(folder / "cells.h5mu")
    return folder / "cells.h5mu"


@layout
def mudata_in_zarr(adata, folder):
    import mudata

    mudata.MuData({"prot": _proteins(adata), "rna": adata}).write_zarr(folder / "cells.zarr")
    return folder / "cells.zarr"


# --- CellRanger and CellBender


def _tenx_h5(adata: AnnData, path: Path, types: list[str] | None = None) -> Path:
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = adata.obs_names.to_numpy().astype("S")
        group["data"], group["shape"] = adata.X.data.astype(np.int32), np.array(adata.shape[::-1], np.int32)
        group["indices"], group["indptr"] = adata.X.indices.astype(np.int64), adata.X.indptr.astype(np.int64)
        features = group.create_group("features")
        features["id"] = np.array([f"ENSG{i:05d}" for i in range(adata.n_vars)], dtype="S")
        features["name"] = adata.var_names.to_numpy().astype("S")
        features["feature_type"] = np.array(types or ["Gene Expression"] * adata.n_vars, dtype="S")
        features["genome"] = np.array(["GRCh38"] * adata.n_vars, dtype="S")
        features["_all_tag_keys"] = np.array([b"genome"])
    return path


@layout
def tenx_h5(adata, folder):
    return _tenx_h5(adata, folder / "filtered_feature_bc_matrix.h5")


@layout
def tenx_h5_multiome(adata, folder):
    peaks = AnnData(sparse.csr_matrix(np.ones((80, 5), np.float32)), var=pd.DataFrame(index=list("abcde")))
    both = AnnData(
        sparse.hstack([adata.X, peaks.X], format="csr"),
        obs=adata.obs,
        var=pd.DataFrame(index=[*adata.var_names, *peaks.var_names]),
    )
    return _tenx_h5(both, folder / "filtered.h5", ["Gene Expression"] * 60 + ["Peaks"] * 5)


@layout
def tenx_h5_version_2(adata, folder):
    path = folder / "filtered_gene_bc_matrices_h5.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("GRCh38")
        group["barcodes"] = adata.obs_names.to_numpy().astype("S")
        group["gene_names"] = adata.var_names.to_numpy().astype("S")
        group["genes"] = np.array([f"ENSG{i:05d}" for i in range(adata.n_vars)], dtype="S")
        group["data"], group["shape"] = adata.X.data.astype(np.int32), np.array(adata.shape[::-1], np.int32)
        group["indices"], group["indptr"] = adata.X.indices.astype(np.int64), adata.X.indptr.astype(np.int64)
    return path


@layout
def cellbender_0_3(adata, folder):
    path = _tenx_h5(adata, folder / "cellbender_filtered.h5")
    with h5py.File(path, "r+") as file:
        file["droplet_latents/cell_probability"] = np.linspace(0.9, 1, adata.n_obs)
        file["droplet_latents/gene_expression_encoding"] = np.zeros((adata.n_obs, 4))
        file["global_latents/ambient_expression"] = np.full(adata.n_vars, 1 / adata.n_vars)
        file["metadata/learning_curve_train_elbo"] = np.arange(5.0)
    return path


@layout
def cellbender_0_2(adata, folder):
    path = _tenx_h5(adata, folder / "cellbender_filtered.h5")
    with h5py.File(path, "r+") as file:
        file["matrix/latent_cell_probability"] = np.linspace(0.9, 1, adata.n_obs)
        file["matrix/ambient_expression"] = np.full(adata.n_vars, 1 / adata.n_vars)
        file["matrix/training_elbo_per_epoch"] = np.arange(5.0)
    return path


def _tenx_folder(adata: AnnData, folder: Path, genes: str, *, compressed: bool, prefix: str = "") -> Path:
    folder.mkdir()
    io.mmwrite(folder / "matrix.mtx", adata.X.T.astype(np.int64))
    (folder / "barcodes.tsv").write_text("".join(f"{name}\n" for name in adata.obs_names))
    end = "" if genes == "genes.tsv" else "\tGene Expression"
    (folder / genes).write_text("".join(f"ENSG{i:05d}\t{name}{end}\n" for i, name in enumerate(adata.var_names)))
    for path in list(folder.iterdir()):
        if compressed:
            with path.open("rb") as source, gzip.open(f"{path}.gz", "wb") as target:
                shutil.copyfileobj(source, target)
            path.unlink()
            path = path.with_name(f"{path.name}.gz")
        path.rename(path.with_name(f"{prefix}{path.name}"))
    return folder


@layout
def tenx_folder_version_2(adata, folder):
    return _tenx_folder(adata, folder / "hg19", "genes.tsv", compressed=False)


@layout
def tenx_folder_version_2_compressed(adata, folder):
    return _tenx_folder(adata, folder / "hg19", "genes.tsv", compressed=True, prefix="GSM1_")


@layout
def tenx_folder_version_3(adata, folder):
    return _tenx_folder(adata, folder / "filtered", "features.tsv", compressed=True)


@layout
def tenx_folder_version_3_uncompressed(adata, folder):
    return _tenx_folder(adata, folder / "filtered", "features.tsv", compressed=False)


# --- loom


@layout
def loom(adata, folder):
    loompy = pytest.importorskip("loompy")
    path = folder / "cells.loom"
    columns = {"CellID": adata.obs_names.to_numpy().astype(str), "batch": adata.obs["batch"].to_numpy().astype(str)}
    loompy.create(str(path), sparse.coo_matrix(adata.X.T), {"Gene": adata.var_names.to_numpy().astype(str)}, columns)
    return path


# --- all of them


@pytest.fixture
def layouts() -> dict[str, Callable[[AnnData, Path], Path]]:
    return LAYOUTS


# Those that differ in what is written again; the others differ in reading alone, which is tested for each of them.
QUICKLY_CLUSTERED = {
    "h5ad_counts_in_raw_with_more_genes",
    "h5ad_missing_values",
    "h5ad_nullable_strings",
    "h5ad_of_seurat_disk",
    "h5ad_column_twice",
    "h5ad_index_named_like_a_result",
    "h5ad_of_anndata_0_6",
    "zarr_store",
    "h5mu",
    "tenx_h5_multiome",
    "tenx_folder_version_2",
    "cellbender_0_3",
    "loom",
}


@pytest.fixture(
    params=[name if name in QUICKLY_CLUSTERED else pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS]
)
def to_cluster(request, written_as) -> Path:
    return written_as(request.param)


@pytest.fixture(params=LAYOUTS)
def written(request, written_as) -> Path:
    """Path of each layout, one after the other."""
    return written_as(request.param)


@pytest.fixture
def written_as(cells, tmp_path) -> Callable[[str], Path]:
    def write(name: str) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return LAYOUTS[name](cells.copy(), tmp_path)

    return write
