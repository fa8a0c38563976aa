"""What a user gives to ``train``: names checked, configurations unfolded, callbacks shared out to phases."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from numbers import Real
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger
from scvi import settings
from scvi.dataloaders import AnnDataLoader, DataSplitter
from scvi.train import SaveCheckpoint, ScibCallback, Trainer
from torch.utils.data import DataLoader

from ._plan import ClusteringPlan


def _names(*functions: Any) -> set[str]:
    return {name for function in functions for name in signature(function).parameters} - {"self", "kwargs"}


PLAN_NAMES = _names(ClusteringPlan.__init__) - {"module", "phase", "last"}

# Not those that have no effect here (the history is kept on the model, and a bar moves by epochs), nor those that are
# arguments of `train` itself.
TRAINER_NAMES = _names(Trainer.__init__, pl.Trainer.__init__) - {
    *("log_save_dir", "progress_bar_refresh_rate", "max_epochs", "callbacks", "logger"),
}

# What `train` gives to them itself is not among them.
SPLITTER_NAMES = _names(DataSplitter.__init__, AnnDataLoader.__init__, DataLoader.__init__) - {
    *("adata_manager", "train_size", "validation_size", "shuffle_set_split", "batch_size", "load_sparse_tensor"),
    *("dataset", "indices", "shuffle", "sampler", "batch_sampler", "collate_fn", "data_and_attributes"),
    *("data_loader_kwargs", "distributed_sampler", "iter_ndarray"),
}


def check_names(argument: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise a ValueError that lists what is known unless all names are."""
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(
            f"{argument} does not know {', '.join(map(repr, unknown))}. It knows {', '.join(sorted(known))}."
        )


def check_lengths(batch_size: int, **epochs: int | None) -> None:
    """Raise a ValueError unless the batch size is a whole number above 0 and each other one None or at least 0."""
    for name, value in {"batch_size": batch_size, **epochs}.items():
        least = int(name == "batch_size")
        if value is None and not least:
            continue
        if not isinstance(value, Real) or value < least or int(value) != value:
            raise ValueError(f"`{name}` must be a whole number of at least {least}, found {value!r}.")


def unfolded(config: Any) -> dict[str, Any]:
    """What a configuration of scvi-tools asks for: of an object, what differs from the defaults there."""
    if config is None or isinstance(config, Mapping):
        return dict(config or {})
    defaults = type(config)().to_kwargs()
    missing = object()
    return {name: value for name, value in config.to_kwargs().items() if defaults.get(name, missing) != value}


@dataclass
class FitArguments:
    """Arguments of one call of ``train``, ready for the Lightning fit of each phase.

    Parameters
    ----------
    trainer
        For the ``train`` of scvi-tools, all phases alike.
    plan
        For :class:`ClusteringPlan`.
    splitter
        For the splitter of the data and its loaders.
    callbacks
        Of the user.
    has_bar
        Whether each phase shows a bar of ours.
    """

    trainer: dict[str, Any]
    plan: dict[str, Any]
    splitter: dict[str, Any]
    callbacks: list[Callback]
    has_bar: bool

    @property
    def batch_size(self) -> int:
        """Cells per step."""
        return self.trainer["batch_size"]

    @classmethod
    def of_call(
        cls,
        given: dict[str, Any],
        *,
        plan: dict[str, Any],
        splitter: dict[str, Any] | None,
        logger: Logger | Sequence[Logger] | bool | None,
        callbacks: Sequence[Callback] | None,
    ) -> FitArguments:
        """Check all names, and resolve what depends on several arguments."""
        check_names("`train`", given, TRAINER_NAMES | {"batch_size", "load_sparse_tensor"})
        check_names("`plan_kwargs`", plan, PLAN_NAMES)
        check_names("`datasplitter_kwargs`", splitter or {}, SPLITTER_NAMES)
        if plan.get("optimizer", "Adam") not in ("Adam", "AdamW", "Custom"):
            raise ValueError(
                f"`plan_kwargs`: optimizer must be 'Adam', 'AdamW' or 'Custom', found {plan['optimizer']!r}."
            )
        if plan.get("optimizer") == "Custom" and plan.get("optimizer_creator") is None:
            raise ValueError("`plan_kwargs`: optimizer='Custom' needs an optimizer_creator.")
        trainer = given | {"simple_progress_bar": False, "logger": _loggers(logger, given, plan, callbacks or ())}
        has_bar = trainer.setdefault("enable_progress_bar", True) and given.get("simple_progress_bar", True)
        arguments = cls(trainer, plan, dict(splitter or {}), list(callbacks or ()), has_bar)
        if arguments.asks_for_validation():
            trainer.setdefault("check_val_every_n_epoch", 1)
        return arguments

    def asks_for_validation(self) -> str | None:
        """What needs held-out cells, as the user typed it."""
        trainer = self.trainer
        if trainer.get("early_stopping"):
            return "`early_stopping`"
        for name in ("enable_checkpointing", "learning_rate_monitor"):  # scvi-tools validates with them
            if trainer.get(name):
                return f"`{name}`"
        if self.plan.get("reduce_lr_on_plateau"):
            return "`reduce_lr_on_plateau`"
        for callback in self.callbacks:
            monitor = getattr(callback, "monitor", None)
            if "valid" in str(monitor) or isinstance(callback, SaveCheckpoint):
                return f"the callback {type(callback).__name__}(monitor={monitor!r})"
        return "`check_val_every_n_epoch`" if trainer.get("check_val_every_n_epoch") else None

    def callbacks_of(self, phase: str, last: bool) -> list[Callback]:
        """The user's callbacks for a phase.

        What follows a monitored value starts anew in each phase, because the values of two phases are no rivals:
        earlier phases get copies. Callbacks of a parameter search report once, in the last phase, and come first.
        """
        for callback in self.callbacks:
            # Lightning looks at such values when it validates, unless told otherwise
            if isinstance(callback, EarlyStopping) and "valid" not in callback.monitor:
                callback._check_on_train_epoch_end = True
        if last:
            return sorted(self.callbacks, key=lambda callback: not _belongs_to_a_search(callback))
        return [_copy_for(callback, phase) for callback in self.callbacks if not _belongs_to_a_search(callback)]


def _belongs_to_a_search(callback: Callback) -> bool:
    if isinstance(callback, ScibCallback):
        return True
    return any(cls.__module__.split(".")[0] == "ray" for cls in type(callback).__mro__)


def _copy_for(callback: Callback, phase: str) -> Callback:
    if not isinstance(callback, EarlyStopping | ModelCheckpoint):
        return callback
    callback = copy.deepcopy(callback)
    if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
        callback.dirpath = os.path.join(callback.dirpath, phase)
    return callback


def _loggers(
    user: Logger | Sequence[Logger] | bool | None, given: dict, plan: dict, callbacks: Sequence[Callback]
) -> list[Logger] | bool | None:
    """``model.history`` needs no logger, so by default there is none, unless a callback asks for one."""
    if user is True:
        return [CSVLogger(settings.logging_dir)]
    if user is not None and user is not False:
        return list(user) if isinstance(user, Sequence) else [user]
    watched = given.get("learning_rate_monitor") or plan.get("reduce_lr_on_plateau")
    # None is the logger of scvi-tools, which writes nothing to disk
    return None if watched or any(isinstance(c, LearningRateMonitor) for c in callbacks) else False
