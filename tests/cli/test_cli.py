from __future__ import annotations

import logging
import subprocess
import sys
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from typer.testing import CliRunner

from scdeepclust import cli
from scdeepclust.cli import _app, _demo
from scdeepclust.datasets import pbmc68k_reduced, simulate_counts

LIBRARIES = ("lightning.pytorch", "lightning.fabric", "scvi")
QUICK = ["--pretrain-epochs", "2", "--max-epochs", "1"]


@pytest.fixture(autouse=True, scope="module")
def _leave_no_settings_behind():
    """A command sets what is process-wide; the other tests are in this process too."""
    seed, levels = scvi.settings.seed, {name: logging.getLogger(name).level for name in LIBRARIES}
    with warnings.catch_warnings():
        yield
    scvi.settings.seed = seed
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    path = tmp_path_factory.mktemp("in") / "counts.h5ad"
    adata = simulate_counts(250, 120, n_clusters=3, n_batches=2, n_markers=10, depth=100)
    adata.layers["shares"] = adata.X / 100
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def clustered(counts, tmp_path_factory):
    """One run with everything asked for: its folder and its result."""
    folder = tmp_path_factory.mktemp("out")
    outputs = ["--out", folder / "out.h5ad", "--labels-csv", folder / "labels.csv", "--plot", folder / "umap.png"]
    columns = ["--layer", "counts", "--batch-key", "batch", "--label-key", "cell_type"]
    result = run("cluster", counts, *outputs, *columns, "--n-clusters", 3, "--n-top-genes", 80, *QUICK)
    assert result.exit_code == 0, result.output
    return folder, result


# --- cluster


def test_cluster_keeps_the_input_and_adds_the_results(clustered, counts):
    before, after = anndata.read_h5ad(counts), anndata.read_h5ad(clustered[0] / "out.h5ad")
    assert after.shape == before.shape  # all genes, though 80 were learnt from
    for matrix in ("counts", "shares"):
        assert (after.layers[matrix] != before.layers[matrix]).nnz == 0
    pd.testing.assert_frame_equal(after.obs[before.obs.columns], before.obs)
    assert set(after.obs) - set(before.obs) == {"scdeepcluster", "scdeepcluster_confidence"}
    assert set(after.obsm) == {"X_scdeepcluster", "scdeepcluster_probabilities"}
    assert after.obsm["scdeepcluster_probabilities"].shape == (250, 3)
    assert set(after.uns) - set(before.uns) == {"scdeepcluster"}
    assert after.uns["scdeepcluster"]["setup"]["batch_key"] == "batch"


def test_cluster_writes_labels_numbered_from_zero(clustered):
    table = pd.read_csv(clustered[0] / "labels.csv", index_col="cell")
    adata = anndata.read_h5ad(clustered[0] / "out.h5ad")
    assert list(table.index) == list(adata.obs_names)
    assert list(table["cluster"]) == list(adata.obs["scdeepcluster"].astype(int))
    assert table["cluster"].min() == 0
    np.testing.assert_allclose(table["confidence"], adata.obs["scdeepcluster_confidence"], atol=1e-4)


