"""Progress where there is no terminal: in a log file a bar is noise, and silence looks like a failure."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ._app import messages

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback


def a_line_every(seconds: float = 10.0) -> Callback:
    """Callback that prints phase, epoch and loss every so many seconds."""
    from lightning.pytorch.callbacks import Callback

    class Lines(Callback):
        last = time.monotonic()

        def on_train_batch_end(self, trainer, pl_module, *_):
            if not trainer.is_global_zero or time.monotonic() < self.last + seconds:
                return
            self.last = time.monotonic()
            loss = trainer.callback_metrics.get("loss")  # of the epoch before
            messages.print(
                f"{pl_module.phase}: epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"
                + ("" if loss is None else f", loss {loss:.4g}")
            )

    return Lines()
