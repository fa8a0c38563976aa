"""The runs of a comparison spread by Ray and by Dask: the same table, also when a machine is lost."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import joblib
import psutil
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


class RayNodes:
    """A head without workers and nodes of one processor each, started on this machine as if they were several."""

    def __init__(self, place):
        # a node must find this source tree
        self.environment = os.environ | {"PYTHONPATH": str(Path(sdc.__file__).parents[1])}
        self.address, self.processes = "127.0.0.1:6399", []
        self.start("--head", "--port=6399", "--num-cpus=0", f"--temp-dir={place}", "--include-dashboard=false")

    def start(self, *options):
        ray = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--object-store-memory=100000000"]
        process = subprocess.Popen(
            [*ray, "--disable-usage-stats", *options], env=self.environment, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.processes.append(process)

    def kill(self, process):
        """As when a machine is lost: everything of it at once."""
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait()


@pytest.fixture
def ray_nodes():
    pytest.importorskip("ray")
    place = f"/tmp/ray_{os.getpid()}"  # short: sockets below it must fit into 107 characters
    nodes = RayNodes(place)
    yield nodes
    for process in reversed(nodes.processes):
        if process.poll() is None:
            nodes.kill(process)
    shutil.rmtree(place, ignore_errors=True)


def wait_until(condition, seconds=180):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def answers(address):
    host, port = address.split(":")
    with socket.socket() as connection:
        return connection.connect_ex((host, int(port))) == 0


def test_ray_gives_the_same_table_although_a_node_is_killed(local, tmp_path, ray_nodes):
    import ray

    from scdeepclust.cli._compare import Engine, engine_of

    adata, expected = local
    folder = tmp_path / "runs"

    def kill_a_node_in_the_middle():
        wait_until(lambda: len(list(folder.glob("runs/*.npz"))) >= 2, 900)
        ray_nodes.kill(ray_nodes.processes[1])

    thread = threading.Thread(target=kill_a_node_in_the_middle, daemon=True)
    wait_until(lambda: answers(ray_nodes.address))
    try:
        with engine_of(Engine.ray, ray_nodes.address):
            for n in (1, 2):  # one after the other: two at once may choose the same port
                ray_nodes.start(f"--address={ray_nodes.address}", "--num-cpus=1")
                wait_until(lambda n=n: ray.cluster_resources().get("CPU", 0) == n)
            thread.start()
            result = sdc.tl.compare(adata, folder, **OPTIONS)
            thread.join(10)
    finally:
        ray.shutdown()
    assert ray_nodes.processes[1].poll() is not None
    assert not result.missing
    assert same(result, expected)