def test_cluster_leaves_the_picture_and_no_temporary_file(clustered):
    folder, _ = clustered
    assert (folder / "umap.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in folder.iterdir()} == {"out.h5ad", "labels.csv", "umap.png"}


def test_cluster_says_little_and_to_the_point(clustered):
    _, result = clustered
    assert "clusters of 250 cells" in result.stdout
    assert "SCDeepCluster" in result.stdout
    assert "250 cells x 80 genes" in result.stderr
    for noise in ("Seed set", "GPU available", "FutureWarning", "UserWarning", "Trainer"):
        assert noise not in result.output


def test_the_same_seed_gives_the_same_labels(counts, tmp_path):
    tables = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        out = ["--out", tmp_path / f"{name}.h5ad", "--labels-csv", tmp_path / f"{name}.csv"]
        assert run("cluster", counts, *out, "--n-clusters", 4, "--seed", seed, *QUICK).exit_code == 0
        tables.append((tmp_path / f"{name}.csv").read_text())
    assert tables[0] == tables[1] != tables[2]


NEW = "--out {dir}/new.h5ad"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (f"{{dir}}/none.h5ad {NEW}", "none.h5ad: no such file or folder"),
        (f"{{dir}}/old.h5ad {NEW}", "old.h5ad: has the name of an HDF5 file and not its content"),
        (f"{{counts}} {NEW} --layer raw", "'raw'"),
        (f"{{counts}} {NEW} --layer shares", "not whole numbers"),
        (f"{{counts}} {NEW} --batch-key lane", "'lane'"),
        (f"{{counts}} {NEW} --label-key truth", "--label-key: obs has no labels in 'truth'; found cell_type, batch"),
        (f"{{counts}} {NEW} --n-clusters 251", "number of cells (250)"),
        (f"{{counts}} {NEW} --model kmeans", "--model: there is no 'kmeans'; found"),
        ("{counts} --out {dir}/old.h5ad", "old.h5ad exists; use --overwrite"),
        (f"{{counts}} {NEW} --labels-csv {{dir}}/old.h5ad", "old.h5ad exists; use --overwrite"),
        (f"{{counts}} {NEW} --labels-csv {{dir}}/new.h5ad", "named for two outputs"),
        (f"{{counts}} {NEW} --plot {{dir}}/new.doc", "must end in .png or .pdf or .svg"),
        ("{counts} --out {dir}/new.csv", "must end in .h5ad"),
        ("{counts} --out {dir}/none/new.h5ad", "there is no folder"),
        ("{counts} --out {dir}", "is a folder"),
    ],
)
def test_errors_are_one_line_and_write_nothing(arguments, message, counts, tmp_path):
    (tmp_path / "old.h5ad").write_text("precious, and not cells")
    result = run("cluster", *arguments.format(counts=counts, dir=tmp_path).split())
    assert result.exit_code == 2
    assert result.stdout == ""
    *found, error = result.stderr.splitlines()
    assert error.startswith("Error: ")
    assert message in error
    assert len(found) <= 1  # what the file holds
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"old.h5ad": "precious, and not cells"}


def test_cells_without_variable_genes_are_refused(tmp_path):
    adata = simulate_counts(100, 60, n_clusters=2, n_markers=5, depth=2.0)
    adata.write_h5ad(tmp_path / "shallow.h5ad")
    result = run("cluster", tmp_path / "shallow.h5ad", "--out", tmp_path / "out.h5ad", "--n-top-genes", 3)
    assert result.exit_code == 2
    assert "cells have no counts in the 3 most variable genes" in result.stderr


def test_overwrite_replaces_a_file_and_columns_of_an_earlier_run(clustered, tmp_path):
    first = tmp_path / "cells.h5ad"
    first.write_bytes((clustered[0] / "out.h5ad").read_bytes())
    again = ["cluster", first, "--n-clusters", 2, *QUICK]
    result = run(*again, "--out", tmp_path / "other.h5ad")
    assert result.exit_code == 2
    assert "column 'scdeepcluster' in obs already" in result.stderr
    assert run(*again, "--out", first, "--overwrite").exit_code == 0
    assert anndata.read_h5ad(first).obsm["scdeepcluster_probabilities"].shape == (250, 2)


def test_a_failed_write_leaves_the_old_file(counts, tmp_path, monkeypatch):
    old = tmp_path / "old.h5ad"
    old.write_text("precious")

    def disk_full(self, path, **kwargs):
        if path.name == "trial.h5ad":  # before training there is room
            return
        path.write_text("half of")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(anndata.AnnData, "write_h5ad", disk_full)
    result = run("cluster", counts, "--out", old, "--n-clusters", 2, "--overwrite", *QUICK)
    assert result.exit_code == 2
    assert "No space left on device" in result.stderr
    assert old.read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} == {"old.h5ad", "old.labels.csv"}  # and no work is lost
    assert pd.read_csv(tmp_path / "old.labels.csv")["cluster"].nunique() == 2


# --- demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
    result = run("demo", "--out", folder, *QUICK)
    assert result.exit_code == 0, result.output
    return folder, result


