"""A model that is trained on, that failed, or that was saved in the middle of a fit."""

from __future__ import annotations

import copy
import pickle
import signal
from itertools import product

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from lightning.pytorch.callbacks import Callback
from scipy.optimize import linear_sum_assignment
from scvi.train import SaveCheckpoint

import scdeepclust as sdc
from scdeepclust.train import NonFiniteLossError

MODELS = [getattr(sdc.model, name) for name in sdc.model.__all__]
QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}
SHORT = {"pretrain_epochs": 5, "max_epochs": 2} | QUIET


@pytest.fixture(params=MODELS, ids=lambda model: model.__name__)
def model_cls(request):
    return request.param


@pytest.fixture(autouse=True)
def _seed():
    scvi.settings.seed = 0
    yield
    scvi.settings.seed = None


def new(model_cls, adata, **kwargs):
    if model_cls is sdc.model.MFCVAE:
        kwargs = {"n_facet_clusters": 2} | kwargs
    model_cls.setup_anndata(adata, batch_key="batch")
    return model_cls(adata, **({"n_clusters": 4, "n_hidden": 16, "init": "kmeans", "n_init": 1} | kwargs))


# -- a fit saved in the middle ----------------------------------------------------------------------------------------


def test_a_checkpoint_of_an_early_phase_names_the_phase_and_goes_on_with_it(model_cls, adata, tmp_path):
    model = new(model_cls, adata)
    keeper = SaveCheckpoint(dirpath=str(tmp_path), monitor="elbo_validation", save_top_k=1)
    model.train(callbacks=[keeper], **SHORT)
    assert len(model.validation_indices) == 40
    early = [name for name, _ in model.phases_[:-1]]
    assert {path.name for path in tmp_path.iterdir() if path.name in early} == set(early)
    for phase in early:
        (folder,) = (tmp_path / phase).iterdir()
        loaded = model_cls.load(str(folder), adata)
        assert not loaded.is_trained
        for getter in (loaded.predict, loaded.get_latent_representation, loaded.write_back):
            with pytest.raises(RuntimeError, match=rf"saved in phase '{phase}'.*`model.train\(\)`, which goes on"):
                getter()
    loaded.train(max_epochs=1, callbacks=[_StopPhase()], **QUIET)
    assert [name for name, _ in loaded.phases_][-2:] == [early[-1], model.phases_[-1][0]]
    assert len(set(loaded.predict())) > 1
    late = model_cls.load(keeper.best_model_path, adata)
    assert late.predict(soft=True).shape == (adata.n_obs, 4)
    late.write_back(adata, confidence="posterior")


