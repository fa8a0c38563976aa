from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import joblib
import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

import scdeepclust as sdc
from scdeepclust.tl import _compare, _compare_runs
from scdeepclust.tl._compare_plan import Job, Run, plan

QUICK = {"max_epochs": 1, "pretrain_epochs": 2, "n_jobs": 1, "progress": False}


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """One model and PCA, two seeds, K open and given, with batches and labels; and the data."""
    adata = sdc.datasets.simulate_counts(300, 120, n_clusters=3, n_batches=2, marker_log_fold_change=3, depth=200)
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.toarray() / 2  # not what is to be clustered
    options = {"models": ["gmvae"], "baselines": ["pca"], "seeds": 2, "n_clusters": [None, 3], "layer": "counts"}
    options |= {"batch_key": "batch", "label_key": "cell_type", "n_top_genes": 80} | QUICK
    folder = tmp_path_factory.mktemp("compared") / "runs"
    return adata, folder, options, sdc.tl.compare(adata, folder, **options)


def test_plan_keeps_the_ways_to_set_k_apart():
    jobs = list(plan(["gmvae"], ["pca", "scvi"], [0, 7], ["open", "4"], with_labels=True))
    found = {(run.method, run.setting) for job in jobs for run in job.runs if run.seed == 7}
    assert found == {
        ("gmvae", "K open"), ("gmvae", "K = 4"), ("pca+leiden", "K open"), ("pca+leiden", "K from labels"),
        ("pca+kmeans", "K = 4"), ("scvi+leiden", "K open"), ("scvi+leiden", "K from labels"),
    }  # fmt: skip
    names = [run.name for job in jobs for run in job.runs]
    assert len(set(names)) == len(names) == 14
    assert [job.fit for job in jobs][-1] == "pca"  # the short ones last
    without = [run.k for job in plan([], ["pca"], [0], ["open"], with_labels=False) for run in job.runs]
    assert without == ["open"]


def test_every_run_leaves_a_file_and_its_scores_are_right(compared):
    adata, folder, _, result = compared
    assert not result.missing
    assert not result.errors
    assert len(list((folder / "runs").iterdir())) == len(result.runs) == 10
    for name, row in result.runs.iterrows():
        labels = result.labels[name].astype(str).to_numpy()
        assert row["ARI"] == pytest.approx(adjusted_rand_score(adata.obs["cell_type"], labels))
        assert row["n_clusters"] == len(set(labels))
        assert row["seconds"] > 0
        assert 50 < row["peak_mb"] < 20_000
        assert result.result(name)["embedding"].shape[0] == adata.n_obs
        assert ("confidence" in result.result(name)) == ("+" not in name)
    assert result.about_run("gmvae_k-3_seed-1")["versions"]["scvi-tools"]
    assert list(result.labels.index) == list(adata.obs_names)


def test_a_run_is_what_the_model_alone_gives(compared):
    import scvi

    _, _, _, result = compared
    data, seed = result.data(), scvi.settings.seed
    try:
        scvi.settings.seed = 1
        sdc.model.GMVAE.setup_anndata(data, batch_key="batch")
        model = sdc.model.GMVAE(data, n_clusters=3)
        model.train(1, 2, enable_progress_bar=False)
        np.testing.assert_array_equal(model.predict(), result.labels["gmvae_k-3_seed-1"].astype(str))
        # that of a repeat, as `write_back` has it, and not the assignment probability
        np.testing.assert_allclose(model.get_confidence(), result.result("gmvae_k-3_seed-1")["confidence"], rtol=1e-5)
    finally:
        scvi.settings.seed = seed


