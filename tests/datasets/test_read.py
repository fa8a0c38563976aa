from __future__ import annotations

import gzip
import importlib.util
import shutil
import warnings

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse
from typer.testing import CliRunner

from scdeepclust import cli
from scdeepclust.datasets import _formats, read
from scdeepclust.datasets._read import are_counts, find_counts, looks_like


def dense(matrix):
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)


# --- every layout


def test_counts_are_found_whatever_wrote_the_file(written, cells):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = read(written)
    assert list(adata.var_names) == list(cells.var_names)
    assert list(adata.obs_names) == list(cells.obs_names)
    np.testing.assert_array_equal(dense(adata.X), cells.X.toarray())
    for name in {"batch", "cell_type"} & set(adata.obs.columns[~adata.obs.columns.duplicated(keep=False)]):
        assert list(adata.obs[name]) == list(cells.obs[name])


def test_every_layout_goes_through_the_command_line(to_cluster, cells, tmp_path):
    out, labels = tmp_path / "out.h5ad", tmp_path / "labels.csv"
    quick = ["--n-clusters", "2", "--pretrain-epochs", "2", "--max-epochs", "1", "--confidence", "posterior"]
    result = CliRunner().invoke(
        cli.app, ["cluster", str(to_cluster), "--out", str(out), "--labels-csv", str(labels), *quick]
    )
    assert result.exit_code == 0, result.output
    assert "80 cells x " in result.stderr
    assert "genes, counts in " in result.stderr
    adata = anndata.read_h5ad(out)
    assert adata.shape == cells.shape
    table = pd.read_csv(labels, index_col="cell")
    assert list(table.index) == list(cells.obs_names)
    assert list(adata.obs["scdeepcluster"].astype(int)) == list(table["cluster"])


# --- where the counts are


def log1p(cells):
    logged = cells.copy()
    logged.X.data = np.log1p(logged.X.data / 7)
    return logged


def test_counts_come_first_from_x_then_from_the_layer_of_that_name_then_from_others_then_from_raw(cells, tmp_path):
    path = tmp_path / "cells.h5ad"
    adata = log1p(cells)
    adata.raw = cells.copy()
    places = []
    for layer in ("first", "counts", None):
        if layer is None:
            adata.X = cells.X.copy()
        adata.write_h5ad(path)
        places.append(find_counts(path).summary.partition("counts in ")[2].partition(" (")[0])
        if layer is not None:
            adata.layers[layer] = cells.X.copy()
    adata.write_h5ad(path)
    places.append(find_counts(path).summary.partition("counts in ")[2].partition(" (")[0])
    assert places == ["raw", "layers['first']", "X", "X"]
    adata.X = log1p(cells).X
    adata.write_h5ad(path)
    assert find_counts(path).layer == "counts"


def test_counts_are_taken_from_where_one_says(cells, tmp_path):
    path = tmp_path / "cells.h5ad"
    adata = cells.copy()
    adata.layers["spliced"] = cells.X * 2
    adata.raw = AnnData(cells.X * 3, obs=cells.obs, var=cells.var)
    adata.write_h5ad(path)
    for arguments, factor in (({}, 1), ({"layer": "spliced"}, 2), ({"raw": True}, 3)):
        read_back = read(path, **arguments)
        np.testing.assert_array_equal(read_back.X.toarray(), factor * cells.X.toarray())
    assert (read_back.layers["X"] != cells.X).nnz == 0  # what was in X is kept
    assert not np.shares_memory(read_back.X.data, read_back.layers["counts"].data)


def test_genes_of_raw_are_put_into_the_order_of_x(cells, tmp_path):
    adata = log1p(cells)
    adata.raw = cells[:, ::-1].copy()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    adata = read(tmp_path / "cells.h5ad")
    assert list(adata.var_names) == list(cells.var_names)
    np.testing.assert_array_equal(adata.X.toarray(), cells.X.toarray())


def test_more_genes_in_raw_are_said(cells, tmp_path):
    adata = log1p(cells)[:, :20].copy()
    adata.raw = cells.copy()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.warns(UserWarning, match="raw has 60 genes and X 20: those of raw are taken"):
        assert read(tmp_path / "cells.h5ad").shape == (80, 60)


