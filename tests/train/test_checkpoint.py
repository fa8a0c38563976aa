"""A fit that was stopped in any way goes on, and ends as if it had never been stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pytest
import scvi
import torch
from lightning.pytorch.callbacks import Callback

import scdeepclust as sdc
from scdeepclust.train import _checkpoint

MODELS = [getattr(sdc.model, name) for name in sdc.model.__all__]
LENGTHS = {"pretrain_epochs": 6, "max_epochs": 3, "enable_progress_bar": False, "accelerator": "cpu"}


@pytest.fixture(autouse=True)
def _seed_and_every_epoch(monkeypatch):
    monkeypatch.setattr(_checkpoint, "WRITE_EVERY", 0.0)
    scvi.settings.seed = 0
    yield
    scvi.settings.seed = None


def new(model_cls, adata, **kwargs):
    if model_cls is sdc.model.MFCVAE:
        kwargs |= {"n_facet_clusters": 2}
    model_cls.setup_anndata(adata, batch_key="batch")
    return model_cls(adata, n_clusters=4, n_hidden=16, init="kmeans", n_init=1, **kwargs)


class Stop(Callback):
    """An error (or a signal) in one step of one phase."""

    def __init__(self, phase: str, epoch: int, number: int | None = None):
        self.at = (phase, epoch)
        self.number = number

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (pl_module.phase, trainer.current_epoch) == self.at and batch_idx == 1:
            if self.number is None:
                raise OSError("the machine is gone")
            signal.raise_signal(self.number)


def same(model, other):
    state = other.module.state_dict()
    for name, value in model.module.state_dict().items():
        np.testing.assert_array_equal(value, state[name], err_msg=name)
    np.testing.assert_array_equal(model.predict(soft=True), other.predict(soft=True))
    assert model.phases_ == other.phases_
    assert model.history.keys() == other.history.keys()
    for name, frame in model.history.items():
        np.testing.assert_array_equal(frame, other.history[name], err_msg=name)
        np.testing.assert_array_equal(frame.index, other.history[name].index, err_msg=name)


@pytest.mark.parametrize("model_cls", MODELS, ids=lambda model: model.__name__)
def test_a_fit_stopped_in_any_phase_ends_as_one_that_was_not(model_cls, adata, tmp_path):
    whole = new(model_cls, adata.copy())
    whole.train(**LENGTHS)
    phases = [name for name, epochs in whole.phases_ if epochs]
    for number, phase in enumerate(phases):  # the fit goes on and is stopped again
        model = new(model_cls, adata.copy())
        torch.rand(number + 1)
        with pytest.raises(OSError, match="machine"):
            model.train(checkpoint_dir=tmp_path, callbacks=[Stop(phase, 1)], **LENGTHS)
        assert not model.is_trained
    model = new(model_cls, adata.copy())
    model.train(checkpoint_dir=tmp_path, **LENGTHS)
    same(model, whole)  # which also says that writing changes nothing
    again = new(model_cls, adata.copy())
    again.train(checkpoint_dir=tmp_path, callbacks=[Stop("any", 0)], **LENGTHS)  # finished: nothing is trained
    same(again, whole)
    with pytest.warns(UserWarning, match="finished: it was loaded"):
        again.train(checkpoint_dir=tmp_path, **LENGTHS)


def test_what_follows_a_metric_goes_on_too(adata, tmp_path):
    """Early stopping, a learning rate that falls on a plateau, and the labels of the last epoch."""
    arguments = LENGTHS | {
        **{"early_stopping": True, "early_stopping_patience": 3, "early_stopping_min_delta": 1e6, "max_epochs": 30},
        **{"early_stopping_warmup_epochs": 2},
        "plan_kwargs": {"reduce_lr_on_plateau": True, "lr_patience": 1, "lr_threshold": 1e6},
    }
    whole = new(sdc.model.SCDeepCluster, adata.copy(), tol=0)
    whole.train(**arguments)
    assert whole.phases_ == [("pretrain", 6), ("cluster", 6)]
    assert whole.history["lr"].nunique().item() > 1
    for phase, epoch in (("pretrain", 2), ("cluster", 1), ("cluster", 4)):
        model = new(sdc.model.SCDeepCluster, adata.copy(), tol=0)
        with pytest.raises(OSError, match="machine"):
            model.train(checkpoint_dir=tmp_path, callbacks=[Stop(phase, epoch)], **arguments)
    model = new(sdc.model.SCDeepCluster, adata.copy(), tol=0)
    model.train(checkpoint_dir=tmp_path, **arguments)
    same(model, whole)


def test_data_in_a_file_come_in_the_same_order(adata, tmp_path):
    adata.write_h5ad(tmp_path / "a.h5ad")

    def backed():
        return new(sdc.model.GMVAE, anndata.read_h5ad(tmp_path / "a.h5ad", backed="r"))

    whole = backed()
    whole.train(**LENGTHS)
    with pytest.raises(OSError, match="machine"):
        backed().train(checkpoint_dir=tmp_path / "c", callbacks=[Stop("vae", 3)], **LENGTHS)
    model = backed()
    model.train(checkpoint_dir=tmp_path / "c", **LENGTHS)
    same(model, whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: (sdc.model.IDC, a, {}, {}), "another model: 'SCDeepCluster'; now it is 'IDC'"),
        (lambda a: (sdc.model.SCDeepCluster, a[:, ::-1].copy(), {}, {}), "another genes"),
        (lambda a: (sdc.model.SCDeepCluster, a[1:].copy(), {}, {}), "another number of cells: 400; now it is 399"),
        (lambda a: (sdc.model.SCDeepCluster, a[::-1].copy(), {}, {}), "another counts"),
        (lambda a: (sdc.model.SCDeepCluster, a, {"n_latent": 8}, {}), "another n_latent: 16; now it is 8"),
        (lambda a: (sdc.model.SCDeepCluster, a, {"seed": 7}, {}), "another seed: 0; now it is 7"),
        (lambda a: (sdc.model.SCDeepCluster, a, {}, {"max_epochs": 4}), "another max_epochs: 3; now it is 4"),
        (lambda a: (sdc.model.SCDeepCluster, a, {}, {"plan_kwargs": {"lr": 1e-4}}), "another plan_kwargs"),
        (lambda a: (sdc.model.SCDeepCluster, a, {}, {"precision": "bf16-mixed"}), "another precision: nothing"),
    ],
)
def test_the_state_of_another_fit_is_refused_by_name(adata, tmp_path, change, message):
    new(sdc.model.SCDeepCluster, adata.copy()).train(checkpoint_dir=tmp_path, **(LENGTHS | {"pretrain_epochs": 1}))
    model_cls, other, constructor, arguments = change(adata)
    model = new(model_cls, other.copy(), **constructor)
    with pytest.raises(ValueError, match=message):
        model.train(checkpoint_dir=tmp_path, **(LENGTHS | {"pretrain_epochs": 1} | arguments))
    assert not model.is_trained


def test_a_file_that_is_no_state_is_named(adata, tmp_path):
    (tmp_path / "fit.pt").write_bytes(b"no state")
    with pytest.raises(ValueError, match=r"fit.pt.*cannot be read.*Delete it"):
        new(sdc.model.SCDeepCluster, adata).train(checkpoint_dir=tmp_path, **LENGTHS)
    with pytest.raises(ValueError, match="`checkpoint_dir`.*cannot be made"):
        new(sdc.model.SCDeepCluster, adata).train(checkpoint_dir=tmp_path / "fit.pt" / "a", **LENGTHS)


@pytest.mark.parametrize("when", ["open", "replace"])
def test_a_full_disk_leaves_the_last_state_and_training_goes_on(adata, tmp_path, monkeypatch, when):
    whole = new(sdc.model.SCDeepCluster, adata.copy())
    whole.train(**LENGTHS)
    with pytest.raises(OSError, match="machine"):
        new(sdc.model.SCDeepCluster, adata.copy()).train(
            checkpoint_dir=tmp_path, callbacks=[Stop("pretrain", 4)], **LENGTHS
        )
    before = (tmp_path / "fit.pt").read_bytes()

    work = {"open": Path.open, "replace": os.replace}[when]

    def full(path, *args, **kwargs):
        if str(path).startswith(str(tmp_path)):
            raise OSError(28, "No space left on device")
        return work(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr({"open": Path, "replace": os}[when], when, full)
        model = new(sdc.model.SCDeepCluster, adata.copy())
        with pytest.warns(UserWarning, match="No space left.*Training goes on"):
            model.train(checkpoint_dir=tmp_path, **LENGTHS)
    same(model, whole)
    assert (tmp_path / "fit.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["fit.pt"]


@pytest.mark.parametrize("phase", ["pretrain", "cluster"])
def test_ctrl_c_keeps_what_was_learnt_and_the_same_call_goes_on(adata, tmp_path, phase, monkeypatch):
    monkeypatch.setattr(_checkpoint, "WRITE_EVERY", 1e6)  # written because of the interrupt
    whole = new(sdc.model.SCDeepCluster, adata.copy())
    whole.train(**LENGTHS)
    model = new(sdc.model.SCDeepCluster, adata.copy())
    model.train(checkpoint_dir=tmp_path, callbacks=[Stop(phase, 1, signal.SIGINT)], **LENGTHS)
    assert dict(model.phases_)[phase] == 2
    assert len(set(model.predict())) > 1
    state = torch.load(tmp_path / "fit.pt", weights_only=False)
    assert state["inside"]["epoch"] == 1
    model.train(checkpoint_dir=tmp_path, **LENGTHS)
    same(model, whole)


def test_sigterm_keeps_what_was_learnt_then_ends_the_process_with_143(adata, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    whole = new(sdc.model.GMVAE, adata.copy())
    whole.train(**LENGTHS)
    model = new(sdc.model.GMVAE, adata.copy())
    with pytest.raises(SystemExit) as stop:
        model.train(checkpoint_dir=tmp_path, callbacks=[Stop("vae", 2, signal.SIGTERM)], **LENGTHS)
    assert stop.value.code == 143
    assert model.phases_ == [("pretrain", 2), ("vae", 3), ("mixture", 0)]
    assert len(set(model.predict())) > 1
    assert signal.getsignal(signal.SIGTERM) is before
    other = new(sdc.model.GMVAE, adata.copy())
    other.train(checkpoint_dir=tmp_path, **LENGTHS)
    same(other, whole)


SCRIPT = """
import os, signal, sys, scvi, scdeepclust as sdc
from lightning.pytorch.callbacks import Callback
from scdeepclust.train import _checkpoint
_checkpoint.WRITE_EVERY = 0.0
scvi.settings.seed = 3
adata = sdc.datasets.simulate_counts(300, 150, n_clusters=4, n_batches=2, depth=120, seed=1)
sdc.model.SCDeepCluster.setup_anndata(adata, batch_key="batch")
model = sdc.model.SCDeepCluster(adata, n_clusters=4, n_hidden=16, init="kmeans", n_init=1, tol=0)

class Kill(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (pl_module.phase, trainer.current_epoch, batch_idx) == ("cluster", 1, 1):
            os.kill(os.getpid(), signal.SIGKILL)

model.train(pretrain_epochs=6, max_epochs=3, enable_progress_bar=False, accelerator="cpu", checkpoint_dir=sys.argv[1],
            callbacks=[Kill()])
"""


def test_a_killed_process_goes_on_in_the_next(tmp_path):
    command = [sys.executable, "-c", SCRIPT, tmp_path / "killed"]
    assert subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode == -signal.SIGKILL
    scvi.settings.seed = 3
    probabilities = []
    for folder in ("killed", "whole"):
        adata = sdc.datasets.simulate_counts(300, 150, n_clusters=4, n_batches=2, depth=120, seed=1)
        model = new(sdc.model.SCDeepCluster, adata, tol=0)
        model.train(checkpoint_dir=tmp_path / folder, **LENGTHS)
        probabilities.append(model.predict(soft=True))
        assert model.phases_ == [("pretrain", 6), ("cluster", 3)]
    np.testing.assert_array_equal(*probabilities)
