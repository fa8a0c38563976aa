"""Computations on the results of the models."""

from __future__ import annotations

from scdeepclust.tl._score import score_clusters

__all__ = ["score_clusters"]
