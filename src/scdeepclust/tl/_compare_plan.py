"""What a comparison consists of: runs, and the fits that several runs share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

OPEN, SEARCHED = "open", "labels"

# Baselines by their fit: what is done with its embedding where K is open, where it is given, and where labels choose.
CLUSTERINGS = {OPEN: "leiden", SEARCHED: "leiden", "given": "kmeans"}
BASELINES = {
    "pca": (OPEN, SEARCHED, "given"),
    "harmony": (OPEN, SEARCHED, "given"),
    "scvi": (OPEN, SEARCHED),
}


@dataclass(frozen=True)
class Run:
    """One clustering: a method, how its number of clusters is set, and a seed."""

    method: str
    k: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.method}_k-{self.k}_seed-{self.seed}"

    @property
    def setting(self) -> str:
        """How the number of clusters was set. Scores of different settings do not belong into one column."""
        return setting_name(self.k)


def setting_name(k: str) -> str:
    """In words: found by the method, given, or searched with the help of the labels."""
    return {OPEN: "K open", SEARCHED: "K from labels"}.get(k, f"K = {k}")


@dataclass(frozen=True)
class Job:
    """One fit and the runs that are made from it."""

    fit: str
    seed: int
    runs: tuple[Run, ...]


def plan(
    models: Sequence[str], baselines: Sequence[str], seeds: Sequence[int], ks: Sequence[str], with_labels: bool
) -> Iterator[Job]:
    """All jobs, long ones first, so that no worker is left with one at the end."""
    for seed, model, k in product(seeds, models, ks):
        yield Job(model, seed, (Run(model, k, seed),))
    for seed, fit in product(seeds, sorted(baselines, key=list(BASELINES).index, reverse=True)):
        kinds = [OPEN] * (OPEN in ks) + [SEARCHED] * with_labels + [k for k in ks if k != OPEN]
        runs = [
            Run(f"{fit}+{CLUSTERINGS.get(kind, CLUSTERINGS['given'])}", kind, seed)
            for kind in kinds
            if kind in BASELINES[fit] or (kind not in CLUSTERINGS and "given" in BASELINES[fit])
        ]
        if runs:
            yield Job(fit, seed, tuple(runs))