def test_tables_have_one_column_for_each_way_to_set_k(compared):
    result = compared[3]
    assert list(result.summary) == ["K open", "K = 3", "K from labels"]
    assert set(result.summary["K open"].index) == {"gmvae", "pca+leiden"}
    assert set(result.summary["K = 3"].index) == {"gmvae", "pca+kmeans"}
    assert list(result.summary["K from labels"].index) == ["pca+leiden"]
    table = result.summary["K = 3"]
    labels = result.labels
    seeds = adjusted_rand_score(labels["pca+kmeans_k-3_seed-0"], labels["pca+kmeans_k-3_seed-1"])
    assert table.loc["pca+kmeans", "repeatability"] == pytest.approx(seeds)
    across = np.mean([adjusted_rand_score(labels[f"pca+kmeans_k-3_seed-{i}"], labels[f"gmvae_k-3_seed-{j}"])
                      for i in (0, 1) for j in (0, 1)])  # fmt: skip
    assert table.loc["gmvae", "agreement"] == pytest.approx(across)
    # the bound is no worse than the default
    assert result.summary["K from labels"].loc["pca+leiden", "ARI"] >= result.summary["K open"].loc["pca+leiden", "ARI"]


def test_batch_mixing_tells_apart_what_is_mixed():
    rng = np.random.default_rng(0)
    points, batch = rng.normal(size=(400, 4)), np.repeat(["a", "b"], 200)
    assert _compare_runs.batch_mixing(points, batch) > 0.8
    assert _compare_runs.batch_mixing(points + 50 * (batch == "a")[:, None], batch) < 0.05


def test_started_again_it_does_what_is_missing_and_no_more(compared, monkeypatch):
    adata, folder, options, result = compared
    lost = folder / "runs" / "pca+kmeans_k-3_seed-1.npz"
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (folder / "runs").iterdir()}
    lost.unlink()
    done = []
    monkeypatch.setattr(_compare, "run_job", lambda *args: done.append(args[1]) or _compare_runs.run_job(*args))
    again = sdc.tl.compare(adata, folder, **options)
    assert done == [Job("pca", 1, (Run("pca+kmeans", "3", 1),))]
    assert all(before[path][0] == path.stat().st_mtime_ns for path in before if path != lost)
    assert (again.labels == result.labels).all(axis=None)


def test_other_data_or_settings_are_refused_and_the_folder_stays(compared):
    adata, folder, options, _ = compared
    before = (folder / "comparison.json").read_text()
    other = adata.copy()
    other.layers["counts"][0, 0] += 1
    with pytest.raises(ValueError, match="comparison of other data"):
        sdc.tl.compare(other, folder, **options)
    with pytest.raises(ValueError, match="`n_top_genes`=80, now it is 90"):
        sdc.tl.compare(adata, folder, **(options | {"n_top_genes": 90}))
    assert (folder / "comparison.json").read_text() == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"models": ["scvi"]}, r"`models` must be one of 'scdeepcluster'.*'scvi'"),
        ({"baselines": ["umap"]}, "`baselines` must be one of 'pca'"),
        ({"baselines": ["harmony"], "batch_key": None}, "`baselines`: 'harmony' needs `batch_key`"),
        ({"seeds": 0}, "`seeds` must be"),
        ({"seeds": [-1]}, "`seeds` must be"),
        ({"n_clusters": 1}, "`n_clusters` must be a whole number between 2"),
        ({"n_clusters": [3, 1000]}, "`n_clusters` must be a whole number between 2"),
        ({"label_key": "kind"}, "`label_key`: `adata.obs` has no column 'kind'"),
        ({"batch_key": "lane"}, "`batch_key`: there is no column 'lane'"),
        ({"layer": None}, "whole numbers"),
        ({"models": [], "baselines": []}, "nothing to run"),
        ({"scib": True, "label_key": None}, "`scib` needs"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(compared, tmp_path, changed, message):
    adata, _, options, _ = compared
    with pytest.raises(ValueError, match=message):
        sdc.tl.compare(adata, tmp_path / "new", **(options | changed))
    assert not (tmp_path / "new").exists()


def test_a_folder_with_other_things_is_refused(compared, tmp_path):
    adata, _, options, _ = compared
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="not empty and holds no comparison"):
        sdc.tl.compare(adata, tmp_path, **options)
    with pytest.raises(ValueError, match="holds no comparison"):
        sdc.tl.read_comparison(tmp_path)


