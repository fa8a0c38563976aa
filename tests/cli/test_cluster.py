"""What `cluster` and `map` make of their options, of several files, of data that cannot be written, and of signals."""

from __future__ import annotations

import html
import os
import signal
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import scvi
import typer
from typer.testing import CliRunner

from scdeepclust import cli, model
from scdeepclust.cli import _app, _cluster, _fit, _open, _progress, _signals, _writable
from scdeepclust.datasets import simulate_counts
from scdeepclust.train import ClusteringPlan

QUICK = ["--pretrain-epochs", "2", "--max-epochs", "1"]


@pytest.fixture(autouse=True, scope="module")
def _leave_no_settings_behind():
    seed = scvi.settings.seed
    with warnings.catch_warnings():
        yield
    scvi.settings.seed = seed


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def cells():
    adata = simulate_counts(90, 60, n_clusters=2, n_batches=3, n_markers=10, n_time_points=3, depth=150)
    adata.obs["depth"] = np.asarray(adata.X.sum(axis=1)).ravel()
    adata.obs["size"] = adata.obs["depth"] / adata.obs["depth"].median()
    adata.obs["lane"] = pd.Categorical(["a", "b", "c"] * 30)
    adata.uns.clear()
    adata.varm.clear()
    return adata


def labels_of(cells, tmp_path, *options, **columns):
    """Labels of a run on cells with other columns."""
    adata = cells.copy()
    for name, values in columns.items():
        adata.obs[name] = values
    adata.write_h5ad(tmp_path / "in.h5ad")
    out = tmp_path / "out.h5ad"
    genes = [] if "--n-top-genes" in options else ["--n-top-genes", 40]
    result = run("cluster", tmp_path / "in.h5ad", "--out", out, "--overwrite", *QUICK, *genes, *options)
    assert result.exit_code == 0, result.output
    return anndata.read_h5ad(out), result


# --- batches that are no text


@pytest.fixture(scope="module")
def text_labels(cells, tmp_path_factory):
    codes = cells.obs["batch"].cat.codes.astype(int).astype(str)
    adata, _ = labels_of(cells, tmp_path_factory.mktemp("text"), "--batch-key", "code", "--n-clusters", 3, code=codes)
    return adata


@pytest.mark.parametrize("dtype", ["int64", "uint8", "float32", "Int64", "category", "bool"])
def test_batches_that_are_no_text_give_the_labels_of_the_text(dtype, cells, text_labels, tmp_path):
    codes = cells.obs["batch"].cat.codes.astype(int)
    expected = text_labels
    if dtype == "bool":
        codes = codes > 0
        expected, _ = labels_of(cells, tmp_path, "--batch-key", "code", "--n-clusters", 3, code=codes.astype(str))
    options = ["--batch-key", "code", "--n-clusters", 3]
    adata, _ = labels_of(cells, tmp_path, *options, code=codes.astype(dtype))
    assert list(adata.obs["scdeepcluster"]) == list(expected.obs["scdeepcluster"])
    np.testing.assert_array_equal(adata.obsm["X_scdeepcluster"], expected.obsm["X_scdeepcluster"])
    assert list(adata.obs["code"].astype(float)) == list(codes.astype(float))  # as it was in the input


# --- options of the models


def fitted_with(monkeypatch, cells, tmp_path, *options):
    """The model behind a run, and what it was trained with; nothing is computed but the set-up."""
    seen = {}

    class Enough(Exception):
        pass

    def stop(fitted, adata, *epochs, **kwargs):
        seen.update(model=fitted, options=kwargs)
        raise Enough

    monkeypatch.setattr(_cluster, "train", stop)
    cells.write_h5ad(tmp_path / "in.h5ad")
    result = run("cluster", tmp_path / "in.h5ad", "--out", tmp_path / "out.h5ad", "--n-top-genes", 40, *options)
    assert isinstance(result.exception, Enough), result.output
    return seen["model"], seen["options"]


