"""The runs of a comparison spread by Ray and by Dask: the same table, also when a machine is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import joblib
import pytest

import scdeepclust as sdc

OPTIONS = {"models": ["gmvae"], "baselines": ["pca"], "seeds": 3, "n_clusters": 3, "label_key": "cell_type"}
OPTIONS |= {"max_epochs": 1, "pretrain_epochs": 2, "progress": False}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    adata = sdc.datasets.simulate_counts(200, 120, n_clusters=3, marker_log_fold_change=3, depth=200)
    return adata, sdc.tl.compare(adata, tmp_path_factory.mktemp("local") / "runs", **OPTIONS, n_jobs=1)


def same(one, other) -> bool:
    kept = [name for name in one.runs if name not in ("seconds", "peak_mb", "host")]
    return (one.labels == other.labels).all(axis=None) and one.runs[kept].equals(other.runs[kept])


def test_processes_give_the_same_table(local, tmp_path):
    adata, expected = local
    assert same(sdc.tl.compare(adata, tmp_path / "runs", **OPTIONS, n_jobs=2), expected)


def test_dask_gives_the_same_table(local, tmp_path):
    distributed = pytest.importorskip("dask.distributed")
    adata, expected = local
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        assert same(sdc.tl.compare(adata, tmp_path / "runs", **OPTIONS), expected)


@pytest.fixture
def ray_cluster(tmp_path):
    """A head without workers and two nodes with one processor each, started as on two machines."""
    pytest.importorskip("ray")
    ray = [str(Path(sys.executable).parent / "ray")]
    # nodes must find this source tree, and each its own place for files
    environment = os.environ | {"PYTHONPATH": str(Path(sdc.__file__).parents[1]), "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    port, place = "6399", f"/tmp/ray_{os.getpid()}"
    memory = ["--object-store-memory", "100000000", "--disable-usage-stats"]
    head = ["start", "--head", "--port", port, "--num-cpus", "0", "--temp-dir", place, "--include-dashboard", "false"]
    subprocess.run([*ray, *head, *memory], env=environment, check=True, capture_output=True)
    nodes = [
        subprocess.Popen(
            [*ray, "start", "--address", f"127.0.0.1:{port}", "--num-cpus", "1", "--block", *memory],
            env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]  # fmt: skip
    yield f"127.0.0.1:{port}", nodes
    for node in nodes:
        if node.poll() is None:
            os.killpg(node.pid, signal.SIGTERM)
    subprocess.run([*ray, "stop"], env=environment, check=False, capture_output=True)


def test_ray_gives_the_same_table_although_a_node_is_killed(local, tmp_path, ray_cluster):
    import ray

    from scdeepclust.cli._compare import Engine, engine_of

    adata, expected = local
    address, nodes = ray_cluster
    folder = tmp_path / "runs"

    def kill_a_node_in_the_middle():
        while len(list(folder.glob("runs/*.npz"))) < 2:
            time.sleep(0.1)
        os.killpg(nodes[0].pid, signal.SIGKILL)

    thread = threading.Thread(target=kill_a_node_in_the_middle, daemon=True)
    try:
        with engine_of(Engine.ray, address):
            while ray.cluster_resources().get("CPU", 0) < 2:
                time.sleep(0.2)
            thread.start()
            result = sdc.tl.compare(adata, folder, **OPTIONS)
    finally:
        ray.shutdown()
    assert nodes[0].wait(10) == -signal.SIGKILL
    assert not result.missing
    assert same(result, expected)
