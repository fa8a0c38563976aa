"""Callbacks used by the phases of a fit."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn


class PhaseProgressBar(ProgressBar):
    """One bar a phase, advancing by epochs, with the name of the phase and the current loss.

    Parameters
    ----------
    phase
        Name shown in front of the bar.
    """

    def __init__(self, phase: str):
        super().__init__()
        self.phase = phase
        self._enabled = True
        self._progress: Any = None

    def disable(self) -> None:
        """Show nothing (called on all processes but the first)."""
        self._enabled = False

    def enable(self) -> None:
        """Show the bar."""
        self._enabled = True

    def __getstate__(self):
        return self.__dict__ | {"_progress": None}  # a bar on a screen does not pickle

    def on_train_start(self, trainer, pl_module):
        """Open the bar."""
        if not self._enabled or trainer.max_epochs == 0:
            return
        self._progress = Progress(
            TextColumn("{task.description:>10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs, loss {task.fields[loss]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        self._progress.start()
        self._progress.add_task(self.phase, total=trainer.max_epochs, loss="...")

    def on_train_epoch_end(self, trainer, pl_module):
        """Advance by one epoch."""
        if self._progress is not None:
            loss = trainer.callback_metrics.get("loss")
            shown = "..." if loss is None else f"{loss:.4g}"
            self._progress.update(self._progress.task_ids[0], advance=1, loss=shown)

    def on_train_end(self, trainer, pl_module):
        """Close the bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def on_exception(self, trainer, pl_module, exception):
        """Close the bar when training fails."""
        self.on_train_end(trainer, pl_module)


class GracefulInterrupt(Callback):
    """Turn the first Ctrl-C, and SIGTERM, into "stop after this step", so that what was learnt is kept.

    Used both as a context around a fit and as a callback of its phases. A second Ctrl-C interrupts at once, as without
    this callback, and so does the first one between two phases. Signals can only be caught in the main thread;
    elsewhere this does nothing. A SIGTERM that the user handles or ignores is left to the user.
    """

    def __init__(self):
        self.interrupted = self.terminated = False
        self._previous: dict[int, Any] = {}
        self._trainer: Trainer | None = None

    def __enter__(self) -> GracefulInterrupt:
        # outside of Lightning, which notes the handlers at the start of a fit and puts those back at its end
        if threading.current_thread() is threading.main_thread():
            self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._stop)
            if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._stop)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and (self.interrupted or self._trainer is None):
            if callable(self._previous[number]):
                self._previous[number](number, frame)
            raise KeyboardInterrupt
        self.interrupted = True
        self.terminated |= number == signal.SIGTERM
        if self._trainer is not None:
            self._trainer.should_stop = True
            self._trainer.lightning_module.interrupted = True  # type: ignore[assignment]

    def on_fit_start(self, trainer, pl_module):
        """Remember what to stop."""
        self._trainer = trainer

    def on_train_start(self, trainer, pl_module):
        """Take SIGTERM back from Lightning, which would raise at the end of the epoch."""
        if signal.SIGTERM in self._previous:
            signal.signal(signal.SIGTERM, self._stop)
        if self.interrupted:  # while the phase was set up
            trainer.should_stop = pl_module.interrupted = True

    def on_fit_end(self, trainer, pl_module):
        """Forget the trainer."""
        self._trainer = None

    def on_exception(self, trainer, pl_module, exception):
        """Forget the trainer."""
        self._trainer = None


class LearnOnly(Callback):
    """Let some entries of some parameters learn, and keep everything else bit for bit.

    Parameters
    ----------
    module
        The module that learns.
    masks
        True where an entry may learn, by the name of the parameter.
    """

    def __init__(self, module: nn.Module, masks: dict[str, Tensor]):
        self.module = module
        self.masks = masks
        self._kept: list[tuple[nn.Parameter, Tensor, Tensor]] = []

    def setup(self, trainer, pl_module, stage):
        """Choose what the optimiser gets."""
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(name in self.masks)

    def on_train_start(self, trainer, pl_module):
        """Note what has to stay."""
        self._kept = [
            (parameter, self.masks[name].to(parameter.device), parameter.detach().clone())
            for name, parameter in self.module.named_parameters()
            if name in self.masks
        ]

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        """Before gradients are clipped: the norm is that of what learns."""
        for parameter, mask, _ in self._kept:
            if parameter.grad is not None:
                parameter.grad.mul_(mask)

    @torch.no_grad()
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        """Weight decay and the like move entries without a gradient, too."""
        for parameter, mask, kept in self._kept:
            parameter.copy_(torch.where(mask, parameter, kept))


class RefreshTargets(Callback):
    """Renew the targets of a self-training phase at the start of each epoch, and stop when labels settle.

    Parameters
    ----------
    refresh
        Renews the targets and returns the current label of each training cell.
    tol
        Stop when a smaller share of the labels changed since the last epoch.
    """

    def __init__(self, refresh: Callable[[], np.ndarray], tol: float):
        self.refresh = refresh
        self.tol = tol
        self._labels: np.ndarray | None = None

    def state_dict(self) -> dict[str, Any]:
        """The labels of the last epoch."""
        return {"labels": self._labels}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the labels of the last epoch."""
        self._labels = state_dict["labels"]

    def on_train_epoch_start(self, trainer, pl_module):
        """Renew the targets; log the share of labels that changed."""
        labels = self.refresh()
        pl_module.train()
        change = float("nan") if self._labels is None else float((labels != self._labels).mean())
        if trainer.world_size > 1:  # all stop, or none: rounding may differ between processes
            change = float(trainer.strategy.reduce(torch.tensor(change, device=pl_module.device), reduce_op="mean"))
        pl_module.record({"label_change": change})
        trainer.should_stop |= change < self.tol
        self._labels = labels
