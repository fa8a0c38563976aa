"""Counts: read from files, real ones that need no download, and simulated ones whose truth is known."""

from __future__ import annotations

from scdeepclust.datasets._pbmc import pbmc68k_reduced
from scdeepclust.datasets._read import read
from scdeepclust.datasets._simulate import simulate_counts

__all__ = ["pbmc68k_reduced", "read", "simulate_counts"]
