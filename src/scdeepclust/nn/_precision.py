"""Run a function in full precision, whatever autocast is doing around it."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor


def full_precision(function: Callable) -> Callable:
    """Decorate a function of tensors so that it computes in ``float32`` or ``float64`` only.

    Under :class:`torch.autocast` a matrix product is rounded to half precision. That is harmless in a hidden layer
    and fatal in a squared distance or a sum of log-probabilities, where two large numbers nearly cancel. The
    decorated function gets its half-precision arguments as ``float32`` and runs with autocast switched off.
    """

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        tensors = [argument for argument in (*args, *kwargs.values()) if isinstance(argument, Tensor)]
        positional = [_widen(argument) for argument in args]
        named = {name: _widen(argument) for name, argument in kwargs.items()}
        device_type = tensors[0].device.type if tensors else "cpu"
        if not torch.is_autocast_enabled(device_type):
            return function(*positional, **named)
        with torch.autocast(device_type, enabled=False):
            return function(*positional, **named)

    return wrapper


def _widen(argument: object) -> object:
    half = isinstance(argument, Tensor) and argument.dtype in (torch.float16, torch.bfloat16)
    return argument.float() if half else argument  # type: ignore[attr-defined]


def as_wide(tensor: Tensor) -> Tensor:
    """In ``float64``, where sums of large terms keep their digits; as it is on Apple's GPUs, which have none."""
    return tensor if tensor.device.type == "mps" else tensor.double()
