"""The state of a whole fit in one file, so that a fit that was killed goes on where it was."""

from __future__ import annotations

import copy
import hashlib
import os
import pickle
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn

# Seconds between two writings inside a phase. What is written last is at most so old, or one epoch.
WRITE_EVERY = 120.0

FILE_NAME = "fit.pt"

UNREADABLE = (
    *(OSError, EOFError, KeyError, TypeError, AttributeError, ImportError, RuntimeError, pickle.UnpicklingError),
)


def describe(value: Any) -> str:
    """A short text that is the same for equal values in every process."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {describe(value[key])}" for key in sorted(value, key=str)) + "}"
    if isinstance(value, np.ndarray | Sequence) and not isinstance(value, str) and len(value) > 20:
        return f"{len(value)} values, {digest('|'.join(map(str, value)).encode())}"
    if callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    text = repr(value)
    return type(value).__qualname__ if " at 0x" in text else text


def digest(data: bytes) -> str:
    """The first 16 hexadecimal digits of a hash."""
    return hashlib.sha256(data).hexdigest()[:16]


class FitStore:
    """One file that holds the state of a fit.

    Parameters
    ----------
    folder
        Where the file is.
    identity
        What has to be the same for a fit to go on: ``{what: description}``.
    """

    def __init__(self, folder: str | os.PathLike, identity: dict[str, str]):
        self.path = Path(folder) / FILE_NAME
        self.identity = identity
        self.written = time.monotonic()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"`checkpoint_dir`: {str(folder)!r} cannot be made ({error}).") from None

    def read(self) -> dict[str, Any] | None:
        """The state in the file, or None if there is no file.

        Raises
        ------
        ValueError
            If it is no state, or that of another fit.
        """
        if not self.path.exists():
            return None
        try:
            there = None if torch.cuda.is_available() else "cpu"  # it may have been on a GPU
            state = torch.load(self.path, map_location=there, weights_only=False)
            held, found = state["identity"], state["found"]
        except UNREADABLE as error:
            raise ValueError(
                f"`checkpoint_dir`: {str(self.path)!r} cannot be read ({error}). Delete it to start anew."
            ) from None
        for name in dict.fromkeys([*self.identity, *held]):
            before, now = held.get(name, "nothing"), self.identity.get(name, "nothing")
            if now not in (before, found.get(name)):
                raise ValueError(
                    f"`checkpoint_dir`: {str(self.path.parent)!r} holds a fit with another {name}: {before}; "
                    f"now it is {now}. Give another directory, or call `train` as before to go on with that fit."
                )
        return state

    def write(self, state: dict[str, Any]) -> None:
        """Put a new state in the place of the old one, or warn and keep the old one. One of several processes does."""
        if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank():
            return
        buffer = BytesIO()
        torch.save(state | {"identity": self.identity}, buffer)
        part = self.path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.path)
        except OSError as error:
            part.unlink(missing_ok=True)
            warnings.warn(
                f"The state of the fit could not be written to {str(self.path)!r} ({error}). Training goes on; the "
                "state that was written before is kept.",
                stacklevel=2,
            )
        self.written = time.monotonic()


def random_states(loader: Any = None) -> dict[str, Any]:
    """The states of all random number generators of a fit."""
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),  # noqa: NPY002
        "random": random.getstate(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states | {"loader": {name: generator.get_state() for name, generator in _generators(loader)}}


def set_random_states(states: dict[str, Any], loader: Any = None) -> None:
    """Put all random number generators of a fit into a state."""
    torch.set_rng_state(states["torch"].cpu())
    np.random.set_state(states["numpy"])  # noqa: NPY002
    random.setstate(states["random"])
    if "cuda" in states and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
    for name, generator in _generators(loader):
        generator.set_state(states["loader"][name].cpu())


@contextmanager
def kept_random_states() -> Iterator[None]:
    """Leave the random number generators as they were."""
    states = random_states()
    try:
        yield
    finally:
        set_random_states(states)


def _generators(loader: Any) -> list[tuple[str, torch.Generator]]:
    """Generators of a loader's own, which draw the order of blocks of a file."""
    attributes = {} if loader is None else vars(loader)
    return [(name, value) for name, value in attributes.items() if isinstance(value, torch.Generator)]