@pytest.mark.parametrize(
    ("options", "setup"),
    [
        ("--size-factor-key size", {"size_factor_key": "size"}),
        (
            "--categorical-covariate lane --categorical-covariate trajectory",
            {"categorical_covariate_keys": ["lane", "trajectory"]},
        ),
        ("--continuous-covariate depth", {"continuous_covariate_keys": ["depth"]}),
        ("--batch-key lane --layer counts", {"batch_key": "lane", "layer": "counts"}),
        (
            "--model somvae --time-key time --trajectory-key trajectory",
            {"time_key": "time", "trajectory_key": "trajectory"},
        ),
    ],
)
def test_keys_reach_the_registration(options, setup, monkeypatch, cells, tmp_path):
    fitted, _ = fitted_with(monkeypatch, cells, tmp_path, *options.split())
    found = fitted.registry_["setup_args"]
    assert {name: found[name] for name in setup} == setup


def test_options_reach_the_model_and_the_training(monkeypatch, cells, tmp_path):
    options = "--model mfcvae --guide lane --guide batch --gene-likelihood zinb --accelerator cpu".split()
    fitted, training = fitted_with(monkeypatch, cells, tmp_path, *options, "--checkpoint-dir", tmp_path / "c")
    assert fitted._guides == ["lane", "batch"]
    assert fitted.module.n_facets == 3
    assert fitted.module.gene_likelihood == "zinb"
    assert training == {"accelerator": "cpu", "checkpoint_dir": tmp_path / "c", "confidence": "repeat"}


def test_training_gets_only_what_was_given(monkeypatch, cells):
    given = {}

    class Stub:
        adata = cells

        def train(self, *epochs, **kwargs):
            given.update(kwargs)
            raise ValueError("`accelerator`: there is no 'abacus'")

    with pytest.raises(typer.Exit):
        _fit.train(Stub(), cells, 1, 1, accelerator="abacus", checkpoint_dir=None)
    assert set(given) == {"accelerator", "enable_progress_bar", "callbacks"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--time-key time", "--time-key is for --model somvae; found --model scdeepcluster"),
        ("--model gmvae --guide lane", "--guide is for --model mfcvae; found --model gmvae"),
        ("--batch-from-files", "--batch-from-files: there is one file only"),
        ("--model mfcvae --guide none", "--guide: there is no column 'none'"),
        ("--batch-key none", "--batch-key: there is no column 'none'"),
        ("--batch-key gap", "--batch-key: column 'gap' of `adata.obs` has 1 missing values"),
        ("--continuous-covariate lane", "--continuous-covariate: column 'lane'"),
        ("--continuous-covariate lane", "Give categories as --categorical-covariate."),
        ("--categorical-covariate none", "--categorical-covariate: there is no column 'none'"),
        ("--gene-likelihood cauchy", "--gene-likelihood must be one of 'nb', "),
        ("--n-clusters 1000", "--n-clusters must be a whole number between 2 and the number of cells (90)"),
        ("--layer none", "--layer: there is no layer 'none'; found counts"),
        ("--layer counts --raw", "--layer and --raw are both given"),
        ("--modality rna", "--modality is 'rna', but AnnData has no modalities"),
        ("--model somvae --trajectory-key lane", "--trajectory-key needs --time-key"),
        ("--save-model {dir}", "exists; use --overwrite to replace it"),
        ("--save-model {dir}/in.h5ad", "in.h5ad is a file; name a folder"),
    ],
)
def test_messages_name_the_option_as_it_is_typed(options, message, cells, tmp_path):
    adata = cells.copy()
    adata.obs["gap"] = pd.Categorical([None, *["a", "b"] * 44, "a"])
    adata.write_h5ad(tmp_path / "in.h5ad")
    options = options.format(dir=tmp_path).split()
    result = run("cluster", tmp_path / "in.h5ad", "--out", tmp_path / "out.h5ad", *options)
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["in.h5ad"]


def test_only_what_is_an_option_is_translated():
    text = "`batch_key` and `adata.obs`: run `model.train()`, or give `layer='counts'` and `grid`; `n_clusters=None`"
    assert _app.as_typed(text) == (
        "--batch-key and `adata.obs`: run `model.train()`, or give --layer counts and `grid`; --n-clusters None"
    )


