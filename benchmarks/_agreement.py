"""How far runs agree with each other, and what a choice among settings is worth on sets that had no part in it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

# A cell is counted as unstable if it keeps less than this share of its company, on average over pairs of runs.
STABLE = 0.9

N_SPLITS = 20

# Differences up to this are a draw.
MARGIN = 0.01


def kept_company(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Element-centric similarity of each cell (n,) in two clusterings (Gates et al., Scientific Reports 2019).

    For clusters without overlap the affinities by personalised random walks come down to the number of cells that the
    clusters of a cell share, over the size of the larger one.
    """
    a, b = (np.unique(labels, return_inverse=True)[1] for labels in (a, b))
    shared = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(shared, (a, b), 1)
    return shared[a, b] / np.maximum(shared.sum(axis=1)[a], shared.sum(axis=0)[b])


def agreement(runs: Sequence[np.ndarray]) -> dict[str, float]:
    """Mean and least adjusted Rand index of pairs of runs, and the share of cells that are unstable."""
    from sklearn.metrics import adjusted_rand_score

    pairs = list(combinations(runs, 2))
    ari = [adjusted_rand_score(a, b) for a, b in pairs]
    consistency = np.mean([kept_company(a, b) for a, b in pairs], axis=0)
    return {
        "pairwise_ari": float(np.mean(ari)),
        "least_ari": float(np.min(ari)),
        "unstable": float((consistency < STABLE).mean()),
    }


def splits(n_sets: int) -> list[np.ndarray]:
    """The halves (n_sets,), bool, on which settings are chosen: always the same for a number of sets."""
    rng = np.random.default_rng(0)
    half = np.arange(n_sets) < n_sets // 2
    return [rng.permutation(half) for _ in range(N_SPLITS)]


def left_out(scores: pd.DataFrame) -> tuple[float, float]:
    """Mean score on the sets left out when the best column is chosen on a random half of the rows, and its spread.

    Parameters
    ----------
    scores
        Sets (rows) x settings (columns), without gaps.
    """
    values = scores.to_numpy()
    judged = [values[~half, values[half].mean(axis=0).argmax()].mean() for half in splits(len(values))]
    return float(np.mean(judged)), float(np.std(judged, ddof=1))


def gained_and_lost(scores: pd.Series, reference: pd.Series) -> tuple[int, int]:
    """Number of sets with a score above, and below, that of a reference by more than the margin."""
    difference = (scores - reference).dropna()
    return int((difference > MARGIN).sum()), int((difference < -MARGIN).sum())