class _StopPhase(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        trainer.should_stop = True


# -- train, and train on ----------------------------------------------------------------------------------------------


def test_a_second_call_adds_to_the_first(model_cls, adata, tmp_path):
    whole = new(model_cls, adata.copy())
    whole.train(**(SHORT | {"max_epochs": 5}))
    model = new(model_cls, adata.copy())
    model.train(**SHORT)
    model.save(str(tmp_path / "m"))
    loaded = model_cls.load(str(tmp_path / "m"), adata.copy())
    for going_on in (model, loaded):
        going_on.train(max_epochs=3, **QUIET)
        assert going_on.phases_ == whole.phases_
        assert going_on.history.keys() == whole.history.keys()
        for name, frame in whole.history.items():
            assert list(going_on.history[name].index) == list(frame.index), name
        sdc.pl.history(going_on, "loss")
    pd.testing.assert_frame_equal(loaded.predict(soft=True), model.predict(soft=True))
    model.train(**SHORT)  # from the start: the phases come again
    assert len(model.phases_) == 2 * len(whole.phases_)
    sdc.pl.history(model, "loss")
    model.write_back(adata, confidence="posterior")
    phases = adata.uns[model_cls.__name__.lower()]["phases"]
    assert sum(phases.values()) == sum(n for _, n in model.phases_)


@pytest.mark.parametrize(
    ("name", "kept", "kwargs"),
    [
        ("SCDeepCluster", "start_labels", {}),
        ("GMVAE", "start_labels", {}),
        ("SOMVAE", "start_nodes", {}),
        ("MFCVAE", "guides", {"anchor": 10.0}),
    ],
)
def test_what_cells_started_from_is_kept_in_the_numbers_of_the_clusters(adata, name, kept, kwargs, tmp_path):
    model = new(getattr(sdc.model, name), adata, **kwargs)
    seen = []

    class Reader(Callback):
        def on_train_start(self, trainer, pl_module):
            seen.append(copy.deepcopy(getattr(model.module, kept)))

    model.train(callbacks=[Reader()], **(SHORT | {"pretrain_epochs": 30}))
    first = seen[-1]
    model.train(max_epochs=1, callbacks=[Reader()], **QUIET)
    second = seen[-1]
    for before, after in [(first, second)] if name != "MFCVAE" else [(first[j], second[j]) for j in first]:
        table = pd.crosstab(before.numpy(), after.numpy())
        assert (table > 0).sum(axis=1).max() == (table > 0).sum(axis=0).max() == 1  # the same up to the numbers
    if name in ("SCDeepCluster", "GMVAE"):
        table = pd.crosstab(second.numpy(), model.predict())
        np.testing.assert_array_equal(*linear_sum_assignment(-table))  # in the numbers that the clusters now have
    model.save(str(tmp_path / "m"))
    others = adata[::-1].copy()
    model = type(model).load(str(tmp_path / "m"), others)  # other cells have not started from there
    model.train(max_epochs=1, callbacks=[Reader()], **QUIET)
    assert not seen[-1]


class _Anchor(Callback):
    """Start labels that each training saw."""

    def __init__(self):
        self.seen = []

    def on_train_start(self, trainer, pl_module):
        self.seen.append(pl_module.module.start_labels)


def test_the_anchor_of_a_mixture_holds_in_a_second_call(adata):
    agreement, anchor = [], _Anchor()
    for calls in ((12,), (6, 6)):
        model = new(sdc.model.GMVAE, adata.copy())
        for number, epochs in enumerate(calls):
            lr = {"lr": 5e-3} if number else None
            model.train(epochs, None if number else 30, plan_kwargs=lr, callbacks=[anchor], **QUIET)
        codes = pd.crosstab(model.initial_labels_, model.predict()).to_numpy()
        agreement.append(codes.max(axis=1).sum() / codes.sum())
    assert agreement[1] >= agreement[0] - 0.02
    *_, first, second = anchor.seen  # of the mixture phases of the last model
    assert torch.equal(first, second)


# -- a call that fails ------------------------------------------------------------------------------------------------


class _Fail(Callback):
    """Different ways to fail in the last phase."""

    def __init__(self, how: str):
        self.how = how

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if not pl_module.prefix:
            if self.how == "raises":
                raise KeyError("a callback that does not work")
            if self.how == "not finite":
                with torch.no_grad():
                    next(p for p in pl_module.module.parameters() if p.requires_grad).fill_(float("nan"))
            if self.how == "interrupted":
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)


FAILURES = {"raises": KeyError, "not finite": NonFiniteLossError, "interrupted": KeyboardInterrupt}
FAILING = [
    *((model_cls, "not finite", True) for model_cls in MODELS),
    *((sdc.model.GMVAE, how, trained) for how, trained in product(FAILURES, (True, False)) if how != "not finite"),
]


def _snapshot(model):
    attributes = {name: value for name, value in vars(model).items() if name.endswith("_") and name != "registry_"}
    return pickle.dumps(attributes), {name: value.clone() for name, value in model.module.state_dict().items()}


@pytest.mark.parametrize(("model_cls", "how", "trained"), FAILING)
def test_a_call_that_fails_changes_nothing(model_cls, adata, how, trained):
    model = new(model_cls, adata, n_clusters=None)
    if trained:
        model.train(**SHORT)
        labels = model.predict(soft=True)
    module, before, weights = model.module, *_snapshot(model)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(FAILURES[how]):
        model.train(callbacks=[_Fail(how)], **SHORT)
    after, weights_after = _snapshot(model)
    assert pickle.loads(after).keys() == pickle.loads(before).keys()
    assert after == before
    assert model.module is module
    assert weights.keys() == weights_after.keys()
    assert all(value.equal(weights_after[name]) for name, value in weights.items())
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    if trained:
        pd.testing.assert_frame_equal(model.predict(soft=True), labels)
    model.train(**SHORT)
    assert len(model.predict()) == adata.n_obs


def test_reclustering_that_fails_keeps_the_clusters(adata):
    model = new(sdc.model.IDC, adata)
    model.train(**SHORT)
    before = model.predict(soft=True)
    with pytest.raises(KeyError):
        model.recluster(3, 2, callbacks=[_Fail("raises")], **QUIET)
    pd.testing.assert_frame_equal(model.predict(soft=True), before)
    model.recluster(3, 1, **QUIET)
    assert model.n_clusters == 3
    np.testing.assert_allclose(model.predict(soft=True).sum(axis=1), 1, atol=1e-5)
