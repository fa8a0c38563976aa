from ._model import SOMVAE, SOMVAEModule

__all__ = ["SOMVAE", "SOMVAEModule"]
