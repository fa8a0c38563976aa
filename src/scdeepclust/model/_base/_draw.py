from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._cells import check_counts_of, is_positive
from ._checks import check_choice


def check_draw(n_cells: Any, library_size: Any) -> None:
    """Raise a ValueError unless cells of this number and size can be drawn."""
    check_counts_of(n_cells=n_cells)
    if library_size is not None and not is_positive(library_size):
        raise ValueError(f"`library_size` must be a positive number, or None for the median; found {library_size!r}.")


def draw_codes(argument: str, name: str | None, names: list[str], weights: Tensor, n: int) -> Tensor:
    """Codes (n,) of one of the names, or drawn by their weights."""
    if name is None:
        return weights.multinomial(n, replacement=True)
    check_choice(argument, name, tuple(names))
    return torch.full((n,), names.index(name), device=weights.device)
