"""Run a function in full precision, whatever autocast is doing around it."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor itself, or a ``float32`` copy of one held in half precision or in integers."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def full_precision(function: Callable) -> Callable:
    """Decorate a function of tensors so that it computes in ``float32`` or ``float64`` only.

    Under :class:`torch.autocast` a matrix product is rounded to half precision. That is harmless in a hidden layer
    and fatal in a squared distance or a sum of log-probabilities, where two large numbers nearly cancel. The
    decorated function gets its half-precision arguments as ``float32`` and runs with autocast switched off.
    """

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        args = [at_least_float32(a) if _is_half(a) else a for a in args]
        kwargs = {name: at_least_float32(a) if _is_half(a) else a for name, a in kwargs.items()}
        device_type = tensors[0].device.type if tensors else "cpu"
        if not torch.is_autocast_enabled(device_type):
            return function(*args, **kwargs)
        with torch.autocast(device_type, enabled=False):
            return function(*args, **kwargs)

    return wrapper


def _is_half(argument: object) -> bool:
    return isinstance(argument, Tensor) and argument.dtype in (torch.float16, torch.bfloat16)
