"""Run a function in full precision, whatever autocast is doing around it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# What training may be asked for: weights in float32, products of the networks in float32 or half precision.
_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
_OTHER_NAMES = {None: "32-true", 32: "32-true", "32": "32-true", 16: "16-mixed", "16": "16-mixed", "bf16": "bf16-mixed"}


def full_precision(function: Callable) -> Callable:
    """Decorate a function of tensors so that it computes in ``float32`` or ``float64`` only.

    Under :class:`torch.autocast` a matrix product is rounded to half precision. That is harmless in a hidden layer
    and fatal in a squared distance or a sum of log-probabilities, where two large numbers nearly cancel. The
    decorated function gets its half-precision arguments, also those in a dictionary, as ``float32`` and runs with
    autocast switched off.
    """

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        first = next(_tensors((*args, *kwargs.values())), None)
        positional = [_widen(argument) for argument in args]
        named = {name: _widen(argument) for name, argument in kwargs.items()}
        device_type = "cpu" if first is None else first.device.type
        if not (torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)):
            return function(*positional, **named)
        with torch.autocast(device_type, enabled=False):
            return function(*positional, **named)

    return wrapper


def _tensors(arguments: tuple) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, dict):
            yield from _tensors(tuple(argument.values()))


def _widen(argument):
    if isinstance(argument, dict):
        return {name: _widen(value) for name, value in argument.items()}
    half = isinstance(argument, Tensor) and argument.dtype in (torch.float16, torch.bfloat16)
    return argument.float() if half else argument


def as_wide(tensor: Tensor) -> Tensor:
    """In ``float64``, where sums of large terms keep their digits; as it is on Apple's GPUs, which have none.

    For what each training step computes; :func:`as_double` is for what is computed once.
    """
    return tensor if tensor.device.type == "mps" else tensor.double()


def as_double(tensor: Tensor) -> Tensor:
    """In ``float64``, on the CPU where the device has none (Apple's GPUs)."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def check_precision(precision: str | int | None) -> None:
    """Raise a ValueError unless training can run in this ``precision``, named as in :class:`lightning.pytorch.Trainer`.

    Weights, targets and results are ``float32``; sums and distances that need more are computed in more anyway.
    """
    if _OTHER_NAMES.get(precision, precision) not in _PRECISIONS:
        raise ValueError(
            f"`precision` must be '32-true' (the default), 'bf16-mixed' or '16-mixed', found {precision!r}. Models "
            "are stored in float32, and likelihoods and distances take float32 or more in each of the three: use "
            "'bf16-mixed' for speed on a GPU, and the default for accuracy."
        )
