"""Drawings of results.

A drawing of one panel returns its axes; one of several panels returns their axes by name, a dictionary whose ``figure``
is the figure. With ``ax`` it is drawn on axes that are there, one for each panel; with ``save`` it is also written to a
file, with ``show`` also shown. ``LogClusters`` draws while a model is trained.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from scdeepclust.pl._batches import batches
from scdeepclust.pl._benchmark import benchmark_table
from scdeepclust.pl._cluster_tree import cluster_tree
from scdeepclust.pl._clusters import cluster_sizes
from scdeepclust.pl._embedding import confidence, overview
from scdeepclust.pl._facets import facets
from scdeepclust.pl._gates import cell_gates, gates
from scdeepclust.pl._history import history
from scdeepclust.pl._n_clusters import n_clusters
from scdeepclust.pl._reliability import reliability
from scdeepclust.pl._som import som, transitions

if TYPE_CHECKING:
    from scdeepclust.pl._log_clusters import LogClusters

__all__ = [
    "LogClusters",
    "batches",
    "benchmark_table",
    "cell_gates",
    "cluster_sizes",
    "cluster_tree",
    "confidence",
    "facets",
    "gates",
    "history",
    "n_clusters",
    "overview",
    "reliability",
    "som",
    "transitions",
]


def __getattr__(name: str) -> Any:
    if name == "LogClusters":  # on first use: who only draws does not pay for what trains
        return importlib.import_module("scdeepclust.pl._log_clusters").LogClusters
    raise AttributeError(f"module 'scdeepclust.pl' has no attribute {name!r}")
