"""Callbacks of the phases."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scdeepclust.train import RefreshTargets


def run(callback, world_size=1, others=()):
    """One epoch, where other processes saw these changes; returns what was recorded, and whether the phase stops."""
    recorded = {}

    def reduce(tensor, reduce_op):
        assert reduce_op == "mean"
        return torch.stack([tensor, *(torch.tensor(c) for c in others)]).mean()

    trainer = SimpleNamespace(world_size=world_size, should_stop=False, strategy=SimpleNamespace(reduce=reduce))
    plan = SimpleNamespace(train=lambda: None, record=recorded.update, device="cpu")
    callback.on_train_epoch_start(trainer, plan)
    return recorded["label_change"], trainer.should_stop


def test_labels_that_settle_end_the_phase():
    labels = iter([np.zeros(10), np.r_[np.ones(1), np.zeros(9)], np.r_[np.ones(1), np.zeros(9)]])
    callback = RefreshTargets(lambda: next(labels), tol=0.05)
    assert np.isnan(run(callback)[0])
    assert run(callback) == (pytest.approx(0.1), False)
    assert run(callback) == (0.0, True)


@pytest.mark.parametrize(("others", "stops"), [([0.0], True), ([0.09], False), ([0.2, 0.0], False)])
def test_processes_stop_together_on_the_change_of_all(others, stops):
    callback = RefreshTargets(lambda: np.zeros(10), tol=0.04)
    run(callback)
    change, stopped = run(callback, world_size=1 + len(others), others=others)
    assert change == pytest.approx(np.mean([0, *others]))
    assert stopped == stops