def test_help_lists_the_systems_one_a_line():
    text = run("cluster", "--help").stdout
    lines = [line for line in text.splitlines() if "- " in line]
    for name in ("scdeepcluster", "gmvae", "idc", "mfcvae", "somvae"):
        assert sum(f"- {name}: " in line for line in lines) == 1


# --- where counts are


def test_what_was_found_is_said_and_the_rest_stays_as_it_was(cells, tmp_path):
    adata = cells.copy()
    adata.X = adata.X / 7
    after, result = labels_of(adata, tmp_path)
    assert "in.h5ad: AnnData, 90 cells x 60 genes, counts in layers['counts'] (X looks" in result.stderr
    assert (after.X != adata.X).nnz == 0
    assert set(after.layers) - {None} == {"counts"}  # None is X where anndata is new


def test_cells_without_counts_are_refused_with_what_to_do(cells, tmp_path):
    adata = cells.copy()
    adata.X[3] = 0
    adata.write_h5ad(tmp_path / "in.h5ad")
    result = run("cluster", tmp_path / "in.h5ad", "--out", tmp_path / "out.h5ad")
    assert result.exit_code == 2
    assert "1 of 90 cells have no counts, such as 'cell_3'. Give the filtered matrix" in result.stderr


# --- several files


def test_several_files_are_joined_by_the_names_of_their_genes(cells, tmp_path):
    first, second = cells[:50].copy(), cells[50:, ::-1][:, :55].copy()
    second.X = second.X / 7  # its counts are in the layer
    for name, part in (("a", first), ("b", second)):
        part.write_h5ad(tmp_path / f"{name}.h5ad")
    out = tmp_path / "out.h5ad"
    paths = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    result = run("cluster", *paths, "--out", out, "--batch-from-files", *QUICK)
    assert result.exit_code == 0, result.output
    assert (
        "90 cells of 2 files, 55 genes that all have (a: 60, b: 55); 5 genes that some lack are left out"
        in result.stderr
    )
    adata = anndata.read_h5ad(out)
    assert list(adata.obs["file"]) == ["a"] * 50 + ["b"] * 40
    assert list(adata.obs_names) == list(cells.obs_names)
    expected = cells[:, adata.var_names].X.toarray()
    np.testing.assert_array_equal(adata.layers["counts"].toarray(), expected)
    assert adata.uns["scdeepcluster"]["setup"]["batch_key"] == "file"


def test_files_of_the_same_name_and_cells_are_told_apart(tmp_path):
    paths = []
    for sample in ("s1", "s2"):
        (tmp_path / sample / "filtered").mkdir(parents=True)
        paths.append(tmp_path / sample / "filtered")
    assert _open.short_names(paths) == ["s1/filtered", "s2/filtered"]
    assert _open.short_names([path.parent for path in paths]) == ["s1", "s2"]
    with pytest.raises(ValueError, match="the same file is given twice"):
        _open.short_names([paths[0], paths[0]])


def test_cells_of_the_same_name_get_that_of_the_file(cells, tmp_path):
    for name in ("a", "b"):
        cells.write_h5ad(tmp_path / f"{name}.h5ad")
    adata, layer = _open.open_counts([tmp_path / "a.h5ad", tmp_path / "b.h5ad"])
    assert layer is None
    assert adata.obs_names.is_unique
    assert adata.obs_names[0] == "cell_0-a"


def test_files_without_shared_genes_are_refused(cells, tmp_path):
    other = cells.copy()
    other.var_names = [f"ENSG{i}" for i in range(60)]
    for name, part in (("a", cells), ("b", other)):
        part.write_h5ad(tmp_path / f"{name}.h5ad")
    result = run("cluster", tmp_path / "a.h5ad", tmp_path / "b.h5ad", "--out", tmp_path / "out.h5ad")
    assert result.exit_code == 2
    assert "share 0 genes (a: 60, b: 60), which are named like 'gene_0', 'ENSG0'" in result.stderr


# --- what cannot be written


