"""Models: one clustering system each, all with the same API."""

from ._gmvae import GMVAE
from ._idc import IDC
from ._mfcvae import MFCVAE
from ._scdeepcluster import SCDeepCluster
from ._somvae import SOMVAE

__all__ = ["GMVAE", "IDC", "MFCVAE", "SCDeepCluster", "SOMVAE"]
