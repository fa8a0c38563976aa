r"""Deep embedded clustering: Student-t assignment, sharpened target, and the divergence between the two.

For cell embeddings :math:`z_i` and cluster centres :math:`c_j`,

.. math::
    q_{ij} = \frac{(1 + \lVert z_i - c_j \rVert^2 / h)^{-1}}{\sum_{j'} (1 + \lVert z_i - c_{j'} \rVert^2 / h)^{-1}},
    \qquad f_j = \sum_i q_{ij},
    \qquad p_{ij} = \frac{q_{ij}^2 / f_j}{\sum_{j'} q_{ij'}^2 / f_{j'}} .

The squared distances are matrix products, :math:`\lVert z \rVert^2 + \lVert c \rVert^2 - 2 z^\top c`, so that no
[cells, clusters, dimensions] tensor is ever formed. Both sides are first moved to the mean of the centres: the three
terms would otherwise cancel badly when the embedding lies far from the origin.

References
----------
Xie, Girshick, Farhadi (2016). Unsupervised deep embedding for clustering analysis. ICML.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from scdeepclust.nn import as_double, full_precision

# Rows of one block in `column_sums`: a block's distances stay in the cache for up to about a hundred clusters.
_BLOCK_ROWS = 4096


@full_precision
def student_t_log_assignment(z: Tensor, centers: Tensor, scale: float | Tensor = 1.0) -> Tensor:
    """Log-probability of each cluster for each cell under a Student-t kernel with one degree of freedom.

    Parameters
    ----------
    z
        Cell embeddings, shape (N, D).
    centers
        Cluster centres, shape (K, D).
    scale
        Squared distance at which the kernel has fallen to one half, in squared units of ``z``.

    Returns
    -------
    ``log q``, shape (N, K); each row sums to one after exponentiation.

    Examples
    --------
    >>> import torch
    >>> from scdeepclust.model.scdeepcluster._dec import student_t_log_assignment
    >>> z = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    >>> student_t_log_assignment(z, centers=z).exp()
    tensor([[0.9091, 0.0909],
            [0.0909, 0.9091]])
    """
    return torch.log_softmax(-torch.log1p(_squared_distances(z, centers) / scale), dim=-1)


def _squared_distances(z: Tensor, centers: Tensor) -> Tensor:
    origin = centers.detach().mean(0)
    z, centers = z - origin, centers - origin
    # Rounding can leave a distance just below zero where a cell sits on its centre.
    lengths = z.square().sum(-1, keepdim=True) + centers.square().sum(-1)
    return torch.addmm(lengths, z, centers.T, alpha=-2).clamp_min(0)


@torch.no_grad()
@full_precision
def target_distribution(q: Tensor, column_sums: Tensor, balance: float = 1.0) -> Tensor:
    """Sharpen assignments into the target that the clustering loss pulls them towards.

    Parameters
    ----------
    q
        Assignment probabilities, shape (N, K).
    column_sums
        Soft cluster sizes ``f`` over **all** cells (not over the minibatch), shape (K,).
    balance
        Exponent ``b`` of ``q^2 / f^b``. 1 is the published rule, which enlarges small clusters; 0 leaves cluster sizes
        out of the target.

    Returns
    -------
    ``p``, shape (N, K), rows summing to one, without gradient.

    Examples
    --------
    >>> import torch
    >>> from scdeepclust.model.scdeepcluster._dec import target_distribution
    >>> q = torch.tensor([[0.8, 0.2], [0.6, 0.4]])
    >>> target_distribution(q, q.sum(0))
    tensor([[0.8727, 0.1273],
            [0.4909, 0.5091]])
    """
    # A cluster without any mass has q = 0 in every row; the floor keeps 0 / 0 out.
    sizes = column_sums.to(q).clamp_min(torch.finfo(q.dtype).tiny)
    log_weight = 2 * q.log() - balance * sizes.log()
    return torch.softmax(log_weight, dim=-1)


@full_precision
def assignment_kl(log_q: Tensor, p: Tensor) -> Tensor:
    """Divergence of the assignments from their target, KL(p || q), cell by cell.

    Parameters
    ----------
    log_q
        Log-assignments from :func:`student_t_log_assignment`, shape (N, K).
    p
        Target from :func:`target_distribution`, shape (N, K); treated as a constant.

    Returns
    -------
    Non-negative divergence of each cell in nats, shape (N,).

    Examples
    --------
    >>> import torch
    >>> from scdeepclust.model.scdeepcluster._dec import assignment_kl
    >>> q = torch.tensor([[0.8, 0.2]])
    >>> assignment_kl(q.log(), p=q)
    tensor([0.])
    """
    p = p.detach()
    return (torch.xlogy(p, p) - p * log_q).sum(-1)


@torch.no_grad()
@full_precision
def column_sums(z: Tensor | Iterable[Tensor], centers: Tensor, scale: float | Tensor = 1.0) -> Tensor:
    """Soft cluster sizes over all cells, ``f_j = sum_i q_ij``, with memory independent of the number of cells.

    Parameters
    ----------
    z
        Cell embeddings, shape (N, D), or an iterable of blocks of such rows.
    centers
        Cluster centres, shape (K, D).
    scale
        As in :func:`student_t_log_assignment`.

    Returns
    -------
    ``f`` in ``float64``, shape (K,); it sums to the number of cells.

    Examples
    --------
    >>> import torch
    >>> from scdeepclust.model.scdeepcluster._dec import column_sums
    >>> z = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    >>> column_sums(z, centers=z).round(decimals=4)
    tensor([1., 1.], dtype=torch.float64)
    """
    sums = as_double(torch.zeros(len(centers), device=centers.device))
    for block in [z] if isinstance(z, Tensor) else z:
        for rows in block.split(_BLOCK_ROWS):
            kernel = (_squared_distances(rows, centers) / scale).add_(1).reciprocal_()
            kernel.div_(kernel.sum(-1, keepdim=True))
            # a block is few enough rows for float32
            sums += as_double(kernel.sum(0)) if kernel.device.type == "mps" else kernel.sum(0, dtype=torch.float64)
    return sums
