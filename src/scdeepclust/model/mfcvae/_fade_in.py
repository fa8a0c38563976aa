from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch.callbacks import Callback


class FadeIn(Callback):
    """Raise a weight from 0 to 1 over the first part of a phase.

    Parameters
    ----------
    set_weight
        Called with the weight before each step, and with 1 when the phase ends, however short it was.
    share
        Share of the steps of the phase after which the weight is 1.
    """

    def __init__(self, set_weight: Callable[[float], None], share: float):
        self.set_weight = set_weight
        self.share = share

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        """Set the weight of this step."""
        n_steps = self.share * trainer.max_epochs * trainer.num_training_batches
        self.set_weight(min(1.0, (trainer.global_step + 1) / max(n_steps, 1)))

    def on_train_end(self, trainer, pl_module):
        """Leave the weight at 1."""
        self.set_weight(1.0)
