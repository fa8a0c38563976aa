r"""Coding rates: how many nats it takes to store points up to a distortion.

For points :math:`Z` (n x d) and distortion :math:`\epsilon` (the square of that of Yu et al.)

.. math::
    R(Z) = \tfrac12 \log\det\Big(I + \frac{d}{n \epsilon} Z^\top Z\Big), \qquad
    R_c(Z, P) = \sum_k \frac{n_k}{2n} \log\det\Big(I + \frac{d}{n_k \epsilon} Z^\top \mathrm{diag}(p_k) Z\Big),

with memberships :math:`P` (n x K) and :math:`n_k = \sum_i p_{ik}`. Because log det is concave, :math:`R_c \le R`:
clusters save most where each lies in a subspace of its own.

References
----------
Yu, Chan, You, Song, Ma (2020). Learning diverse and discriminative representations via the principle of maximal coding
rate reduction. NeurIPS.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scdeepclust.nn import as_double, full_precision


def _half_log_det(gram: Tensor) -> tuple[Tensor, Tensor]:
    """``log det(I + gram) / 2`` of symmetric positive semidefinite matrices (...), and 0 for each that worked (...)."""
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor, info = torch.linalg.cholesky_ex(identity + gram)
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1), info


def _first_that_works(rate: Callable[..., tuple[Tensor, Tensor]], *arguments: Tensor) -> Tensor:
    """Rate in the precision of the arguments, or in ``float64``.

    Where points are nearly the same and far from 0, the identity drowns in the rounding of ZZ'. A GPU would have to be
    waited for to know, so it computes in ``float64`` at once.
    """
    first = arguments[0]
    if first.device.type in ("cpu", "mps") and first.dtype != torch.float64:
        value, info = rate(*arguments)
        if not bool(info.any()):
            return value
    return rate(*map(as_double, arguments))[0].to(first)


@full_precision
def coding_rate(z: Tensor, distortion: float = 0.1) -> Tensor:
    """Coding rate of points, from the smaller of the two Gram matrices: ``det(I + Z'Z) = det(I + ZZ')``.

    Parameters
    ----------
    z
        Points, shape (n, d).
    distortion
        Squared distortion.

    Returns
    -------
    Rate in nats, a scalar.

    Examples
    --------
    >>> import torch
    >>> from scdeepclust.model.idc._coding_rate import coding_rate
    >>> coding_rate(torch.zeros(5, 3))
    tensor(0.)
    """
    n, d = z.shape

    def rate(z: Tensor) -> tuple[Tensor, Tensor]:
        gram = z.T @ z if d <= n else z @ z.T
        return _half_log_det(gram * (d / (n * distortion)))

    return _first_that_works(rate, z)


@full_precision
def compressed_rate(z: Tensor, memberships: Tensor, distortion: float = 0.1) -> Tensor:
    """Coding rate of points that are stored cluster by cluster.

    Parameters
    ----------
    z
        Points, shape (n, d).
    memberships
        Probability of each cluster for each point, shape (n, K).
    distortion
        Squared distortion.

    Returns
    -------
    Rate in nats, a scalar, at most :func:`coding_rate` of the same points. A cluster without points costs nothing.

    Examples
    --------
    >>> import torch
    >>> from scdeepclust.model.idc._coding_rate import coding_rate, compressed_rate
    >>> z = torch.eye(4).repeat_interleave(3, dim=0)
    >>> bool(compressed_rate(z, memberships=z) < coding_rate(z))
    True
    """
    n, d = z.shape

    def rate(z: Tensor, memberships: Tensor) -> tuple[Tensor, Tensor]:
        outer = (z.unsqueeze(2) * z.unsqueeze(1)).flatten(1)  # (n, d * d)
        sizes = memberships.sum(dim=0).clamp_min(torch.finfo(z.dtype).eps)  # (K,)
        grams = (memberships.T @ outer).view(-1, d, d) * (d / (sizes * distortion)).view(-1, 1, 1)
        rates, info = _half_log_det(grams)
        return (sizes / n * rates).sum(), info

    return _first_that_works(rate, z, memberships)
