"""A linear layer that reaches the CPU's real speed where the default matrix product does not.

PyTorch multiplies ``float32`` matrices on a CPU with Intel's MKL. On AMD processors with AVX-512, MKL keeps to its AVX2
kernels and reaches about half of the peak; oneDNN, which PyTorch also ships, uses the full width of the same registers.
:class:`FastLinear` sends the three products of a linear layer (output, gradient of the input, gradient of the weight)
to oneDNN on such processors and to :func:`torch.nn.functional.linear` everywhere else. Both are ordinary ``float32``
products: results differ by rounding only.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Below this number of multiplications the fixed cost of the oneDNN call (about 10 microseconds) eats its gain.
_MIN_PRODUCTS = 2**20
_CPUINFO = Path("/proc/cpuinfo")


@functools.cache
def onednn_is_faster() -> bool:
    """Whether this machine's ``float32`` matrix products are faster through oneDNN than through the default route.

    The answer depends on the processor and the build of PyTorch alone, never on a stopwatch: the two routes round
    differently, so a choice by timing could give two runs with the same seed, on the same machine, different labels.

    Returns
    -------
    True on AMD processors with AVX-512 when the private oneDNN operator is there and gives the right answer.
    """
    return _is_amd() and torch.backends.cpu.get_cpu_capability() == "AVX512" and _operator_works()


def _is_amd() -> bool:
    vendor = _CPUINFO.read_text() if _CPUINFO.is_file() else platform.processor()
    return "AuthenticAMD" in vendor


def _operator_works() -> bool:
    """The operator is private to PyTorch: use it only while it exists and does what we think it does."""
    if not torch.backends.mkldnn.is_available():
        return False
    x, weight = torch.arange(6.0).reshape(2, 3), torch.arange(12.0).reshape(4, 3)
    try:
        return torch.allclose(_onednn(x, weight), x @ weight.T)
    except (AttributeError, RuntimeError, TypeError):
        return False


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` of two matrices; transposed views are read as they are, without a copy."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        # Gradients of gradients were asked for: only the default product can give them.
        product = F.linear if torch.is_grad_enabled() else _onednn
        grad_x = product(grad, weight.t()) if ctx.needs_input_grad[0] else None
        grad_weight = product(grad.t(), x.t()) if ctx.needs_input_grad[1] else None
        grad_bias = grad.sum(0) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias


class FastLinear(nn.Linear):
    """:class:`torch.nn.Linear` with the faster of two exact CPU routes.

    Parameters, initialisation and state dict are those of :class:`torch.nn.Linear`. Tensors on other devices, other
    types than ``float32``, products under autocast and small products take the default route.

    Examples
    --------
    >>> import torch
    >>> from scdeepclust.nn import FastLinear
    >>> layer = FastLinear(2000, 128)
    >>> layer(torch.ones(64, 2000)).shape
    torch.Size([64, 128])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` of shape (..., ``in_features``) to (..., ``out_features``)."""
        if not self._use_onednn(x):
            return super().forward(x)
        rows = x.reshape(-1, self.in_features)
        return _OneDNNLinear.apply(rows, self.weight, self.bias).reshape(*x.shape[:-1], self.out_features)

    def _use_onednn(self, x: Tensor) -> bool:
        return (
            x.numel() * self.out_features >= _MIN_PRODUCTS
            and x.shape[-1] == self.in_features
            and x.device.type == "cpu"
            and x.layout == torch.strided
            and x.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and onednn_is_faster()
        )


def use_fast_linear(module: nn.Module) -> nn.Module:
    """Replace every plain :class:`torch.nn.Linear` inside a module by a :class:`FastLinear`, in place.

    The new layers hold the same parameters, with the hooks registered on them, under the same names. Subclasses of
    :class:`torch.nn.Linear` are left alone, for they may have a forward of their own.

    Parameters
    ----------
    module
        Any module, for instance one built from :class:`scvi.nn.FCLayers`.

    Returns
    -------
    The same module.

    Examples
    --------
    >>> from torch import nn
    >>> from scdeepclust.nn import use_fast_linear
    >>> use_fast_linear(nn.Sequential(nn.Linear(4, 3), nn.ReLU()))
    Sequential(
      (0): FastLinear(in_features=4, out_features=3, bias=True)
      (1): ReLU()
    )
    """
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                # On the meta device nothing is allocated and no random number is drawn.
                fast = FastLinear(child.in_features, child.out_features, bias=child.bias is not None, device="meta")
                fast.weight, fast.bias = child.weight, child.bias
                setattr(parent, name, fast.train(child.training))
    return module
