"""Models: one clustering system each, all with the same API."""

from ._gmvae import GMVAE
from ._scdeepcluster import SCDeepCluster

__all__ = ["GMVAE", "SCDeepCluster"]