def test_demo_leaves_three_files(demo):
    folder, _ = demo
    assert {path.name for path in folder.iterdir()} == {"clustered.h5ad", "labels.csv", "umap.png"}
    adata = anndata.read_h5ad(folder / "clustered.h5ad")
    assert adata.shape == (700, 765)
    assert set(adata.obs) == {"cell_type", "batch", "n_counts", "scdeepcluster", "scdeepcluster_confidence"}
    assert {"X_scdeepcluster", "scdeepcluster_probabilities"} <= set(adata.obsm)
    assert (adata.layers["counts"] != pbmc68k_reduced().X).nnz == 0


def test_demo_prints_the_baseline_beside_the_model(demo):
    from sklearn.metrics import adjusted_rand_score

    folder, result = demo
    rows = {line.split("  ")[0].strip(): line.split()[-7:] for line in result.stdout.splitlines() if "0." in line}
    assert set(rows) == {"PCA + k-means", "SCDeepCluster"}
    adata = anndata.read_h5ad(folder / "clustered.h5ad")
    expected = adjusted_rand_score(adata.obs["cell_type"], adata.obs["scdeepcluster"])
    assert float(rows["SCDeepCluster"][1]) == pytest.approx(expected, abs=0.0051)
    assert float(rows["PCA + k-means"][1]) > 0.4


def test_demo_does_not_overwrite(demo):
    folder, _ = demo
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    result = run("demo", "--out", folder)
    assert result.exit_code == 2
    assert "exists; use --overwrite" in result.stderr
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    result = run("demo", "--out", folder / "labels.csv")
    assert result.exit_code == 2
    assert "labels.csv is a file; name a folder" in result.stderr


# --- around them


def test_help_needs_none_of_the_heavy_libraries():
    heavy = "[m for m in ('torch', 'scvi', 'scanpy', 'anndata', 'sklearn', 'pandas', 'matplotlib') if m in sys.modules]"
    code = f"import sys, scdeepclust.cli; print({heavy})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
    assert "cluster" in run("--help").stdout
    assert "--n-top-genes" in run("cluster", "--help").stdout


def test_only_our_own_warnings_are_shown(capsys):
    _app.prepare_libraries(0)
    warnings.warn_explicit("3 clusters have no cells [see docs]", UserWarning, "x.py", 1, "scdeepclust.model._base")
    warnings.warn_explicit("an upstream matter", FutureWarning, "x.py", 1, "anndata._core")
    warnings.warn_explicit("not ours", UserWarning, "x.py", 1, "scdeepclusterer")
    assert capsys.readouterr().err == "Warning: 3 clusters have no cells [see docs]\n"


def test_preprocessing_leaves_torch_its_threads():
    # compiled code of scanpy and scikit-learn resets them, and training then takes many times as long on a busy machine
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        adata = pbmc68k_reduced()
        _demo._pca_kmeans(adata, 3, seed=0)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert adata.obs["pca_kmeans"].nunique() == 3


# --- benchmark


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """Two embeddings, one of which knows the types, and clusters for it; and a plane that nobody asked for."""
    path = tmp_path_factory.mktemp("in") / "embedded.h5ad"
    adata = simulate_counts(250, 120, n_clusters=3, n_batches=2, n_markers=10, depth=100)
    rng = np.random.default_rng(0)
    types = adata.obs["cell_type"].cat.codes.to_numpy()
    adata.obsm["X_good"] = np.eye(3)[types].repeat(2, axis=1) + 0.1 * rng.normal(size=(250, 6))
    adata.obsm["X_bad"] = rng.normal(size=(250, 6))
    adata.obsm["X_umap"] = rng.normal(size=(250, 2))
    adata.obs["good"] = adata.obs["cell_type"]
    adata.write_h5ad(path)
    return path


def test_benchmark_prints_and_writes_the_scores(embedded, tmp_path):
    columns = ["--batch-key", "batch", "--label-key", "cell_type"]
    result = run("benchmark", embedded, *columns, "--csv", tmp_path / "s.csv", "--plot", tmp_path / "s.png")
    assert result.exit_code == 0, result.output
    scores = pd.read_csv(tmp_path / "s.csv", index_col="embedding")
    assert [name for name in scores.index if name != "X_pca"] == ["X_good", "X_bad"]  # the best first, and no plane
    assert scores.loc["X_good", "Own ARI"] == 1
    assert "X_good" in result.output
    assert "X_umap" not in result.output
    assert (tmp_path / "s.png").stat().st_size > 1000