def test_mixed_columns_of_several_files_are_written_as_text(cells, tmp_path):
    first, second = cells[:50].copy(), cells[50:].copy()
    first.obs["plate"] = 1
    second.obs["plate"] = "two"
    for name, part in (("a", first), ("b", second)):
        part.write_h5ad(tmp_path / f"{name}.h5ad")
    result = run("cluster", tmp_path / "a.h5ad", tmp_path / "b.h5ad", "--out", tmp_path / "out.h5ad", *QUICK)
    assert result.exit_code == 0, result.output
    assert "column 'plate' has values of several types (int, str) and is written as text" in result.stderr
    assert list(anndata.read_h5ad(tmp_path / "out.h5ad").obs["plate"]) == ["1"] * 50 + ["two"] * 40


@pytest.mark.parametrize(
    ("table", "note"),
    [
        (lambda t: t.assign(_index="a"), "column '_index', a reserved name, becomes 'index'"),
        (lambda t: pd.concat([t, t[["lane"]]], axis=1), "column 'lane' is there twice: a number is added"),
        (lambda t: t.rename_axis("gmvae"), "the name of its index, 'gmvae'"),
        (lambda t: t.rename_axis("gmvae_confidence"), "the name of its index, 'gmvae_confidence'"),
        (lambda t: t.rename_axis("lane"), "the name of its index, 'lane'"),
        (lambda t: t.assign(x=[1, "a", None] * 30), "column 'x' has values of several types (int, str)"),
        (lambda t: t.assign(x=[True, None, False] * 30), "column 'x' has values of several types (bool)"),
        (lambda t: t.assign(x=pd.Categorical([1, "a", None] * 30)), "column 'x' has categories of several types"),
        (lambda t: t.assign(x=pd.array(["a", None, "b"] * 30, dtype="string")), None),
        (lambda t: t.set_index(t.index.astype("string")), None),
        (lambda t: t.assign(**{"3": 1}).rename(columns={"3": 3}), None),
        (lambda t: t.assign(x=["a", None, "b"] * 30), None),
        (lambda t: t.assign(x=pd.Series([None] * 90, t.index, dtype=object)), None),
        (lambda t: t.assign(x=pd.array([1, None, 2] * 30, dtype="Int64")), None),
        (lambda t: t, None),
    ],
)
def test_tables_that_cannot_be_written_are_put_right(table, note, cells, tmp_path, capsys):
    adata = cells.copy()
    adata.obs = table(adata.obs)
    values = adata.obs.iloc[:, -1].astype(object)
    adata.raw = adata.copy()
    raw = adata.raw
    _writable.make_writable(adata, "gmvae", tmp_path)
    assert adata.raw is raw  # nothing is copied without need
    said = capsys.readouterr().err
    assert (note in said) if note else (said == "")
    adata.obs["gmvae"], adata.obs["gmvae_confidence"] = "0", 0.5
    adata.write_h5ad(tmp_path / "out.h5ad")
    after = anndata.read_h5ad(tmp_path / "out.h5ad").obs
    assert list(after.index) == list(cells.obs_names)
    assert set(map(str, cells.obs.columns)) <= set(after.columns)
    written = after.iloc[:, -3].astype(object)
    assert list(written.isna()) == list(values.isna())
    assert [str(v) for v in written.dropna()] == [str(v) for v in values.dropna()]


def test_what_cannot_be_put_right_is_found_before_training(cells, tmp_path):
    adata = cells.copy()
    adata.uns["function"] = {"deep": print}
    with pytest.raises(ValueError, match="can be read but not written as h5ad.*deep"):
        _writable.make_writable(adata, "gmvae", tmp_path)
    assert not list(tmp_path.iterdir())


# --- new cells


