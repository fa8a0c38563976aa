from ._model import MFCVAE
from ._module import MFCVAEModule

__all__ = ["MFCVAE", "MFCVAEModule"]
