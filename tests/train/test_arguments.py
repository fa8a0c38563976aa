"""What a user may give to ``train``, and to a model: known by name, honoured, or refused."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import scvi
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, LearningRateMonitor, TQDMProgressBar
from scvi.train import SaveCheckpoint, TrainerConfig, TrainingPlanConfig
from threadpoolctl import ThreadpoolController

import scdeepclust as sdc
from scdeepclust.train import _threads, keep_threads, one_thread, split_cells

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}
SHORT = {"pretrain_epochs": 2, "max_epochs": 2} | QUIET


def new(adata, **kwargs):
    sdc.model.SCDeepCluster.setup_anndata(adata, batch_key="batch")
    return sdc.model.SCDeepCluster(adata, n_clusters=4, n_hidden=16, init="kmeans", n_init=1, tol=0, **kwargs)


@pytest.fixture
def model(adata):
    return new(adata)


class Reader(Callback):
    """What each phase was trained with."""

    def __init__(self):
        self.seen = {}

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.seen.setdefault(pl_module.phase, []).append(float(pl_module.kl_weight))

    def on_train_start(self, trainer, pl_module):
        self.trainer, self.optimizer = trainer, trainer.optimizers[0]
        self.bar = trainer.progress_bar_callback


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_epoch": 3}, "`train` does not know 'max_epoch'. It knows .*precision"),
        ({"log_save_dir": "a"}, "`train` does not know 'log_save_dir'"),
        (
            {"plan_kwargs": {"learning_rate": 1, "lr": 1}},
            "`plan_kwargs` does not know 'learning_rate'. It knows .* lr,",
        ),
        ({"plan_kwargs": {"update_only_decoder": True}}, "`plan_kwargs` does not know 'update_only_decoder'"),
        ({"plan_kwargs": {"optimizer": "SGD"}}, "`plan_kwargs`: optimizer must be 'Adam', 'AdamW' or 'Custom'.*'SGD'"),
        ({"plan_kwargs": {"optimizer": "Custom"}}, "needs an optimizer_creator"),
        ({"plan_config": TrainingPlanConfig(on_step=True)}, "does not know 'on_step'"),
        ({"datasplitter_kwargs": {"train_size": 0.5}}, "`datasplitter_kwargs` does not know 'train_size'"),
        ({"datasplitter_kwargs": {"external_indexing": [[0, 1], [2]]}}, "external_indexing must name every cell once"),
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1, found 0"),
        ({"batch_size": None}, "`batch_size` must be a whole number of at least 1, found None"),
        ({"train_size": 1.0, "early_stopping": True}, "`train_size` leaves no cells for validation, but `early_stop"),
        ({"train_size": 1.0, "check_val_every_n_epoch": 1}, "but `check_val_every_n_epoch` needs some"),
    ],
)
def test_what_is_not_known_is_refused_by_name_before_anything_changes(model, arguments, message):
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        model.train(**(SHORT | arguments))
    assert all(value.equal(before[name]) for name, value in model.module.state_dict().items())
    assert not model.phases_


def test_a_split_in_the_order_of_the_cells(model, adata):
    model.train(shuffle_set_split=False, train_size=0.8, validation_size=0.1, **SHORT)
    np.testing.assert_array_equal(model.validation_indices, np.arange(40))
    np.testing.assert_array_equal(model.train_indices, np.arange(40, 360))
    np.testing.assert_array_equal(model.test_indices, np.arange(360, 400))
    parts = split_cells(10, 0.5, 0.2, seed=3, shuffle=False)
    np.testing.assert_array_equal(np.concatenate(parts), [2, 3, 4, 5, 6, 0, 1, 7, 8, 9])


def test_a_split_and_loaders_of_the_users_own(model, adata):
    indexing = [np.arange(100, 400), np.arange(50), np.arange(50, 100)]
    reader = Reader()
    loaders = {"external_indexing": indexing, "drop_last": True}
    model.train(datasplitter_kwargs=loaders, callbacks=[reader], **SHORT)
    for found, given in zip((model.train_indices, model.validation_indices, model.test_indices), indexing, strict=True):
        np.testing.assert_array_equal(found, given)
    assert len(reader.seen["pretrain"]) == 2 * 2  # 300 cells, 128 a step, without the rest


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ({"n_epochs_kl_warmup": 1}, [1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1]),
        ({"n_epochs_kl_warmup": None, "n_steps_kl_warmup": 2}, [1 / 2, 1, 1, 1, 1, 1, 1, 1]),
        ({"n_epochs_kl_warmup": 2, "min_kl_weight": 0.5, "max_kl_weight": 0.9}, 0.5 + 0.4 * np.arange(1, 9) / 8),
        ({"kl_warmup": 0.5}, [1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1]),
    ],
)
def test_the_kl_warm_up_is_that_of_the_user(model, plan, expected):
    reader = Reader()
    model.train(plan_kwargs=plan, callbacks=[reader], **SHORT)
    for phase in ("pretrain", "cluster"):
        np.testing.assert_allclose(reader.seen[phase], expected)


def test_an_optimiser_of_the_users_own(adata):
    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=1e-3, momentum=0.5)

    for plan, cls in (
        ({"optimizer": "AdamW", "lr": 1e-4}, torch.optim.AdamW),
        ({"optimizer": "Custom", "optimizer_creator": sgd}, torch.optim.SGD),
        ({"optimizer_creator": sgd}, torch.optim.SGD),
        ({}, torch.optim.Adam),
    ):
        reader = Reader()
        new(adata.copy()).train(plan_kwargs=plan, callbacks=[reader], **SHORT)
        assert type(reader.optimizer) is cls
    assert reader.optimizer.param_groups[0]["lr"] == 5e-4


def test_configurations_of_scvi_tools_say_what_differs_from_its_defaults(model):
    reader = Reader()
    plan, trainer = TrainingPlanConfig(lr=2e-4), TrainerConfig(check_val_every_n_epoch=1)
    model.train(plan_config=plan, trainer_config=trainer, callbacks=[reader], **SHORT)
    group = reader.optimizer.param_groups[0]
    assert (group["lr"], group["eps"], group["weight_decay"]) == (2e-4, 1e-8, 0.0)
    assert len(model.history["elbo_validation"]) == 2


@pytest.mark.parametrize(
    "asks",
    [
        {"check_val_every_n_epoch": 1},
        {"early_stopping": True},
        {"plan_kwargs": {"reduce_lr_on_plateau": True}},
        {"callbacks": [EarlyStopping(monitor="elbo_validation", patience=50)]},
        {"callbacks": "SaveCheckpoint"},
    ],
    ids=lambda asks: next(iter(asks)),
)
def test_a_tenth_is_held_out_where_something_asks_for_it(model, asks, caplog, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "SaveCheckpoint" in asks.values():  # made here: it takes the folder it is made in
        asks = {"callbacks": [SaveCheckpoint(dirpath="kept", monitor="train_loss")]}
    with caplog.at_level(logging.INFO, logger="scdeepclust"):
        model.train(**(SHORT | asks))
    assert len(model.validation_indices) == 40
    assert "10% of the cells are held out" in caplog.text
    for name in ("pretrain_elbo_validation", "elbo_validation"):
        assert list(model.history[name].index) == [0, 1]


def test_validation_every_second_epoch_is_noted_at_its_epoch(model):
    model.train(**(SHORT | {"max_epochs": 5}), check_val_every_n_epoch=2)
    assert list(model.history["elbo_validation"].index) == [1, 3]


def test_callbacks_see_every_phase_and_follow_each_on_its_own(model):
    reader, monitor = Reader(), LearningRateMonitor()
    patience = EarlyStopping(monitor="train_loss", patience=1, min_delta=1e9)
    model.train(callbacks=[reader, monitor, patience], **(SHORT | {"pretrain_epochs": 5, "max_epochs": 5}))
    assert set(reader.seen) == {"pretrain", "cluster"}
    # stopped after the second epoch of each phase: the first value of a phase is not held against the next
    assert model.phases_ == [("pretrain", 2), ("cluster", 2)]


def test_a_bar_by_epochs_or_that_of_lightning(model):
    for simple, ours in ((True, True), (False, False)):
        reader = Reader()
        arguments = SHORT | {"enable_progress_bar": True, "simple_progress_bar": simple}
        model.train(callbacks=[reader, *([] if simple else [TQDMProgressBar(refresh_rate=0)])], **arguments)
        assert type(reader.bar).__module__.startswith("scdeepclust") is ours


# -- seed -------------------------------------------------------------------------------------------------------------


def test_a_seed_of_the_models_own(adata, tmp_path):
    assert scvi.settings.seed is None

    def fit(seed):
        model = new(adata.copy(), seed=seed)
        model.train(train_size=0.8, **SHORT)
        return model

    one, again, other = fit(1), fit(1), fit(2)
    np.testing.assert_array_equal(one.predict(soft=True), again.predict(soft=True))
    np.testing.assert_array_equal(one.train_indices, again.train_indices)
    assert not np.array_equal(one.train_indices, other.train_indices)
    assert not np.array_equal(one.get_latent_representation(), other.get_latent_representation())
    scvi.settings.seed = 1
    try:
        default = fit(None)
    finally:
        scvi.settings.seed = None
    np.testing.assert_array_equal(one.predict(soft=True), default.predict(soft=True))
    target = adata.copy()
    one.write_back(target, confidence="posterior")
    assert target.uns["scdeepcluster"]["seed"] == 1
    one.save(str(tmp_path / "m"))
    loaded = sdc.model.SCDeepCluster.load(str(tmp_path / "m"), adata)
    loaded.write_back(adata, confidence="posterior")
    assert adata.uns["scdeepcluster"]["seed"] == 1


@pytest.mark.parametrize("name", sdc.model.__all__)
def test_every_model_takes_what_a_search_gives(name, adata):
    model_cls = getattr(sdc.model, name)
    model_cls.setup_anndata(adata)
    model = model_cls(adata, n_clusters=3, n_hidden=16, seed=np.int64(4), extra_payload_autotune=True)
    assert model.init_params_["non_kwargs"]["seed"] == 4
    for seed in (-1, 1.5, "a", 2**32):
        with pytest.raises(ValueError, match="`seed` must be a whole number"):
            model_cls(adata, n_clusters=3, seed=seed)
    with pytest.raises(NotImplementedError, match=f"{name} has no minified mode"):
        model.minify_adata()


# -- threads ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def _torch_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def others_set(number):
    """What numba does when it first runs in parallel: the number of threads of the process, past torch."""
    for library in ThreadpoolController().select(user_api="openmp").lib_controllers:
        library.set_num_threads(number)


@pytest.mark.usefixtures("_torch_threads")
@pytest.mark.parametrize("own", [1, 2])
def test_training_and_getters_keep_the_threads_of_torch(model, own):
    torch.set_num_threads(own)
    others_set(5)
    if torch.get_num_threads() != 5:
        pytest.skip("torch has threads of its own here")
    seen = []

    class Threads(Callback):
        def on_train_batch_start(self, *args):
            seen.append(torch.get_num_threads())

    model.train(callbacks=[Threads()], **SHORT)
    assert set(seen) == {own}
    for getter in (model.predict, model.get_latent_representation, model.get_normalized_expression):
        others_set(5)
        getter()
        assert torch.get_num_threads() == own
    others_set(5)
    with one_thread():
        keep_threads()
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == own


@pytest.mark.usefixtures("_torch_threads")
def test_threads_that_numba_left_before_the_import_are_not_torchs(monkeypatch):
    import numba
    from numba.np.ufunc import parallel

    torch.set_num_threads(2)
    others_set(5)
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 5)
    monkeypatch.setattr(parallel, "_is_initialized", True)
    monkeypatch.setenv("OMP_NUM_THREADS", "1,2")
    assert _threads._threads_at_import() == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert _threads._threads_at_import() == 2  # what torch was told
    monkeypatch.setattr(parallel, "_is_initialized", False)
    assert _threads._threads_at_import() == torch.get_num_threads()