@pytest.mark.parametrize(
    "name", ["scdeepcluster", "gmvae", *[pytest.param(n, marks=pytest.mark.slow) for n in ("idc", "mfcvae", "somvae")]]
)
def test_new_cells_are_mapped_onto_a_saved_model(name, cells, tmp_path):
    reference, query = cells[:60].copy(), cells[60:].copy()
    query.obs["lane"] = "new"
    reference, _ = labels_of(
        reference, tmp_path, "--model", name, "--batch-key", "lane", "--n-clusters", 2, "--save-model", tmp_path / "m"
    )
    query.X = query.X / 7
    query.layers["umi"] = query.layers.pop("counts")
    query.write_h5ad(tmp_path / "query.h5ad")
    out, table = tmp_path / "mapped.h5ad", tmp_path / "mapped.csv"
    arguments = ["--model", tmp_path / "m", "--out", out, "--labels-csv", table, "--max-epochs", 1]
    result = run("map", tmp_path / "query.h5ad", *arguments)
    assert result.exit_code == 0, result.output
    assert "Warning" not in result.stderr
    mapped = anndata.read_h5ad(out)
    assert mapped.shape == query.shape
    assert (mapped.X != query.X).nnz == 0
    assert set(mapped.obs[name]) <= {"0", "1"}
    assert not [column for column in mapped.obs if column.startswith("_scvi")]
    assert list(pd.read_csv(table)["cluster"]) == list(mapped.obs[name].astype(int))

    # cells of the reference, mapped without training, are where they were
    cells[:60].copy().write_h5ad(tmp_path / "again.h5ad")
    result = run(
        "map", tmp_path / "again.h5ad", "--model", tmp_path / "m", "--out", out, "--overwrite", "--max-epochs", 0
    )
    assert result.exit_code == 0, result.output
    assert list(anndata.read_h5ad(out).obs[name]) == list(reference.obs[name])


def test_map_says_what_is_wrong_with_the_model(cells, tmp_path):
    cells.write_h5ad(tmp_path / "in.h5ad")
    result = run("map", tmp_path / "in.h5ad", "--model", tmp_path / "none", "--out", tmp_path / "out.h5ad")
    assert result.exit_code == 2
    assert "--model: there is no saved model in" in result.stderr
    scvi.model.SCVI.setup_anndata(adata := cells.copy())
    scvi.model.SCVI(adata, n_hidden=4).save(tmp_path / "scvi")
    result = run("map", tmp_path / "in.h5ad", "--model", tmp_path / "scvi", "--out", tmp_path / "out.h5ad")
    assert result.exit_code == 2
    assert "holds a SCVI, which is none of" in result.stderr


# --- signals


@pytest.fixture
def signal_in(monkeypatch):
    """Raise a signal at the end of the first epoch of a phase."""

    def install(number, phase):
        whole = ClusteringPlan.on_train_epoch_end

        def and_signal(self):
            whole(self)
            if self.phase == phase:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(ClusteringPlan, "on_train_epoch_end", and_signal)

    return install


@pytest.mark.parametrize(("phase", "done"), [("pretrain", "1 epochs of pretrain"), ("cluster", "1 epochs of cluster")])
def test_ctrl_c_keeps_what_was_learnt_and_says_so(phase, done, signal_in, cells, tmp_path):
    signal_in(signal.SIGINT, phase)
    cells.write_h5ad(tmp_path / "in.h5ad")
    out = tmp_path / "out.h5ad"
    epochs = ["--pretrain-epochs", 3, "--max-epochs", 4]
    result = run("cluster", tmp_path / "in.h5ad", "--out", out, "--n-clusters", 2, *epochs)
    assert result.exit_code == 130, result.output
    assert "Interrupted: training was cut short after" in result.stderr
    assert done in result.stderr
    assert anndata.read_h5ad(out).obs["scdeepcluster"].nunique() == 2


