"""Computations on the results of the models."""

from __future__ import annotations

from scdeepclust.tl._batches import check_batches
from scdeepclust.tl._cluster_tree import ClusterTree, cluster_tree
from scdeepclust.tl._compare import compare
from scdeepclust.tl._comparison import Comparison, read_comparison
from scdeepclust.tl._confidence import ConfidenceCheck, check_confidence, prediction_sets
from scdeepclust.tl._consensus import consensus
from scdeepclust.tl._facets import facet_report
from scdeepclust.tl._gate_scores import gate_curves, score_gates
from scdeepclust.tl._gates import rank_gates
from scdeepclust.tl._genes import select_genes
from scdeepclust.tl._integration import benchmark_integration
from scdeepclust.tl._n_clusters import estimate_n_clusters
from scdeepclust.tl._rank_genes import rank_genes
from scdeepclust.tl._report import report
from scdeepclust.tl._score import score_clusters
from scdeepclust.tl._time import time_control

__all__ = [
    "ClusterTree",
    "Comparison",
    "ConfidenceCheck",
    "benchmark_integration",
    "check_batches",
    "check_confidence",
    "cluster_tree",
    "compare",
    "consensus",
    "estimate_n_clusters",
    "facet_report",
    "gate_curves",
    "prediction_sets",
    "rank_gates",
    "rank_genes",
    "read_comparison",
    "report",
    "score_clusters",
    "score_gates",
    "select_genes",
    "time_control",
]
