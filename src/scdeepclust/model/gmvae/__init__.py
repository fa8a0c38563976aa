from ._model import GMVAE
from ._module import GMVAEModule

__all__ = ["GMVAE", "GMVAEModule"]
