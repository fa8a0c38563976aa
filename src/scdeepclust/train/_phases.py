"""A fit in phases: one split of the cells, one ordinary Lightning fit per phase, one history."""

from __future__ import annotations

import logging
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger
from scvi import settings
from scvi.model.base import UnsupervisedTrainingMixin

from ._callbacks import GracefulInterrupt, PhaseProgressBar
from ._data import CountsSplitter
from ._plan import ClusteringPlan


@dataclass
class Phase:
    """One phase of a fit.

    Parameters
    ----------
    name
        Shown in the progress bar, prefix of the metrics of the phase, and passed to ``module.loss``.
    epochs
        Number of epochs; a phase of 0 epochs is skipped, but for its ``begin`` if it is the last one.
    begin
        Called before the phase with the training cells, for example to set cluster centres.
    plan_kwargs
        Arguments of :class:`ClusteringPlan` for this phase.
    callbacks
        Lightning callbacks of this phase.
    """

    name: str
    epochs: int
    begin: Callable[[np.ndarray], None] | None = None
    plan_kwargs: dict[str, Any] = field(default_factory=dict)
    callbacks: Sequence[Callback] = ()


def epochs_for_steps(n_steps: int, n_obs: int, batch_size: int, max_epochs: int) -> int:
    """Number of epochs that gives about ``n_steps`` gradient steps, between 1 and ``max_epochs``.

    A model learns by steps; but on few cells a fixed number of steps would pass over each of them too often.

    Examples
    --------
    >>> epochs_for_steps(1000, n_obs=2638, batch_size=128, max_epochs=200)
    48
    >>> epochs_for_steps(1000, n_obs=300, batch_size=128, max_epochs=200)
    200
    >>> epochs_for_steps(1000, n_obs=10**6, batch_size=128, max_epochs=200)
    1
    """
    return max(1, min(max_epochs, ceil(n_steps / ceil(n_obs / batch_size))))


