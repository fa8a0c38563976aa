from __future__ import annotations

import signal
from types import SimpleNamespace

import numpy as np
import pytest
import scvi
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

import scdeepclust as sdc
from scdeepclust.model.mfcvae._fade_in import FadeIn
from scdeepclust.train import (
    NonFiniteLossError,
    _plan,
    epochs_for_steps,
    one_thread,
    pretraining_epochs,
    split_cells,
)

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


@pytest.fixture
def model(adata):
    sdc.model.SCDeepCluster.setup_anndata(adata, batch_key="batch")
    return sdc.model.SCDeepCluster(adata, n_clusters=4, tol=0)


def test_history_has_every_phase_at_its_length(model):
    model.train(pretrain_epochs=3, max_epochs=2, **QUIET)
    assert model.phases_ == [("pretrain", 3), ("cluster", 2)]
    assert len(model.history["pretrain_train_loss"]) == 3
    assert len(model.history["train_loss"]) == 2
    assert len(model.history["cluster_kl_train"]) == 2
    assert "pretrain_cluster_kl_train" not in model.history


def test_logged_losses_are_means_over_cells(model, adata):
    """Cells count equally although the last minibatch is smaller."""
    model.train(pretrain_epochs=1, max_epochs=0, batch_size=128, **QUIET)
    model.module.eval()
    batches = list(model._minibatches(batch_size=64))
    losses = torch.cat(
        [
            model.module(b, loss_kwargs={"phase": "pretrain"})[2].reconstruction_loss["reconstruction_loss"]
            for b in batches
        ]
    )

    seen = []  # loss of a minibatch, and its cells

    class Recorder(Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            pl_module.module.eval()
            for group in trainer.optimizers[0].param_groups:
                group["lr"] = 0.0

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append((outputs["loss"].item(), batch["X"].n_cells))

    model.train(pretrain_epochs=0, max_epochs=1, batch_size=96, callbacks=[Recorder()], **QUIET)
    logged = model.history["reconstruction_loss_train"].iloc[-1, 0]
    np.testing.assert_allclose(logged, losses.mean().item(), rtol=1e-4)
    loss, n_cells = np.array(seen).T
    assert len(set(n_cells)) > 1
    np.testing.assert_allclose(model.history["train_loss"].iloc[-1, 0], np.average(loss, weights=n_cells), rtol=1e-6)


def test_all_phases_train_on_the_same_cells(model, adata):
    seen = []

    def spy(begin):
        def wrapped(cells):
            seen.append(np.sort(cells))
            return begin(cells)

        return wrapped

    model._start_clusters = spy(model._start_clusters)
    model.train(pretrain_epochs=1, max_epochs=1, train_size=0.8, **QUIET)
    np.testing.assert_array_equal(seen[0], np.sort(model.train_indices))
    assert len(model.train_indices) == 320
    assert len(np.union1d(model.train_indices, model.validation_indices)) == adata.n_obs


def test_early_stopping_holds_cells_out_and_stops(model):
    model.train(
        pretrain_epochs=200,
        max_epochs=1,
        early_stopping=True,
        early_stopping_patience=1,
        early_stopping_min_delta=1e6,
        **QUIET,
    )
    assert 0 < len(model.validation_indices) <= 40
    assert len(model.history["pretrain_elbo_validation"]) < 10


@pytest.mark.parametrize("make", [CSVLogger, TensorBoardLogger])
def test_any_logger_gets_the_curves_of_every_phase(model, tmp_path, make):
    model.train(pretrain_epochs=2, max_epochs=2, logger=make(str(tmp_path)), **QUIET)
    assert len(model.history["pretrain_train_loss"]) == 2
    if make is CSVLogger:
        import pandas as pd

        table = pd.read_csv(next(tmp_path.rglob("metrics.csv")))
        logged = {column: table[column].notna().sum() for column in table}
    else:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        logged = {}
        for path in tmp_path.rglob("events*"):
            events = EventAccumulator(str(path))
            events.Reload()
            for tag in events.Tags()["scalars"]:
                logged[tag] = logged.get(tag, 0) + len(events.Scalars(tag))
    for name in ("pretrain_train_loss", "pretrain_lr", "train_loss", "lr"):
        assert logged[name] == 2, logged


def test_callbacks_find_what_they_monitor(model):
    seen = []

    class Reader(Callback):
        def on_train_end(self, trainer, pl_module):
            seen.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    model.train(pretrain_epochs=0, max_epochs=2, callbacks=[Reader()], **QUIET)
    for name in ("train_loss", "elbo_train", "reconstruction_loss_train", "cluster_kl_train"):
        assert seen[0][name] == pytest.approx(model.history[name].iloc[-1, 0])


def test_no_files_are_left_behind_without_a_logger(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.train(pretrain_epochs=1, max_epochs=1, **QUIET)
    assert not list(tmp_path.iterdir())


def test_kl_warm_up_follows_the_length_of_the_phase(model):
    weights = []

    class Recorder(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            weights.append(pl_module.kl_weight)

    model.train(
        pretrain_epochs=0, max_epochs=4, batch_size=100, callbacks=[Recorder()], plan_kwargs={"kl_warmup": 0.5}, **QUIET
    )
    np.testing.assert_allclose(weights[:8], np.arange(1, 9) / 8)
    np.testing.assert_allclose(weights[8:], 1)


class _Poison(Callback):
    """Makes one weight infinite in the middle of the second epoch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 1:
            with torch.no_grad():
                pl_module.module.z_head.weight[0, 0] = float("inf")


@pytest.mark.parametrize("looks_later", [False, True], ids=["cpu", "as on a gpu"])
@pytest.mark.parametrize("look_every", [2, 50])
def test_a_loss_that_is_not_finite_names_phase_epoch_and_parameter_and_keeps_the_last_good_state(
    model, monkeypatch, looks_later, look_every
):
    monkeypatch.setattr(_plan.ClusteringPlan, "_looks_later", looks_later)
    monkeypatch.setattr(_plan, "LOOK_EVERY", look_every)
    with pytest.raises(NonFiniteLossError, match=r"phase 'cluster', epoch 1.*'z_head\.weight'"):
        model.train(pretrain_epochs=1, max_epochs=3, callbacks=[_Poison()], **QUIET)
    assert all(torch.isfinite(p).all() for p in model.module.parameters())


def test_looking_later_changes_no_fit(adata, monkeypatch):
    latents = []
    for looks_later in (False, True):
        monkeypatch.setattr(_plan.ClusteringPlan, "_looks_later", looks_later)
        scvi.settings.seed = 0
        sdc.model.SCDeepCluster.setup_anndata(adata)
        model = sdc.model.SCDeepCluster(adata, n_clusters=4, n_hidden=16)
        model.train(pretrain_epochs=2, max_epochs=2, **QUIET)
        latents.append(model.get_latent_representation())
    scvi.settings.seed = None
    np.testing.assert_array_equal(*latents)


class _Interrupt(Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.current_epoch == 1:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("in_phase", ["pretrain", "cluster"])
def test_an_interrupt_keeps_what_was_learnt(model, adata, in_phase, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    if in_phase == "cluster":
        model.train(pretrain_epochs=2, max_epochs=50, callbacks=[_Interrupt()], **QUIET)
        assert model.phases_[0] == ("pretrain", 2)
        assert model.phases_[1][1] <= 2
    else:
        phases = model._phases
        monkeypatch.setattr(model, "_phases", lambda *args: _interrupt_first(phases(*args)))
        model.train(pretrain_epochs=50, max_epochs=50, **QUIET)
        assert model.phases_[0][1] <= 2
    assert len(set(model.predict())) > 1
    assert signal.getsignal(signal.SIGINT) is before


def _interrupt_first(phases):
    phases[0].callbacks = [_Interrupt()]
    return phases


def test_continuing_a_trained_model_keeps_its_clusters(model):
    model.train(pretrain_epochs=5, max_epochs=1, **QUIET)
    bandwidth = model.module.bandwidth.clone()
    model.train(max_epochs=1, **QUIET)
    assert model.phases_ == [("pretrain", 5), ("cluster", 2)]
    assert model.module.bandwidth.equal(bandwidth)


def test_invalid_lengths_and_sizes_name_the_argument(model):
    with pytest.raises(ValueError, match="`max_epochs`.*-1"):
        model.train(max_epochs=-1)
    with pytest.raises(ValueError, match="`pretrain_epochs`.*1.5"):
        model.train(pretrain_epochs=1.5)
    with pytest.raises(ValueError, match="`train_size`.*1.2"):
        model.train(train_size=1.2)
    with pytest.raises(ValueError, match="`validation_size`"):
        model.train(train_size=0.9, validation_size=0.5)


def test_the_split_covers_every_cell_once_and_depends_on_the_seed_only():
    parts = split_cells(103, 0.8, 0.1, seed=1)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(103))
    assert [len(part) for part in parts] == [83, 10, 10]
    for again, part in zip(split_cells(103, 0.8, 0.1, seed=1), parts, strict=True):
        np.testing.assert_array_equal(again, part)
    assert not np.array_equal(split_cells(103, 0.8, 0.1, seed=2)[0], parts[0])


@pytest.mark.parametrize(("n_obs", "expected"), [(2638, 48), (300, 200), (10**6, 1), (128, 200)])
def test_epochs_follow_from_steps_but_stay_in_bounds(n_obs, expected):
    assert epochs_for_steps(1000, n_obs, 128, 200) == expected


@pytest.mark.parametrize("n_obs", [300, 2000, 6400, 6401, 12_800, 19_200, 30_000, 200_000, 10**7])
def test_pretraining_makes_enough_passes_as_long_as_they_do_not_take_too_many_steps(n_obs):
    epochs, of_steps = pretraining_epochs(1000, n_obs, 128, 200), epochs_for_steps(1000, n_obs, 128, 200)
    steps_of_epoch = -(-n_obs // 128)
    assert epochs >= of_steps
    assert epochs >= 20 or (epochs + 1) * steps_of_epoch > 3000
    assert epochs == of_steps or (epochs <= 20 and (epochs - 1) * steps_of_epoch < 3000)


def test_threads_of_torch_survive_scikit_learn(model):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        model.train(pretrain_epochs=1, max_epochs=1, **QUIET)
        assert torch.get_num_threads() == 1
        torch.set_num_threads(2)
        with one_thread():
            pass
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_seeded_training_does_not_depend_on_the_state_of_the_generator(adata):
    results = []
    scvi.settings.seed = 5
    try:
        for draws in (1, 10):
            sdc.model.SCDeepCluster.setup_anndata(adata)
            torch.rand(draws)
            model = sdc.model.SCDeepCluster(adata, n_clusters=4)
            torch.rand(draws)
            model.train(pretrain_epochs=2, max_epochs=1, **QUIET)
            results.append(model.get_latent_representation())
    finally:
        scvi.settings.seed = None
    np.testing.assert_array_equal(*results)


def test_a_fade_in_rises_step_by_step_to_one_at_its_share_of_the_phase():
    weights = []
    fade = FadeIn(weights.append, 0.5)
    for step in range(20):
        trainer = SimpleNamespace(max_epochs=5, num_training_batches=4, global_step=step, current_epoch=step // 4)
        fade.on_train_batch_start(trainer, None, None, step % 4)
    np.testing.assert_allclose(weights, np.minimum(np.arange(1, 21) / 10, 1))
    fade.set_weight(0.0)
    fade.on_train_end(trainer, None)  # also of a phase that was cut short
    assert weights[-1] == 1
