"""What the benchmarks count, against restatements."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from _agreement import agreement, gained_and_lost, kept_company, left_out, splits

sys.path.pop(0)


def walked(labels: np.ndarray, alpha: float) -> np.ndarray:
    """Affinities (n, n) of a clustering without overlap: where a walk that starts again at a cell spends its time."""
    same = (labels[:, None] == labels).astype(float)
    return alpha * same / same.sum(axis=1, keepdims=True) + (1 - alpha) * np.eye(len(labels))


@pytest.mark.parametrize("alpha", [0.5, 0.9])
def test_kept_company_is_element_centric_similarity(alpha):
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, 60), rng.integers(0, 3, 60)
    difference = np.abs(walked(a, alpha) - walked(b, alpha)).sum(axis=1)
    np.testing.assert_allclose(kept_company(a, b), 1 - difference / (2 * alpha))


def test_agreement_of_seeds():
    same = agreement([np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0])])
    assert same == {"pairwise_ari": 1.0, "least_ari": 1.0, "unstable": 0.0}
    a, b = np.repeat([0, 1], 10), np.repeat([0, 1, 2], [10, 5, 5])
    found = agreement([a, a, b])
    assert found["least_ari"] < found["pairwise_ari"] < 1
    assert found["unstable"] == 0.5  # the cells of the cluster that one run has split


def test_what_is_left_out_had_no_part_in_the_choice():
    halves = splits(10)
    assert len(halves) == 20
    assert all(half.sum() == 5 for half in halves)
    rng = np.random.default_rng(1)
    noise = pd.DataFrame(rng.normal(size=(10, 30)))
    assert noise.mean().max() > 0.3  # the best of many settings that are all the same
    assert abs(left_out(noise)[0]) < 0.3
    better = noise.copy()
    better[7] += 10
    assert left_out(better)[0] == pytest.approx(np.mean([better[7][~half].mean() for half in halves]))


def test_sets_gained_and_lost():
    scores = pd.Series({"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5})
    reference = pd.Series({"a": 0.4, "b": 0.495, "c": 0.6, "e": 0.1})
    assert gained_and_lost(scores, reference) == (1, 1)
