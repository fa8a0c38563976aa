"""Ctrl-C and SIGTERM: one line, and the exit code that shells and schedulers know them by."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from ._app import messages

if TYPE_CHECKING:
    from scdeepclust.model._base import ClusteringModel

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM


_KEPT = "no file was written but those named above"


class Terminated(SystemExit):
    """SIGTERM has come."""


def _terminate(*_) -> None:
    raise Terminated(TERMINATED)


@contextmanager
def signals_end_in_a_line() -> Iterator[None]:
    """Say what a signal has left behind, and end with its code."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if in_main_thread else None
    try:
        yield
    except KeyboardInterrupt as error:
        messages.print(f"Interrupted: {_KEPT}.")
        raise typer.Exit(INTERRUPTED) from error
    except Terminated as error:
        messages.print(f"Terminated: {_KEPT}.")
        raise typer.Exit(TERMINATED) from error
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)


def train_until_signal(train: Callable[[], None], model: ClusteringModel) -> int:
    """Train; 0, or the exit code for a signal that cut it short and left a result.

    SIGTERM is left to the training, which stops after the step where it knows how, and keeps what was learnt.
    """
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is _terminate
    if ours:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        train()
    except SystemExit as stop:
        if stop.code not in (None, TERMINATED):  # Lightning's, for a second Ctrl-C
            raise KeyboardInterrupt from stop
        if not model.is_trained_:
            raise Terminated(TERMINATED) from stop
        return TERMINATED
    finally:
        if ours:
            signal.signal(signal.SIGTERM, _terminate)
    return INTERRUPTED if getattr(model, "interrupted_", False) else 0


def end_if_cut_short(model: ClusteringModel, code: int) -> None:
    """Say that training was cut short, and end with the code for it: the results are those of what was learnt."""
    if code:
        done = ", ".join(f"{n} epochs of {phase}" for phase, n in model.phases_)
        word = "Terminated" if code == TERMINATED else "Interrupted"
        messages.print(f"{word}: training was cut short after {done}; what was learnt until then was written.")
        raise typer.Exit(code)