def test_a_failing_run_leaves_its_error_and_the_others_go_on(compared, tmp_path, monkeypatch):
    adata, _, options, _ = compared

    def broken(*_):
        raise FloatingPointError("the loss is NaN")

    options = options | {"seeds": 1, "n_clusters": 3, "label_key": None}
    monkeypatch.setattr(_compare_runs, "_fit_model", broken)
    result = sdc.tl.compare(adata, tmp_path / "new", **options)
    assert result.errors == {"gmvae_k-3_seed-0": "FloatingPointError: the loss is NaN"}
    assert list(result.runs.index) == ["pca+kmeans_k-3_seed-0"]
    monkeypatch.undo()
    again = sdc.tl.compare(adata, tmp_path / "new", **options)  # tried again, since it is missing
    assert not again.errors
    assert not again.missing


def test_adata_and_the_callers_settings_stay(compared):
    import scvi
    import torch

    adata, _, options, _ = compared
    assert set(adata.obs) == set(sdc.datasets.simulate_counts(10, 100, n_batches=2).obs)
    assert not adata.uns.keys() & {"_scvi_uuid", "_scvi_manager_uuid"}
    before = torch.get_num_threads(), scvi.settings.seed
    _compare_runs.run_job(str(compared[1]), Job("nothing", 5, ()), options)
    assert (torch.get_num_threads(), scvi.settings.seed) == before


def test_rare_types_are_those_below_one_percent_or_the_rarest():
    import pandas as pd

    labels = pd.Series(["a"] * 500 + ["b"] * 490 + ["c"] * 6 + ["d"] * 4 + [None] * 50)
    assert _compare_runs.rare_types(labels) == ["c", "d"]
    assert _compare_runs.rare_types(labels[:990]) == ["b"]


def test_runs_of_a_killed_worker_are_tried_again(compared, tmp_path, monkeypatch):
    adata, _, options, _ = compared
    options = options | {"models": [], "seeds": 2, "n_jobs": 2, "batch_key": None}
    mark = tmp_path / "died"

    def die_once(folder, job, options):  # as by a machine that runs out of memory
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        _compare_runs.run_job(folder, job, options)

    monkeypatch.setattr(_compare, "run_job", die_once)
    result = sdc.tl.compare(adata, tmp_path / "new", **options)
    assert mark.exists()
    assert not result.missing

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(_compare, "run_job", die)
    with pytest.raises(RuntimeError, match="runs were lost 3 times"):
        sdc.tl.compare(adata, tmp_path / "new", **(options | {"seeds": 3}))
    kept = sdc.tl.read_comparison(tmp_path / "new")
    assert list(kept.files) == list(result.files)  # those that were there stay
    assert len(kept.missing) == 3


def test_a_file_is_complete_or_not_there(tmp_path, monkeypatch):
    def full(self, _content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tmp_path), "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        _compare_runs.write_atomically(tmp_path / "run.npz", b"x" * 100)
    assert not (tmp_path / "run.npz").exists()


def test_any_backend_of_joblib_gives_the_same(compared, tmp_path):
    adata, _, options, result = compared
    with joblib.parallel_config(backend="threading"):
        other = sdc.tl.compare(adata, tmp_path / "new", **(options | {"models": []}))
    shared = list(other.labels)
    assert (other.labels == result.labels[shared]).all(axis=None)
    assert json.loads((tmp_path / "new" / "comparison.json").read_text())["runs"] == shared


KILLED = """
import sys, time
from pathlib import Path

import scdeepclust as sdc
from scdeepclust.tl import _compare

def work(folder, job, options):
    Path(folder, f"begun{job.seed}").touch()
    time.sleep(5)
    Path(folder, f"ended{job.seed}").touch()

_compare.run_job = work
adata = sdc.datasets.simulate_counts(200, 100, n_clusters=3)
sdc.tl.compare(adata, sys.argv[1], models=[], baselines=["pca"], seeds=2, n_clusters=3, n_jobs=2, progress=False)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="processes have other parents there")
def test_workers_end_with_a_killed_program(tmp_path):
    """Or they would go on writing beside those of the same command started again."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "out")])
    try:
        end = time.monotonic() + 200
        while len(list(tmp_path.glob("out/begun*"))) < 2:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    time.sleep(7)
    assert not list(tmp_path.glob("out/ended*"))