def test_names_that_occur_twice_are_made_unique_and_said(cells, tmp_path):
    adata = cells.copy()
    adata.var_names = ["gene_1", *adata.var_names[1:]]
    adata.obs_names = ["cell_1", *adata.obs_names[1:]]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.warns(UserWarning, match="occur before") as said:
        adata = read(tmp_path / "cells.h5ad")
    assert adata.var_names.is_unique
    assert adata.obs_names.is_unique
    texts = [str(warning.message) for warning in said]
    assert any("1 gene names occur before, such as 'gene_1'" in text for text in texts)
    assert any("1 cell names occur before, such as 'cell_1'" in text for text in texts)


def test_of_a_multiome_file_the_genes_are_taken_and_it_is_said(layouts, cells, tmp_path):
    path = layouts["tenx_h5_multiome"](cells.copy(), tmp_path)
    with pytest.warns(UserWarning, match="holds 60 of Gene Expression, 5 of Peaks: Gene Expression is taken"):
        assert read(path).n_vars == 60


def test_several_types_of_features_in_h5ad_are_said(cells, tmp_path):
    adata = cells.copy()
    adata.var["feature_types"] = ["Gene Expression"] * 50 + ["Antibody Capture"] * 10
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.warns(UserWarning, match="Gene Expression, Antibody Capture, and all are used"):
        read(tmp_path / "cells.h5ad")


def test_modalities_are_named(layouts, cells, tmp_path):
    import mudata

    path = layouts["h5mu"](cells.copy(), tmp_path)
    assert read(path, modality="prot").n_vars == 3
    with pytest.raises(ValueError, match="there is no modality 'atac'; `modality` is one of prot, rna"):
        read(path, modality="atac")
    mudata.MuData({"gex": cells.copy(), "prot": cells.copy()}).write_h5mu(path)
    with pytest.raises(ValueError, match="there is no modality 'rna'; `modality` is one of gex, prot"):
        read(path)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(ValueError, match="`modality` is 'rna', but AnnData has no modalities"):
        read(tmp_path / "cells.h5ad", modality="rna")


# --- refusals


def test_a_file_without_counts_says_what_each_matrix_looks_like(cells, tmp_path):
    import scanpy as sc

    path = tmp_path / "cells.h5ad"
    adata = cells.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    adata.layers["normalized"] = adata.X.copy()
    sc.pp.log1p(adata)
    adata.raw = adata.copy()
    sc.pp.scale(adata)
    adata.write_h5ad(path)
    text = refused(path)
    assert text.startswith(f"{path}: has no counts in any place: X looks scaled (negative values")
    assert "layers['normalized'] looks normalised (10,000 per cell)" in text
    assert "raw looks log-normalised (log1p of 10,000 per cell)" in text


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[1.0, 2.0], [0.0, 3.0]], "like counts"),
        ([[1.5, 2.0], [0.0, 300.0]], "estimated or corrected (not whole numbers, such as 1.5)"),
        ([[1.0000001, 2.0], [0.0, 3.0]], "like counts with rounding errors"),
        ([[1.5, 2.0], [0.0, 3.0]], "log-transformed (not whole numbers, largest 3)"),
        ([[np.nan, 2.0], [0.0, 3.0]], "incomplete (1 values are NaN or infinite)"),
        ([[-1.0, 2.0], [0.0, 3.0]], "scaled (negative values, smallest -1)"),
        ([[0.0, 0.0], [0.0, 0.0]], "empty (all values are 0)"),
    ],
)
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array])
def test_what_a_matrix_looks_like(values, expected, form):
    matrix = form(np.array(values))
    assert looks_like(matrix).startswith(expected)
    assert are_counts(matrix) == (expected == "like counts")


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int64", "uint32", "float16", "float32", "float64", "bool"])
def test_counts_of_every_dtype_are_counts(dtype):
    assert are_counts(np.array([[0, 1], [1, 0]], dtype=dtype))


def test_a_single_fraction_in_the_last_cell_is_seen():
    matrix = sparse.csr_matrix(np.ones((3000, 2)))
    matrix.data[-1] = 0.5
    assert not are_counts(matrix)


def truncated(path, tmp_path):
    target = tmp_path / f"short{path.suffix}"
    target.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return target


def refused(path, kind=ValueError, **arguments):
    with pytest.raises(kind) as refusal:
        read(path, **arguments)
    text = str(refusal.value)
    assert str(path) in text
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", ["h5ad", "tenx_h5", "h5mu", "cellbender_0_3"])
def test_truncated_hdf5_is_named(name, layouts, cells, tmp_path):
    path = truncated(layouts[name](cells.copy(), tmp_path), tmp_path)
    assert "cut short or damaged (" in refused(path, OSError)


