from __future__ import annotations

import torch
from torch import Tensor

from ._checks import check_choice


def draw_codes(argument: str, name: str | None, names: list[str], weights: Tensor, n: int) -> Tensor:
    """Codes (n,) of one of the names, or drawn by their weights."""
    if name is None:
        return weights.multinomial(n, replacement=True)
    check_choice(argument, name, tuple(names))
    return torch.full((n,), names.index(name), device=weights.device)