def split_cells(n_obs: int, train_size: float, validation_size: float | None, seed: int) -> list[np.ndarray]:
    """Random split of the cells into training, validation and test cells.

    Raises
    ------
    ValueError
        If the sizes are no fractions, or add up to more than 1.
    """
    if not 0 < train_size <= 1:
        raise ValueError(f"`train_size` must be in (0, 1], found {train_size}.")
    n_train = ceil(train_size * n_obs)
    validation_size = 1 - train_size if validation_size is None else validation_size
    if validation_size < 0 or train_size + validation_size > 1 + 1e-9:
        raise ValueError(f"`validation_size` must be between 0 and 1 - train_size, found {validation_size}.")
    n_validation = min(n_obs - n_train, round(validation_size * n_obs))
    order = np.random.default_rng(seed).permutation(n_obs)
    return [order[:n_train], order[n_train : n_train + n_validation], order[n_train + n_validation :]]


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep hardware reports, advertisements and advice that does not apply here off the screen."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # the split is ours on purpose, and has no last minibatch that a layer could not take
            warnings.filterwarnings("ignore", message="Last batch will have a small size")
            # and networks that do not learn stay in evaluation mode
            warnings.filterwarnings("ignore", message="Found .* in eval mode")
            warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
            warnings.filterwarnings("ignore", message=".*does not have many workers")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class PhasedTrainingMixin(UnsupervisedTrainingMixin):
    """``train`` for models whose fit has several phases.

    A model lists its phases in ``_phases(pretrain_epochs, max_epochs, n_train, batch_size)`` and finishes a fit in
    ``_end_training(train_indices)``.
    """

    _data_splitter_cls = CountsSplitter
    _training_plan_cls = ClusteringPlan
    history_: dict[str, pd.DataFrame] | None
    trainer: Any

    def train(
        self,
        max_epochs: int | None = None,
        pretrain_epochs: int | None = None,
        *,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        batch_size: int = 128,
        early_stopping: bool = False,
        plan_kwargs: dict | None = None,
        logger: Logger | Sequence[Logger] | bool | None = None,
        callbacks: Sequence[Callback] = (),
        enable_progress_bar: bool = True,
        gradient_clip_val: float = 50.0,
        **trainer_kwargs,
    ) -> None:
        """Train the model, phase after phase.

        Ctrl-C stops the current phase and keeps what was learnt: clusters are then set from the state reached.

        Parameters
        ----------
        max_epochs
            Length of the last, clustering phase. By default it follows from the number of cells. 0 skips it: labels
            are then those that the phase would start from (and those of the reference in a mapped query).
        pretrain_epochs
            Length of what comes before. By default it follows from the number of cells. 0 skips it.
        accelerator, devices
            As in :class:`lightning.pytorch.Trainer`. ``strategy``, ``precision`` and all other arguments of
            :class:`scvi.train.Trainer` can be given too.
        train_size
            Share of the cells to train on. All by default, 0.9 with ``early_stopping``.
        validation_size
            Share of the cells to validate on; the rest by default.
        batch_size
            Cells per step (on each device).
        early_stopping
            Stop a phase when the ELBO on held-out cells does not improve any more.
        plan_kwargs
            Arguments of :class:`~scdeepclust.train.ClusteringPlan` for all phases, for example
            ``{"lr": 5e-4}``.
        logger
            One or more Lightning loggers; every phase reports to them, and ``model.history`` is kept in any case.
        callbacks
            Lightning callbacks of the last phase.
        enable_progress_bar
            Show one bar a phase.
        gradient_clip_val
            Largest norm of the gradient of one step.
        **trainer_kwargs
            Further arguments of :class:`scvi.train.Trainer`.

        Raises
        ------
        ValueError
            If an argument is out of range, or the model was loaded without data.
        scdeepclust.train.NonFiniteLossError
            When the loss is not finite; the model keeps its last good state.
        """
        check_epochs(max_epochs=max_epochs, pretrain_epochs=pretrain_epochs)
        if self.adata is None or "datamodule" in trainer_kwargs:
            raise ValueError(
                "`train` needs the cells themselves, but this model "
                + ("has no `adata`." if self.adata is None else "was given a `datamodule`.")
                + " Load or make it with `adata`; data larger than memory can stay in a file opened with "
                "`anndata.read_h5ad(path, backed='r')`."
            )
        if train_size is None:
            train_size = 0.9 if early_stopping else 1.0
        seed = settings.seed if settings.seed is not None else 0
        split = split_cells(self.adata.n_obs, train_size, validation_size, seed)
        if settings.seed is not None:
            # the result must not depend on what was drawn before this call
            torch.manual_seed(settings.seed)
        self.train_indices, self.validation_indices, self.test_indices = split
        self._begin_training()
        phases = self._phases(pretrain_epochs, max_epochs, len(split[0]), batch_size)
        common = {
            "accelerator": accelerator,
            "devices": devices,
            "batch_size": batch_size,
            "early_stopping": early_stopping,
            "gradient_clip_val": gradient_clip_val,
            "enable_progress_bar": enable_progress_bar,
            "logger": self._loggers(logger),
            **trainer_kwargs,
        }
        history: dict[str, pd.DataFrame] = {}
        self.phases_ = []
        interrupted = False
        for phase in phases:
            last = phase is phases[-1]
            epochs = 0 if interrupted else phase.epochs
            if not epochs and not last:
                continue
            if phase.begin is not None:
                phase.begin(split[0])
            callbacks_here = [*phase.callbacks, *(callbacks if last else ())]
            plan_here = phase.plan_kwargs | (plan_kwargs or {}) | {"phase": phase.name, "last": last}
            frames, interrupted_here = self._fit_phase(epochs, phase.name, split, plan_here, callbacks_here, common)
            interrupted |= interrupted_here
            history |= frames
            self.history_ = history
            self.phases_.append((phase.name, max((len(frame) for frame in frames.values()), default=0)))
        self._end_training(split[0])
        self.interrupted_ = interrupted  # for who goes on with the model, such as the command line

    def _fit_phase(self, epochs, name, split, plan_kwargs, callbacks, common) -> tuple[dict[str, pd.DataFrame], bool]:
        """One Lightning fit; returns its history and whether the user stopped it."""
        interrupt = GracefulInterrupt()
        self.is_trained_ = False  # each fit of scvi-tools then starts a history of its own
        self.history_ = None
        callbacks = [*callbacks, interrupt]
        if common["enable_progress_bar"]:
            callbacks.append(PhaseProgressBar(name))
        self.module.train()
        with quiet_lightning(), interrupt:
            super().train(
                max_epochs=epochs,
                datasplitter_kwargs={"external_indexing": [rows.copy() for rows in split]},
                plan_kwargs=plan_kwargs,
                callbacks=callbacks,
                simple_progress_bar=False,
                **common,
            )
        plan = self.trainer.lightning_module
        # with strategies that fork, the plan that was trained lives in another process
        history = dict(plan.history) or dict(self.history_ or {})
        self.trainer = None  # it would keep the data loaders and the callbacks alive
        return history, interrupt.interrupted

    @staticmethod
    def _loggers(user: Logger | Sequence[Logger] | bool | None) -> list[Logger] | bool:
        """``model.history`` needs no logger, so by default there is none."""
        if user is None or user is False:
            return False
        if user is True:
            return [CSVLogger(settings.logging_dir)]
        return list(user) if isinstance(user, Sequence) else [user]

    def _begin_training(self) -> None:
        """Set what the module needs to know of the data; called once, before the phases."""

    @abstractmethod
    def _phases(
        self, pretrain_epochs: int | None, max_epochs: int | None, n_train: int, batch_size: int
    ) -> list[Phase]:
        """The phases of one fit, in order; lengths that are None follow from the number of training cells."""

    def _end_training(self, train_indices: np.ndarray) -> None:
        """Set what follows from the fit; called once, after the phases."""


def check_epochs(**epochs: int | None) -> None:
    """Raise a ValueError unless each argument is None or a whole number of at least 0."""
    for name, value in epochs.items():
        if value is not None and (value < 0 or int(value) != value):
            raise ValueError(f"`{name}` must be a whole number of at least 0, found {value!r}.")
