"""Gaussian noise at the price of a few operations a number.

Where the input of a network is noised, drawing the noise can take as long as a layer: PyTorch draws it on a CPU one
number after another, from a Mersenne twister. Here every number is a function of its place and of a key, only the key
comes from PyTorch's generator, and the numbers are computed side by side: a hash of the place gives uniform bits, and
two uniform numbers give two normal ones (Box and Muller).
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from torch import Tensor

from ._kernels import _HALF, _ONE, _TWO, _cached, _compiled, _log

_BLOCK = 4096  # numbers made at a time: they stay in the nearest cache
_STEP, _FOUR, _QUARTER_TURN = np.float32(2**-24), np.float32(4), np.float32(math.pi / 2)
_S3, _S5, _S7 = (np.float32((-1) ** (n // 2) / math.factorial(n)) for n in (3, 5, 7))
_C2, _C4, _C6, _C8 = (np.float32((-1) ** (n // 2) / math.factorial(n)) for n in (2, 4, 6, 8))


def normal_like(x: Tensor) -> Tensor:
    """Independent standard normal numbers in the shape of ``x``.

    They follow from the state of PyTorch's generator, as those of :func:`torch.randn_like` do, but are not the same
    numbers. Anything but ``float32`` on a CPU is left to that function.

    Parameters
    ----------
    x
        Tensor whose shape, type and device to take.

    Returns
    -------
    The numbers, without gradient.

    Examples
    --------
    >>> import torch
    >>> from scdeepclust.nn._noise import normal_like
    >>> noise = normal_like(torch.empty(1000, 1000))
    >>> bool(noise.mean().abs() < 0.01), bool((noise.std() - 1).abs() < 0.01)
    (True, True)
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        return torch.randn_like(x)
    first, second = torch.randint(2**32, (2,)).tolist()
    n_blocks = -(-x.numel() // _BLOCK)
    blocks = torch.empty(n_blocks, _BLOCK)
    _fill(np.uint32(first), np.uint32(second), blocks.numpy())
    return blocks.view(-1)[: x.numel()].view(x.shape)


@_compiled
def _mix(h):
    """Each bit in changes about half of the bits out (the constants are those of C. Wellons' `lowbias32`)."""
    h = np.uint32(h ^ (h >> np.uint32(16)))
    h = np.uint32(h * np.uint32(0x7FEB352D))
    h = np.uint32(h ^ (h >> np.uint32(15)))
    h = np.uint32(h * np.uint32(0x846CA68B))
    return np.uint32(h ^ (h >> np.uint32(16)))


@_compiled
def _uniform(start, first, second, out):
    """Multiples of 2^-24 in [0, 1)."""
    for i in range(out.shape[0]):
        h = _mix(np.uint32(_mix(np.uint32(start + i) ^ first) + second))
        out[i] = np.float32(np.int32(h >> np.uint32(8))) * _STEP


@_compiled
def _radius(u):
    for i in range(u.shape[0]):
        u[i] = np.sqrt(-_TWO * _log(u[i] + _STEP))


@_compiled
def _turn(radius, turns):
    """``radius`` times cosine and sine of an angle: a quarter turn back or forth by series, the rest by symmetry."""
    for i in range(radius.shape[0]):
        quarters = np.floor(_FOUR * turns[i] + _HALF)
        angle = (_FOUR * turns[i] - quarters) * _QUARTER_TURN
        w = angle * angle
        sine = angle + angle * w * ((_S7 * w + _S5) * w + _S3)
        cosine = _ONE + w * (((_C8 * w + _C6) * w + _C4) * w + _C2)
        n = np.int32(quarters)
        odd = (n & 1) == 1
        a, b = radius[i] * (sine if odd else cosine), radius[i] * (cosine if odd else sine)
        radius[i] = -a if ((n + 1) & 2) == 2 else a
        turns[i] = -b if (n & 2) == 2 else b


@_cached
def _fill(first, second, blocks):
    half = blocks.shape[1] // 2
    for i in range(blocks.shape[0]):
        a, b = blocks[i, :half], blocks[i, half:]
        _uniform(2 * i * half, first, second, a)
        _uniform((2 * i + 1) * half, first, second, b)
        _radius(a)
        _turn(a, b)
