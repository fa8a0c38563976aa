from ._model import SCDeepCluster, SCDeepClusterModule

__all__ = ["SCDeepCluster", "SCDeepClusterModule"]