def test_truncated_folders_are_named(layouts, cells, tmp_path):
    folder = layouts["tenx_folder_version_3"](cells.copy(), tmp_path)
    matrix = folder / "matrix.mtx.gz"
    matrix.write_bytes(matrix.read_bytes()[:300])
    assert "cannot be read as 10x folder (" in refused(folder)
    shutil.rmtree(folder)
    folder = layouts["tenx_folder_version_3"](cells.copy(), tmp_path)
    with gzip.open(folder / "barcodes.tsv.gz", "wt") as file:
        file.write("AAAC-1\n")
    assert "cannot be read as 10x folder (" in refused(folder)
    (folder / "barcodes.tsv.gz").unlink()
    assert "there is matrix.mtx, but no barcodes.tsv(.gz) beside it" in refused(folder)
    store = layouts["zarr_store"](cells.copy(), tmp_path)
    files = (path for path in (store / "X" / "data").rglob("*") if path.is_file())
    next(path for path in files if not path.name.startswith((".", "zarr.json"))).unlink()
    assert "1 of 1 chunks of X are missing" in refused(store)


def test_folders_that_hold_no_matrix_say_where_one_is(layouts, cells, tmp_path):
    outs = tmp_path / "outs"
    outs.mkdir()
    assert "a folder without matrix.mtx, and no zarr store; name the folder" in refused(outs)
    layouts["tenx_folder_version_3"](cells.copy(), outs)
    assert f"give {outs / 'filtered'}" in refused(outs)
    assert read(outs / "filtered" / "matrix.mtx.gz").shape == cells.shape  # the matrix stands for its folder
    for prefix in ("a_", "b_"):
        (outs / f"{prefix}matrix.mtx").write_text("")
    assert "has several matrices (a_matrix.mtx, b_matrix.mtx); give each its own folder" in refused(outs)
    store = layouts["zarr_store"](cells.copy(), tmp_path)
    shutil.rmtree(store / "obs")
    assert "a zarr store without obs and var; found " in refused(store)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cells.rds", "is an object of R: write it as h5ad there"),
        ("cells.csv.gz", "is a table: read it with"),
        ("cells.tar.gz", "is an archive: unpack it first"),
        ("cells.h5ad.gz", "is a compressed file: unpack it first"),
        ("cells.bam", "is of an unknown kind (read are h5ad, "),
        ("cells.h5ad", "has the name of an HDF5 file and not its content"),
    ],
)
def test_other_kinds_are_named_with_a_remedy(name, message, tmp_path):
    (tmp_path / name).write_bytes(b"\x1f\x8b nothing of ours" * 100)
    assert message in refused(tmp_path / name)


def test_other_hdf5_files_are_named(tmp_path):
    path = tmp_path / "cells.h5seurat"
    with h5py.File(path, "w") as file:
        file.create_group("assays")
        file["cell.names"] = [1]
    assert "unknown kind, with assays, cell.names, an h5Seurat file: convert it" in refused(path)


def test_what_is_missing_is_named(cells, tmp_path):
    assert "no such file or folder" in refused(tmp_path / "none.h5ad", FileNotFoundError)
    path = tmp_path / "cells.h5ad"
    cells.write_h5ad(path)
    assert "`layer`: there is no layer 'counts'; found none" in refused(path, layer="counts")
    assert "`raw`: the file has no raw" in refused(path, raw=True)
    assert "`layer` and `raw` are both given" in refused(path, raw=True, layer="counts")
    cells[:0].copy().write_h5ad(path)
    assert "AnnData of 0 cells x 60 genes" in refused(path)


def test_antibodies_alone_are_refused(layouts, cells, tmp_path):
    path = layouts["tenx_h5"](cells.copy(), tmp_path)
    with h5py.File(path, "r+") as file:
        file["matrix/features/feature_type"][:] = np.array([b"Antibody Capture"[:15]] * 60)
    assert "has no features of Gene Expression, only 60 of Antibody Captur" in refused(path)


def test_loom_without_loompy_names_the_extra(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "cells.loom", "w") as file:
        for name in ("row_attrs", "col_attrs", "layers"):
            file.create_group(name)
    monkeypatch.setattr(_formats, "find_spec", lambda name: None)
    assert "run `pip install 'scdeepclust[loom]'`" in refused(tmp_path / "cells.loom", ImportError)
    assert importlib.util.find_spec("anndata") is not None
