"""Other numbers of clusters of the same gates: whatever happens on the way, the model stays what it was."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scvi

from scdeepclust.datasets import simulate_counts
from scdeepclust.model import IDC
from scdeepclust.model.idc import _getters
from scdeepclust.train import NonFiniteLossError

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def model():
    """One for all tests: that none of them changes it is what they are about."""
    scvi.settings.seed = 0
    adata = simulate_counts(300, 100, n_clusters=4, n_batches=2, marker_log_fold_change=2.5, depth=120, seed=1)
    IDC.setup_anndata(adata, batch_key="batch")
    model = IDC(adata, n_clusters=4, n_hidden=16, target_sparsity=0.2)
    model.train(pretrain_epochs=5, max_epochs=1, **QUIET)
    yield model
    scvi.settings.seed = None


def raise_(error):
    def fail(*args, **kwargs):
        raise error

    return fail


@pytest.mark.parametrize("n_calls", [0, 1, 3], ids="call {}".format)
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_sweep_leaves_the_gates_on(model, monkeypatch, error, n_calls):
    before = model.predict(soft=True)
    blocks = model._denoised_blocks
    calls = []

    def interrupted(cells):
        calls.append(cells)
        return raise_(error)() if len(calls) > n_calls else blocks(cells)

    monkeypatch.setattr(model, "_denoised_blocks", interrupted)
    with pytest.raises(error):
        model.sweep_n_clusters([2, 3])
    assert model.module.uses_gates
    pd.testing.assert_frame_equal(model.predict(soft=True), before)


def test_start_points_of_a_model_without_gates_leave_it_without(model, monkeypatch):
    monkeypatch.setattr(model.module, "uses_gates", False)
    model._start_points(np.arange(50))
    assert not model.module.uses_gates


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"max_epochs": -1}, ValueError),
        ({"train_size": 3.0}, ValueError),
        ({"plan_kwargs": {"lr": float("inf")}, "max_epochs": 3}, NonFiniteLossError),
    ],
    ids=str,
)
@pytest.mark.parametrize("n_clusters", [6, None])
def test_a_failed_recluster_gives_the_old_clusters_back(model, tmp_path, n_clusters, arguments, error):
    before, gates, history = model.predict(soft=True), model.get_global_gates(), model.history
    labels = model.initial_labels_.copy()
    with pytest.raises(error):
        model.recluster(n_clusters, **(QUIET | arguments))
    assert model.n_clusters == 4
    pd.testing.assert_frame_equal(model.predict(soft=True), before)
    pd.testing.assert_frame_equal(model.get_global_gates(), gates)
    np.testing.assert_array_equal(model.initial_labels_, labels)
    assert model.history.keys() == history.keys()
    model.save(str(tmp_path / "m"))
    loaded = IDC.load(str(tmp_path / "m"), model.adata)
    pd.testing.assert_frame_equal(loaded.predict(soft=True), before)


@pytest.mark.parametrize("at", ["_start_labels", "_end_training"])
def test_an_interrupt_while_reclustering_gives_the_old_clusters_back(model, monkeypatch, at):
    before = model.predict(soft=True)
    monkeypatch.setattr(IDC, at, raise_(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        model.recluster(5, max_epochs=1, **QUIET)
    pd.testing.assert_frame_equal(model.predict(soft=True), before)


def test_a_number_that_cannot_be_is_refused_before_anything_is_forgotten(model):
    head = model.module.cluster_head
    with pytest.raises(ValueError, match="n_clusters"):
        model.recluster(301)
    assert model.module.cluster_head is head


def test_a_gate_counts_as_open_from_a_hundredth_of_the_expression(model, monkeypatch):
    import torch

    means = torch.tensor([[0.0, 0.009, 0.011, 0.15, 1.0]])
    monkeypatch.setattr(model, "_minibatches", lambda *args: [None])
    monkeypatch.setattr(model, "_encode", lambda tensors: {"gate_means": means})
    np.testing.assert_allclose(model.get_gates().toarray(), [[0, 0, 0.011, 0.15, 1]], rtol=1e-6)
    monkeypatch.setattr(_getters, "draw_gates", lambda mean: means.expand(4, 5))
    monkeypatch.setattr(model, "gene_names_", np.array(list("abcde")))
    np.testing.assert_allclose(model.get_global_gates()["3"], [0, 0, 0.011, 0.15, 1], rtol=1e-6)
