from ._model import IDC
from ._module import IDCModule

__all__ = ["IDC", "IDCModule"]