class EpochState(Callback):
    """Take down the state of a phase before each epoch, and start a phase from such a state.

    It has to be the first callback: what others do before an epoch then comes after it, in a phase that goes on as in
    one that was never stopped.

    Parameters
    ----------
    store
        Where the state goes.
    module
        The module that learns.
    fit_state
        Makes the state of the fit around the phase, of a module and the state inside the phase.
    resumed
        The state to start from.
    """

    def __init__(
        self,
        store: FitStore,
        module: nn.Module,
        fit_state: Callable[[nn.Module, dict[str, Any]], dict[str, Any]],
        resumed: dict[str, Any] | None,
    ):
        self.store = store
        self.module = module
        self.fit_state = fit_state
        self._resumed = resumed
        self._pending: dict[str, Any] | None = None

    def setup(self, trainer, pl_module, stage):
        """Count epochs and steps from where the phase stood."""
        if self._resumed is None:
            return
        epochs, steps = trainer.fit_loop.epoch_progress, _optimizer_steps(trainer)
        for progress in (epochs.total, epochs.current):
            progress.ready = progress.started = progress.processed = progress.completed = self._resumed["epoch"]
        steps.ready = steps.completed = self._resumed["step"]

    def on_train_epoch_start(self, trainer, pl_module):
        """Before an epoch everything of the one before is done."""
        if self._resumed is not None:
            _resume(trainer, pl_module, self._resumed)
            self._resumed = None
        elif trainer.current_epoch > 0 and trainer.is_global_zero:
            weights = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
            self._pending = _epoch_state(trainer, pl_module) | {"weights": weights}
            if time.monotonic() - self.store.written >= WRITE_EVERY:
                self.flush()

    def flush(self) -> None:
        """Write the state that was taken down last, unless it is written already."""
        if self._pending is None:
            return
        inside, self._pending = self._pending, None
        then = copy.deepcopy(self.module)
        then.load_state_dict(inside.pop("weights"))
        self.store.write(self.fit_state(then, inside))


def _optimizer_steps(trainer: Trainer) -> Any:
    return trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total


def _epoch_state(trainer: Trainer, plan: Any) -> dict[str, Any]:
    return {
        "epoch": trainer.current_epoch,
        "step": trainer.global_step,
        "optimizers": copy.deepcopy([optimizer.state_dict() for optimizer in trainer.optimizers]),
        "schedulers": copy.deepcopy([config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]),
        "precision": copy.deepcopy(trainer.precision_plugin.state_dict()),
        "callbacks": copy.deepcopy([_callback_state(callback) for callback in _lasting(trainer)]),
        "plan": copy.deepcopy(plan.epoch_state()),
        "random": random_states(trainer.train_dataloader),
    }


def _resume(trainer: Trainer, plan: Any, state: dict[str, Any]) -> None:
    for optimizer, values in zip(trainer.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(values)
    for config, values in zip(trainer.lr_scheduler_configs, state["schedulers"], strict=True):
        config.scheduler.load_state_dict(values)
    trainer.precision_plugin.load_state_dict(state["precision"])
    for callback, (own, counter) in zip(_lasting(trainer), state["callbacks"], strict=True):
        callback.load_state_dict(own)
        if counter is not None:
            callback._current_step = counter
    plan.load_epoch_state(state["plan"])
    set_random_states(state["random"], trainer.train_dataloader)


def _lasting(trainer: Any) -> list[Any]:
    """Callbacks with a state, in their order."""
    return [
        callback for callback in trainer.callbacks if type(callback).load_state_dict is not Callback.load_state_dict
    ]


def _callback_state(callback: Any) -> tuple[dict[str, Any], int | None]:
    """State of a callback; scvi-tools' early stopping counts beside it."""
    return callback.state_dict(), getattr(callback, "_current_step", None)


@contextmanager
def undone_on_failure(model: Any) -> Iterator[None]:
    """Put a model back to what it was when what is done to it ends in an exception."""
    attributes = {
        name: copy.deepcopy(value) if isinstance(value, dict | list) and name != "registry_" else value
        for name, value in vars(model).items()
    }
    module = copy.deepcopy(model.module)
    try:
        yield
    except BaseException:
        vars(model).clear()
        vars(model).update(attributes)
        model.module.__dict__ = module.__dict__
        raise