def test_sigterm_ends_with_its_code_and_a_line(signal_in, cells, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    signal_in(signal.SIGTERM, "pretrain")
    cells.write_h5ad(tmp_path / "in.h5ad")
    result = run("cluster", tmp_path / "in.h5ad", "--out", tmp_path / "out.h5ad", "--n-clusters", 2, *QUICK)
    assert result.exit_code == 143, result.output
    assert result.stderr.splitlines()[-1].startswith("Terminated: training was cut short after 1 epochs of pretrain")
    assert signal.getsignal(signal.SIGTERM) is before
    assert {path.name for path in tmp_path.iterdir()} == {"in.h5ad", "out.h5ad"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_before_training_end_in_a_line(number, code, monkeypatch, cells, tmp_path, request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it runs behind it ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    monkeypatch.setattr(_cluster, "set_up", lambda *_, **__: os.kill(os.getpid(), number))
    cells.write_h5ad(tmp_path / "in.h5ad")
    result = run("cluster", tmp_path / "in.h5ad", "--out", tmp_path / "out.h5ad")
    assert result.exit_code == code
    assert "no file was written but those named above" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("stop", "trained", "code"),
    [
        (SystemExit(143), True, 143),
        (SystemExit(143), False, None),
        (SystemExit(), False, None),
        (SystemExit(1), True, 130),
    ],
)
def test_what_a_training_that_was_stopped_leaves(stop, trained, code):
    """Of the exits of Lightning and of `train`, one leaves a result: the code of SIGTERM from a trained model."""

    class Model:
        is_trained_ = trained

    def train():
        raise stop

    if code == 143:
        assert _signals.train_until_signal(train, Model()) == 143
    else:
        with pytest.raises(KeyboardInterrupt if code else _signals.Terminated):
            _signals.train_until_signal(train, Model())


# --- progress


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(monkeypatch, cells, tmp_path):
    monkeypatch.setattr(_fit, "a_line_every", lambda seconds: _progress.a_line_every(0.0))
    _, result = labels_of(cells, tmp_path, "--n-clusters", 2)
    assert "cluster: epoch 1 of 1" in result.stderr


def test_progress_is_silent_in_between(cells, tmp_path):
    _, result = labels_of(cells, tmp_path, "--n-clusters", 2)
    assert "epoch" not in result.stderr


def test_models_saved_by_the_command_line_are_ordinary_models(cells, tmp_path):
    adata, _ = labels_of(cells, tmp_path, "--n-clusters", 2, "--save-model", tmp_path / "m")
    loaded = model.SCDeepCluster.load(str(tmp_path / "m"), adata=False)
    assert len(loaded.gene_names_) == 40
    assert list(loaded.predict(cells.copy())) == list(adata.obs["scdeepcluster"])


def test_the_report_shows_the_tree_of_the_clusters(tmp_path):
    simulate_counts(240, 100, n_clusters=3, marker_log_fold_change=3.5, depth=400).write_h5ad(tmp_path / "in.h5ad")
    page, out = tmp_path / "page.html", tmp_path / "out.h5ad"
    options = ["--n-clusters", 3, "--label-key", "cell_type", "--pretrain-epochs", 60, "--max-epochs", 2]
    result = run("cluster", tmp_path / "in.h5ad", "--out", out, "--report", page, *options)
    assert result.exit_code == 0, result.output
    assert "Tree of the clusters" in page.read_text()
    written = anndata.read_h5ad(out).uns
    assert len(written["scdeepcluster"]["tree"]["splits"]) == 2
    typed = f"{tmp_path / 'in.h5ad'} --out {out} --label-key cell_type --n-clusters 3 --max-epochs 2"
    command = f"scdeepclust cluster {typed} --pretrain-epochs 60 --report {page}"
    assert written["scdeepcluster"]["command"] == command
    assert command in html.unescape(page.read_text())
    assert "<h1>in: clusters of SCDeepCluster</h1>" in page.read_text()
    assert "100 in the file" in page.read_text()
    assert written["scdeepcluster"]["seconds"] > 0
    assert (written["scdeepcluster"]["n_cells"], written["scdeepcluster"]["n_genes"]) == (240, 100)
    assert list(written["scdeepcluster"]["tree"]["clusters"]) == ["0", "1", "2"]
    result = run("report", out, "--out", tmp_path / "again.html")
    assert result.exit_code == 0, result.output
    assert "Tree of the clusters" in (tmp_path / "again.html").read_text()
    result = run("cluster", tmp_path / "in.h5ad", "--out", tmp_path / "o.h5ad", "--report", tmp_path / "page.pdf")
    assert "--report: page.pdf must end in .html" in result.stderr
