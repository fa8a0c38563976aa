"""A fit in phases: one split of the cells, one ordinary Lightning fit per phase, one history."""

from __future__ import annotations

import os
import time
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from scvi import settings
from scvi.model.base import UnsupervisedTrainingMixin
from torch import nn

from scdeepclust.nn import check_precision

from ._arguments import FitArguments, check_lengths, unfolded
from ._callbacks import GracefulInterrupt, PhaseProgressBar
from ._checkpoint import EpochState, FitStore, describe, digest, random_states, set_random_states, undone_on_failure
from ._data import CountsSplitter
from ._phase import Phase, keyboard_interrupts, quiet_lightning
from ._plan import ClusteringPlan
from ._source import CellSourceMixin
from ._threads import keep_threads


class PhasedTrainingMixin(CellSourceMixin, UnsupervisedTrainingMixin):
    """``train`` for models whose fit has several phases.

    A model lists its phases in ``_phases(pretrain_epochs, max_epochs, n_train, batch_size)``, says in ``_has_clusters``
    whether there is something to go on from, and finishes a fit in ``_end_training(train_indices)``.
    """

    _data_splitter_cls = CountsSplitter
    _training_plan_cls = ClusteringPlan
    history_: dict[str, pd.DataFrame] | None
    trainer: Any
    # name of the phase that a model stands in which was saved before its clusters were there
    phase_: str | None = None
    phases_: list[tuple[str, int]] = []
    # in all calls of `train`, and when the part that is not yet in it began
    seconds_: float = 0.0
    _lap_began: float
    # what another fit of the same kind has to be told
    fit_options_: dict[str, Any] = {}
    _own_seed: int | None = None
    # whether this fit goes on from clusters that the model has
    _continues = False
    # label of each cell (n,) that this fit starts its clusters from, whatever the model had before
    _given_start: np.ndarray | None = None
    # private attributes that a phase needs and `begin` made
    _made_by_begin: tuple[str, ...] = ()

    def train(
        self,
        max_epochs: int | None = None,
        pretrain_epochs: int | None = None,
        *,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        batch_size: int = 128,
        early_stopping: bool = False,
        plan_kwargs: dict | None = None,
        plan_config: Any = None,
        datasplitter_kwargs: dict | None = None,
        logger: Logger | Sequence[Logger] | bool | None = None,
        callbacks: Sequence[Callback] | None = None,
        enable_progress_bar: bool = True,
        gradient_clip_val: float = 50.0,
        checkpoint_dir: str | os.PathLike | None = None,
        datamodule: LightningDataModule | None = None,
        trainer_config: Any = None,
        **trainer_kwargs,
    ) -> None:
        """Train the model, phase after phase. A model that is trained goes on from its clusters.

        Ctrl-C and SIGTERM stop the current phase and keep what was learnt: clusters are then set from the state
        reached (after SIGTERM the process ends with code 143). When the call ends in an error, the model is as it was
        before.

        Parameters
        ----------
        max_epochs
            Length of the last, clustering phase. By default it follows from the number of cells. 0 skips it: labels
            are then those that the phase would start from (and those of the reference in a mapped query).
        pretrain_epochs
            Length of what comes before. By default it follows from the number of cells, and is 0 for a model that has
            clusters. 0 skips it.
        accelerator, devices
            As in :class:`lightning.pytorch.Trainer`. ``strategy``, ``precision`` and all other arguments of
            :class:`scvi.train.Trainer` can be given too.
        train_size
            Share of the cells to train on. All by default, 0.9 where something asks for held-out cells:
            ``early_stopping``, ``check_val_every_n_epoch``, ``reduce_lr_on_plateau``, or a callback that monitors a
            validation metric.
        validation_size
            Share of the cells to validate on; the rest by default.
        shuffle_set_split
            Draw the cells at random instead of taking them in their order, those to validate on first.
        batch_size
            Cells per step (on each device).
        early_stopping
            Stop a phase when the ELBO on held-out cells does not improve any more.
        plan_kwargs, plan_config
            Arguments of :class:`~scdeepclust.train.ClusteringPlan` for all phases, for example
            ``{"lr": 5e-4}``.
        datasplitter_kwargs
            Arguments of the data loaders, such as ``drop_last`` or ``num_workers``, and ``external_indexing``, a list
            of training, validation and test cells.
        logger
            One or more Lightning loggers; every phase reports to them, and ``model.history`` is kept in any case.
        callbacks
            Lightning callbacks, for every phase. Early stopping and checkpoints start anew in each phase, checkpoints
            of earlier phases in a folder with the name of the phase; callbacks of a parameter search see the last
            phase only.
        enable_progress_bar
            Show one bar a phase; with ``simple_progress_bar=False`` that of Lightning, by steps.
        gradient_clip_val
            Largest norm of the gradient of one step.
        checkpoint_dir
            Folder for the state of the fit, written after each phase and every two minutes. The same call, also in
            another process, goes on from there and ends as if it had never been stopped; a finished fit is loaded.
        datamodule
            The cells to train on, where the model was made with ``registry=datamodule.registry``: minibatches of
            scvi-tools, with the row number of each cell as ``"ind_x"``. See :doc:`/user_guide/large_data`. The model
            keeps it for its getters, and for further calls of ``train``.
        trainer_config, **trainer_kwargs
            Further arguments of :class:`scvi.train.Trainer`.

        Raises
        ------
        ValueError
            If an argument is unknown or out of range, the model was loaded without data, or ``checkpoint_dir`` holds
            another fit.
        scdeepclust.train.NonFiniteLossError
            When the loss is not finite.
        """
        lengths = {"max_epochs": max_epochs, "pretrain_epochs": pretrain_epochs}
        check_lengths(batch_size=batch_size, **lengths)
        given = {"train_size": train_size, "validation_size": validation_size}
        self._check_source(datamodule, given | {"datasplitter_kwargs": datasplitter_kwargs})
        named: dict[str, Any] = {
            "early_stopping": early_stopping,
            "gradient_clip_val": gradient_clip_val,
            "batch_size": batch_size,
        }
        named |= unfolded(trainer_config) | trainer_kwargs
        check_precision(named.get("precision"))
        arguments = FitArguments.of_call(
            {"enable_progress_bar": enable_progress_bar, "accelerator": accelerator, "devices": devices} | named,
            plan=unfolded(plan_config) | (plan_kwargs or {}),
            splitter=datasplitter_kwargs,
            logger=logger,
            callbacks=callbacks,
        )
        plain = {name: value for name, value in arguments.plan.items() if isinstance(value, str | Real)}
        with undone_on_failure(self), GracefulInterrupt() as interrupt:
            if datamodule is not None:
                self._take_datamodule(datamodule)
            arguments.trainer["batch_size"] = named["batch_size"] = self._batch_size(batch_size)
            split = self._split(arguments, train_size, validation_size, shuffle_set_split)
            store = None
            if checkpoint_dir is not None:
                named |= lengths | {"plan_kwargs": arguments.plan, "datasplitter_kwargs": arguments.splitter}
                store = FitStore(checkpoint_dir, self._fit_identity(named, split))
            self.fit_options_ = {
                "batch_size": arguments.batch_size,
                "plan_kwargs": plain,
                "enable_progress_bar": enable_progress_bar,
            }
            self._fit(lengths, split, arguments, store, interrupt)
        if interrupt.terminated:
            raise SystemExit(143)

    @property
    def _seed(self) -> int | None:
        """Seed of this model: its own, or that of scvi-tools."""
        return settings.seed if self._own_seed is None else self._own_seed

    def _fit(
        self,
        lengths: dict[str, int | None],
        split: list[np.ndarray],
        arguments: FitArguments,
        store: FitStore | None,
        interrupt: GracefulInterrupt,
    ) -> None:
        """All phases, or those that are left of them."""
        self._lap_began = time.perf_counter()
        state = store.read() if store else None
        if state is not None and state["finished"]:
            self._take_finished(state)
            return
        continues = not self.phase_ and self._has_clusters and self._given_start is None
        start = state["start"] if state else {"phase": self.phase_, "continues": continues}
        phases = self._begin_fit(start, lengths, split, arguments.batch_size)
        first, inside = 0, None
        if state is not None:
            first, inside = state["phase"], state["inside"]
            self._take_state(state)
        for number, phase in enumerate(phases[first:], first):
            last = number == len(phases) - 1
            resumed, inside = inside, None
            if not last and (interrupt.interrupted or not phase.epochs):
                continue
            self.phase_ = None if last else phase.name
            if phase.begin is not None and resumed is None:
                phase.begin(split[0])
            epochs = 0 if interrupt.interrupted else phase.epochs
            keepers = []
            if store is not None:
                keepers.append(EpochState(store, self.module, partial(self._fit_state, start, number), resumed))
            frames = self._fit_phase(phase, epochs, last, split, arguments, [*keepers, *phase.callbacks, interrupt])
            if interrupt.interrupted:
                for keeper in keepers:
                    keeper.flush()
            self._note_history(phase.name, frames)
            if store is not None and not interrupt.interrupted:
                store.write(self._fit_state(start, number + 1))
        self._end_training(split[0])
        self._end_lap()
        self.interrupted_ = interrupt.interrupted  # for who goes on with the model, such as the command line
        if store is not None and not interrupt.interrupted:
            store.write(self._fit_state(start, len(phases), finished=True))

    def _begin_fit(
        self, start: dict[str, Any], lengths: dict[str, int | None], split: list[np.ndarray], batch_size: int
    ) -> list[Phase]:
        """Set what a fit needs; returns its phases, which depend on where the model stood at the start."""
        if self._seed is not None:
            # the result must not depend on what was drawn before this call
            torch.manual_seed(self._seed)
        self.train_indices, self.validation_indices, self.test_indices = split
        keep_threads()
        self._begin_training()
        self._continues = bool(start["continues"])
        phases = self._phases(lengths["pretrain_epochs"], lengths["max_epochs"], len(split[0]), batch_size)
        if lengths["pretrain_epochs"] is not None:
            return phases
        # a model that was saved in a phase goes on with that phase
        return phases[next((i for i, phase in enumerate(phases) if phase.name == start["phase"]), 0) :]

    def _fit_phase(
        self,
        phase: Phase,
        epochs: int,
        last: bool,
        split: list[np.ndarray],
        arguments: FitArguments,
        callbacks: list[Callback],
    ) -> dict[str, pd.DataFrame]:
        """One Lightning fit; returns its history."""
        history = self.history_
        self.is_trained_ = False  # each fit of scvi-tools then starts a history of its own
        if arguments.has_bar:
            callbacks = [*callbacks, PhaseProgressBar(phase.name)]
        self.module.train()
        keep_threads()
        with quiet_lightning(), keyboard_interrupts():
            super().train(
                max_epochs=epochs,
                **self._loaders(split, arguments.splitter),
                plan_kwargs=phase.plan_kwargs | arguments.plan | {"phase": phase.name, "last": last},
                callbacks=[*arguments.callbacks_of(phase.name, last), *callbacks],
                **arguments.trainer,
            )
        plan = self.trainer.lightning_module
        # with strategies that fork, the plan that was trained lives in another process
        frames = plan.history or dict(self.history_ or {})
        self.history_ = history
        self.trainer = None  # it would keep the data loaders and the callbacks alive
        return frames

    def _note_history(self, phase: str, frames: dict[str, pd.DataFrame]) -> None:
        """Add the history of a phase to that of the phases, and of the calls of ``train``, before it."""
        epochs = max((len(frame) for frame in frames.values()), default=0)
        before = sum(n for name, n in self.phases_ if name == phase)
        history = dict(self.history_ or {})
        for name, frame in frames.items():
            frame = frame.set_axis(frame.index + before)
            history[name] = pd.concat([history[name], frame]) if name in history else frame
        self.history_ = history
        *earlier, (name, n) = self.phases_ or [("", 0)]
        self.phases_ = [*earlier, (phase, n + epochs)] if name == phase else [*self.phases_, (phase, epochs)]

    # -- state of a fit -----------------------------------------------------------------------------------------------

    def _fit_identity(self, arguments: dict[str, Any], split: list[np.ndarray]) -> dict[str, str]:
        """What has to be the same for a fit to go on."""
        constructor = {name: value for name, value in self._parameters_given().items() if name != "seed"}
        named = {"model": type(self).__name__, **self._data_identity(), "seed": self._seed} | constructor | arguments
        return {name: describe(value) for name, value in named.items()} | {"training cells": digest(split[0].tobytes())}

    def _parameters_given(self) -> dict[str, Any]:
        """Arguments of the constructor, with the numbers of clusters that were found in place of None."""
        return dict(self.init_params_["non_kwargs"])

    def _fit_state(
        self,
        start: dict[str, Any],
        phase: int,
        module: nn.Module | None = None,
        inside: dict[str, Any] | None = None,
        finished: bool = False,
    ) -> dict[str, Any]:
        """All that a fit needs to go on with a phase, from its start or from inside."""
        self._end_lap()
        names = {name for name in vars(self) if name.endswith("_")} - {"registry_"}
        return {
            "start": start,
            "phase": phase,
            "inside": inside,
            "finished": finished,
            "attributes": {name: value for name, value in vars(self).items() if name in (*names, *self._made_by_begin)},
            "module": self.module if module is None else module,
            "random": random_states(),
            "found": {name: describe(value) for name, value in self._parameters_given().items()},
        }

    def _end_lap(self) -> None:
        now = time.perf_counter()
        self.seconds_, self._lap_began = self.seconds_ + now - self._lap_began, now

    def _take_state(self, state: dict[str, Any]) -> None:
        """Become what the model was when the state was written."""
        for name in [name for name in vars(self) if name.endswith("_") and name != "registry_"]:
            delattr(self, name)
        for name, value in state["attributes"].items():
            setattr(self, name, value)
        self.module.__dict__ = state["module"].__dict__
        set_random_states(state["random"])

    def _take_finished(self, state: dict[str, Any]) -> None:
        if self.is_trained_:
            warnings.warn(
                "`checkpoint_dir` holds this fit, and it is finished: it was loaded, and nothing was trained. Give "
                "another directory to train further.",
                stacklevel=4,
            )
        self._take_state(state)

    # -- what a model adds --------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def _has_clusters(self) -> bool:
        """Whether the module has clusters to go on from."""

    @abstractmethod
    def _data_identity(self) -> dict[str, Any]:
        """What tells the data of the model from other data."""

    def _begin_training(self) -> None:
        """Set what the module needs to know of the data; called once, before the phases."""

    @abstractmethod
    def _phases(
        self, pretrain_epochs: int | None, max_epochs: int | None, n_train: int, batch_size: int
    ) -> list[Phase]:
        """The phases of one fit, in order; lengths that are None follow from the number of training cells."""

    def _end_training(self, train_indices: np.ndarray) -> None:
        """Set what follows from the fit; called once, after the phases."""
