from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.stats import kstest

from scdeepclust.train import cluster_profiles, misfit, novelty
from scdeepclust.train._novelty import MAX_EXCESS, N_EXCESS, PRIOR_COUNTS


def draw(rng, shares: np.ndarray, n: int, theta: float = 2.0) -> csr_matrix:
    """Negative binomial cells of one kind, of different depth."""
    totals = 800 * np.exp(rng.normal(0, 0.4, n))
    return csr_matrix(rng.poisson(rng.gamma(theta, totals[:, None] * shares / theta)).astype(np.float32))


@pytest.fixture
def kinds():
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(300, 0.5), size=3)
    return rng, shares


def by_hand(counts: np.ndarray, others: np.ndarray, everywhere: np.ndarray, overdispersion: np.ndarray) -> float:
    """The same number for one cell, gene by gene, from the sums of the other cells."""
    average = (everywhere + 0.5) / (everywhere.sum() + 0.5 * len(everywhere))
    squares = []
    for gene, x in enumerate(counts):
        mean = counts.sum() * (others[gene] + PRIOR_COUNTS * average[gene]) / (others.sum() + PRIOR_COUNTS)
        excess = (x - mean) / np.sqrt(mean + overdispersion[gene] * mean**2)
        squares.append(min(max(excess, 0), MAX_EXCESS) ** 2 if x > 0 else 0.0)
    return sum(sorted(squares)[-N_EXCESS:]) / N_EXCESS


def test_misfit_is_what_its_formula_says_with_and_without_the_cell_itself(kinds):
    rng, shares = kinds
    counts = csr_matrix(np.vstack([draw(rng, shares[k], 40).toarray() for k in (0, 1)]))
    labels = np.repeat([0, 1], 40)
    profiles = cluster_profiles(counts, labels, 2)
    dense = counts.toarray()
    own = misfit(profiles, counts, labels, own=True)
    for cell in (0, 57):
        others = (labels == labels[cell]) & (np.arange(80) != cell)
        everywhere = dense.sum(axis=0) - dense[cell]
        expected = by_hand(dense[cell], dense[others].sum(axis=0), everywhere, profiles.overdispersion)
        assert own[cell] == pytest.approx(expected, rel=1e-5)
    new = draw(rng, shares[1], 1)
    expected = by_hand(new.toarray()[0], dense[40:].sum(axis=0), dense.sum(axis=0), profiles.overdispersion)
    assert misfit(profiles, new, np.array([1]), own=False)[0] == pytest.approx(expected, rel=1e-5)


def test_overdispersion_is_that_of_the_counts(kinds):
    rng, shares = kinds
    counts = csr_matrix(np.vstack([draw(rng, shares[k], 1500).toarray() for k in (0, 1)]))
    profiles = cluster_profiles(counts, np.repeat([0, 1], 1500), 2)
    much = counts.mean(axis=0).A1 > 1
    assert np.median(profiles.overdispersion[much]) == pytest.approx(0.5, abs=0.1)  # 1 / theta


def test_new_cells_of_known_kinds_are_as_novel_as_they_should_and_of_a_new_kind_are_novel(kinds):
    rng, shares = kinds
    labels = np.repeat([0, 1], 600)
    counts = csr_matrix(np.vstack([draw(rng, shares[k], 600).toarray() for k in (0, 1)]))
    profiles = cluster_profiles(counts, labels, 2)
    known = csr_matrix(np.vstack([draw(rng, shares[k], 500).toarray() for k in (0, 1)]))
    novel = novelty(profiles, misfit(profiles, known, np.repeat([0, 1], 500), own=False), known.sum(axis=1).A1)
    assert kstest(novel, "uniform").pvalue > 0.001
    for level in (0.05, 0.1):
        assert (novel > 1 - level).mean() == pytest.approx(level, abs=0.02)
    other = draw(rng, shares[2], 300)
    novel = novelty(profiles, misfit(profiles, other, np.zeros(300, int), own=False), other.sum(axis=1).A1)
    assert (novel > 0.95).mean() > 0.95


def test_cells_are_ranked_among_cells_of_their_depth(kinds):
    rng, shares = kinds
    counts = draw(rng, shares[0], 2000)
    profiles = cluster_profiles(counts, np.zeros(2000, int), 1)
    assert (np.diff(profiles.depths) >= 0).all()
    new = draw(rng, shares[0], 2000)
    totals = new.sum(axis=1).A1
    novel = novelty(profiles, misfit(profiles, new, np.zeros(2000, int), own=False), totals)
    for part in np.array_split(np.argsort(totals), 4):
        assert novel[part].mean() == pytest.approx(0.5, abs=0.06)
    assert novelty(profiles, np.array([0.0, 1e9]), np.array([1.0, 1e6])).tolist() == pytest.approx([0, 500 / 501])