def test_benchmark_says_what_is_missing(embedded, counts):
    result = run("benchmark", embedded, "--batch-key", "lane", "--label-key", "cell_type")
    assert result.exit_code == 2
    assert "'lane'" in result.output
    result = run("benchmark", counts, "--batch-key", "batch", "--label-key", "cell_type")
    assert result.exit_code == 2
    assert "no embeddings" in result.output


# --- compare and report


def test_compare_prints_one_table_for_each_way_to_set_k_and_goes_on(counts, tmp_path):
    out = tmp_path / "runs"
    options = ["--models", "gmvae", "--baselines", "pca", "--n-clusters", "open,3", "--label-key", "cell_type"]
    options += ["--jobs", 1, *QUICK]
    result = run("compare", counts, "--out", out, "--seeds", 1, *options)
    assert result.exit_code == 0, result.output
    assert [line.strip() for line in result.stdout.splitlines() if line.strip() in ("K open", "K = 3")] == [
        "K open", "K = 3"
    ]  # fmt: skip
    assert "5 runs in" in result.stdout
    before = {path.name: path.stat().st_mtime_ns for path in (out / "runs").iterdir()}
    page = tmp_path / "page.html"
    again = run("compare", counts, "--out", out, "--seeds", "0,4", *options, "--report", page)
    assert again.exit_code == 0, again.output
    after = {path.name: path.stat().st_mtime_ns for path in (out / "runs").iterdir()}
    assert len(after) == 10
    assert before.items() <= after.items()
    assert "Which method" in page.read_text()
    refused = run("report", out, "--out", page)
    assert refused.exit_code == 2
    assert "use --overwrite" in refused.stderr
    wrong = run("report", out, "--out", page, "--overwrite", "--key", "gmvae")
    assert wrong.exit_code == 2
    assert "--key: there is no run 'gmvae'" in wrong.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "gmvae,umap"], "--models must be one of"),
        (["--baselines", "louvain"], "--baselines must be one of"),
        (["--seeds", "a"], "--seeds: give a number of seeds"),
        (["--n-clusters", "many"], "--n-clusters: give numbers"),
        (["--n-clusters", "1"], "--n-clusters must be a whole number"),
        (["--batch-key", "lane"], "--batch-key: there is no column 'lane'"),
        (["--label-key", "kind"], "--label-key: `adata.obs` has no column 'kind'"),
        (["--address", "127.0.0.1:1"], "--address: there is none for --engine local"),
        (["--report", "page.pdf"], "--report: page.pdf must end in .html"),
    ],
)
def test_compare_names_the_option_as_typed(counts, tmp_path, options, message):
    result = run("compare", counts, "--out", tmp_path / "runs", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "runs").exists()


def test_report_of_what_is_not_there(counts, tmp_path):
    result = run("report", tmp_path / "no.h5ad", "--out", tmp_path / "page.html")
    assert (result.exit_code, "no such file or folder" in result.stderr) == (2, True)
    result = run("report", counts, "--out", tmp_path / "page.html")
    assert (result.exit_code, "--key: there are no results" in result.stderr) == (2, True)
    result = run("report", counts, "--out", tmp_path / "page.txt")
    assert (result.exit_code, "must end in .html" in result.stderr) == (2, True)


# --- version


def test_version_prints_what_is_stored_beside_a_result():
    from scdeepclust._compat import package_versions

    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [f"{name} {version}" for name, version in package_versions().items()]
    assert result.stdout.startswith("scdeepclust ")


def test_version_needs_none_of_the_heavy_libraries():
    heavy = "[m for m in ('torch', 'scvi', 'scanpy', 'anndata', 'sklearn', 'pandas', 'matplotlib') if m in sys.modules]"
    code = f"import sys, scdeepclust.cli\nscdeepclust.cli.app(['--version'], standalone_mode=False)\nprint({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("scdeepclust ")
    assert done.stdout.endswith("\n[]\n")
