from __future__ import annotations

import numpy as np
import pytest

from scdeepclust.train import matched, repeat_intercept, repeat_probability


def test_clusters_are_matched_by_the_cells_that_they_share():
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    np.testing.assert_array_equal(matched(labels, np.array([2, 2, 2, 0, 0, 1, 1, 1])), [1, 2, 0])
    # four clusters for three: one finds no partner, and a label below 0 is none
    others = np.array([0, 0, 3, 1, 1, 2, 2, -1])
    np.testing.assert_array_equal(matched(labels, others), [0, 1, 2, -1])
    np.testing.assert_array_equal(matched(others[:7], labels[:7]), [0, 1, 2])


def test_as_many_cells_are_expected_to_repeat_as_the_rate_says():
    rng = np.random.default_rng(0)
    probability, share = rng.uniform(0.3, 1, 500), rng.integers(0, 9, 500) / 8
    for rate in (0.2, 0.7, 0.97):
        intercept = repeat_intercept(probability, share, rate)
        assert repeat_probability(probability, share, intercept).mean() == pytest.approx(rate, abs=1e-6)
    sure = repeat_intercept(np.ones(10), np.ones(10), 1.0)
    assert 0.99 < repeat_probability(np.ones(10), np.ones(10), sure)[0] < 1


def test_it_rises_with_what_speaks_for_a_repeat_and_is_the_logistic_of_a_sum():
    def log_odds(p):
        return np.log(p / (1 - p))

    found = repeat_probability(np.array([0.9]), np.array([0.75]), 0.2)[0]
    assert log_odds(found) == pytest.approx(0.2 + 0.3 * log_odds(0.9) + 0.3 * log_odds(0.75))
    shares = repeat_probability(np.full(9, 0.9), np.arange(9) / 8, 0.0)
    assert (np.diff(shares) > 0).all()
    assert (np.diff(repeat_probability(np.linspace(0.3, 0.99, 9), np.full(9, 0.5), 0.0)) > 0).all()
