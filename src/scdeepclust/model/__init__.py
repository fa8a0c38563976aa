"""Models: one clustering system each, all with the same API."""

from ._scdeepcluster import SCDeepCluster

__all__ = ["SCDeepCluster"]
