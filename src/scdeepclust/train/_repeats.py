"""How likely a cell is to be in its cluster again."""

from __future__ import annotations

import numpy as np

# Weights, in the log-odds of a repeat, of the log-odds of the assignment probability and of those of the share of the
# restarts that put a cell into its cluster again.
OF_PROBABILITY = OF_SHARE = 0.3

# A probability closer to 0 or 1 says no more than this; a share of a few restarts says less.
CLOSEST, CLOSEST_SHARE = 1e-3, 0.03


def matched(labels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Names of the clusters of other labels among those of the first ones, by the cells that they share.

    Parameters
    ----------
    labels, others
        Codes from 0 of the same cells, each (n,); below 0 is no label.

    Returns
    -------
    Cluster of ``labels`` that each cluster of ``others`` is, one to one, (number of clusters of ``others``,); -1 where
    there is none left.
    """
    from scipy.optimize import linear_sum_assignment

    known = (labels >= 0) & (others >= 0)
    shared = np.zeros((labels.max(initial=0) + 1, others.max(initial=0) + 1), dtype=np.int64)
    np.add.at(shared, (labels[known], others[known]), 1)
    partner = np.full(shared.shape[1], -1)
    ours, theirs = linear_sum_assignment(shared, maximize=True)
    partner[theirs] = ours
    return partner


def repeat_probability(probability: np.ndarray, share: np.ndarray, intercept: float) -> np.ndarray:
    """Probability that an independent repeat puts a cell into its cluster, (n,).

    Parameters
    ----------
    probability
        Assignment probability of the cluster of each cell, (n,).
    share
        Share of the restarts that put it there again, (n,).
    intercept
        Log-odds of a cell of which both are one half.
    """
    log_odds = OF_PROBABILITY * _log_odds(probability, CLOSEST) + OF_SHARE * _log_odds(share, CLOSEST_SHARE)
    return 1 / (1 + np.exp(-intercept - log_odds))


def repeat_intercept(probability: np.ndarray, share: np.ndarray, rate: float) -> float:
    """Intercept with which as many cells are expected to repeat as ``rate`` says."""
    from scipy.optimize import brentq

    rate = float(np.clip(rate, CLOSEST, 1 - CLOSEST))
    return float(brentq(lambda x: repeat_probability(probability, share, x).mean() - rate, -30, 30))


def _log_odds(p: np.ndarray, closest: float) -> np.ndarray:
    p = np.clip(p, closest, 1 - closest)
    return np.log(p / (1 - p))
