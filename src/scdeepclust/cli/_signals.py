"""Ctrl-C and SIGTERM: one line, and the exit code that shells and schedulers know them by."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from ._app import messages

if TYPE_CHECKING:
    from scdeepclust.model._base import ClusteringModel

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM


_KEPT = "no file was written but those named above"


class Terminated(SystemExit):
    """SIGTERM has come. Lightning, which has handlers of its own while it trains, calls ours too."""


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


@contextmanager
def no_exit_of_lightning() -> Iterator[None]:
    """A fit that is interrupted twice ends in Lightning's exit, which says nothing."""
    try:
        yield
    except Terminated:
        raise
    except SystemExit as error:
        raise KeyboardInterrupt from error


def end_if_cut_short(model: ClusteringModel) -> None:
    """Say that training was interrupted, and end with the code for it: the results are those of what was learnt."""
    if not getattr(model, "interrupted_", False):
        return
    done = ", ".join(f"{n} epochs of {phase}" for phase, n in model.phases_)
    messages.print(f"Interrupted: training was cut short after {done}; what was learnt until then was written.")
    raise typer.Exit(INTERRUPTED)
