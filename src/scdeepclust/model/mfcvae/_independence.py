r"""How much two sets of variables depend on each other: the Hilbert-Schmidt independence criterion.

With Gaussian kernel matrices K of x and L of y, diagonals set to zero, the unbiased estimate from n cells is

.. math::
    \mathrm{HSIC}(x, y) = \frac{1}{n (n - 3)} \Bigl( \operatorname{tr} K L
    + \frac{1^T K 1 \; 1^T L 1}{(n - 1)(n - 2)} - \frac{2}{n - 2} 1^T K L 1 \Bigr)

(Song et al., JMLR 13:1393, 2012). It is zero on average for independent variables, whatever the size of the minibatch:
a penalty on it does not push on facets that are independent already.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scdeepclust.nn import full_precision


def _gaussian_kernel(x: Tensor) -> Tensor:
    """Kernel matrix (n, n) with zero diagonal; the bandwidth is the median squared distance."""
    squares = x.square().sum(dim=1)
    distances = (squares.unsqueeze(1) + squares - 2 * x @ x.T).clamp_min(0)
    n = len(x)
    # all entries but the first, in rows of n + 1, have the diagonal in their last column
    off_diagonal = distances.detach().flatten()[1:].view(n - 1, n + 1)[:, :-1]
    bandwidth = off_diagonal.median().clamp_min(1e-6)
    return (-distances / bandwidth).exp() * (1 - torch.eye(n, dtype=x.dtype, device=x.device))


def _hsic(k_x: Tensor, k_y: Tensor) -> Tensor:
    n = len(k_x)
    product = (k_x.sum(dim=0) * k_y.sum(dim=0)).sum()  # 1' K L 1
    total = (k_x * k_y).sum() + k_x.sum() * k_y.sum() / ((n - 1) * (n - 2)) - 2 * product / (n - 2)
    return total / (n * (n - 3))


@full_precision
def dependence(x: Tensor, y: Tensor) -> Tensor:
    """Dependence of two sets of variables: 0 on average if they are independent, 1 for a set with itself.

    This is the unbiased HSIC of both, divided by the geometric mean of the HSIC of each with itself.

    Parameters
    ----------
    x, y
        Variables of the same cells, shapes (n, D) and (n, E).

    Returns
    -------
    A scalar; 0 with fewer than 4 cells, which say nothing.

    Notes
    -----
    Takes O(n^2 (D + E)) time, and memory for a few n x n matrices.

    Examples
    --------
    >>> import torch
    >>> from scdeepclust.model.mfcvae._independence import dependence
    >>> x = torch.randn(100, 2)
    >>> round(dependence(x, 3 * x - 1).item(), 3)
    1.0
    """
    if len(x) < 4:
        return x.new_zeros(())
    k_x, k_y = _gaussian_kernel(x), _gaussian_kernel(y)
    return _hsic(k_x, k_y) / (_hsic(k_x, k_x) * _hsic(k_y, k_y)).clamp_min(1e-12).sqrt()
