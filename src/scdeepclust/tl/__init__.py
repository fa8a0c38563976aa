"""Computations on the results of the models."""

from __future__ import annotations

from scdeepclust.tl._integration import benchmark_integration
from scdeepclust.tl._n_clusters import estimate_n_clusters
from scdeepclust.tl._score import score_clusters
from scdeepclust.tl._time import time_control

__all__ = ["benchmark_integration", "estimate_n_clusters", "score_clusters", "time_control"]
