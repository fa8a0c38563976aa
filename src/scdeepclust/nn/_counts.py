"""The non-zero counts of a minibatch, handed from the loader to the loss so that nothing looks for zeros twice."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Counts(NamedTuple):
    """Non-zero counts of a minibatch, row by row.

    Parameters
    ----------
    row
        Cell of each non-zero, ascending, ``int64``, shape (nnz,).
    col
        Gene of each non-zero, ``int64``, shape (nnz,).
    value
        The counts, whole and positive, ``float32``, shape (nnz,).
    n_cells
        Number of cells in the minibatch.
    n_genes
        Number of genes.

    Examples
    --------
    >>> import torch
    >>> from scdeepclust.nn import counts_from_dense
    >>> counts_from_dense(torch.tensor([[0.0, 2.0], [1.0, 0.0]])).totals()
    tensor([2., 1.])
    """

    row: Tensor
    col: Tensor
    value: Tensor
    n_cells: int
    n_genes: int

    def positions(self) -> Tensor:
        """Place of each non-zero in the flattened matrix, ``int64``, shape (nnz,)."""
        return self.row * self.n_genes + self.col

    def sum_by_cell(self, values: Tensor) -> Tensor:
        """Sum of one value per non-zero over the genes of each cell, shape (n_cells,)."""
        return values.new_zeros(self.n_cells).index_add_(0, self.row, values)

    def totals(self) -> Tensor:
        """Total count of each cell, shape (n_cells,)."""
        return self.sum_by_cell(self.value)

    def to_dense(self) -> Tensor:
        """The counts as a matrix, ``float32``, shape (n_cells, n_genes)."""
        dense = self.value.new_zeros(self.n_cells * self.n_genes)
        return dense.index_copy_(0, self.positions(), self.value).view(self.n_cells, self.n_genes)

    def halved(self, generator: torch.Generator, share: Tensor | None = None) -> tuple[Counts, Counts]:
        """Two halves of the counts: each molecule goes to one of them at random, as if the cell was sequenced twice.

        The generator is one of the CPU, so that the halves are the same on every device. ``share`` is the share of each
        non-zero count that the first half may expect, (nnz,) on the CPU; one half of all if there is none.
        """
        value = self.value.cpu()
        share = torch.full_like(value, 0.5) if share is None else share
        first = torch.binomial(value, share, generator=generator).to(self.value.device)
        return self._replaced(first), self._replaced(self.value - first)

    def _replaced(self, value: Tensor) -> Counts:
        """The same cells with other counts, of which some may be zero."""
        some = value > 0
        return self._replace(row=self.row[some], col=self.col[some], value=value[some])

    def to(self, device: torch.device | str) -> Counts:
        """The same counts on another device."""
        return self._replace(row=self.row.to(device), col=self.col.to(device), value=self.value.to(device))


def counts_from_dense(x: Tensor) -> Counts:
    """Collect the non-zeros of a dense matrix of counts.

    Parameters
    ----------
    x
        Counts, shape (cells, genes).

    Returns
    -------
    Its non-zeros.

    Examples
    --------
    >>> import torch
    >>> from scdeepclust.nn import counts_from_dense
    >>> counts_from_dense(torch.tensor([[0.0, 2.0], [1.0, 0.0]])).col
    tensor([1, 0])
    """
    row, col = x.nonzero(as_tuple=True)
    return Counts(row, col, x[row, col].float(), *x.shape)


def counts_from_csr(x: Tensor) -> Counts:
    """Collect the non-zeros of a sparse matrix of counts; zeros that it stores explicitly are dropped.

    Parameters
    ----------
    x
        Counts as a ``torch.sparse_csr`` tensor, shape (cells, genes).

    Returns
    -------
    Its non-zeros.

    Examples
    --------
    >>> import torch
    >>> from scdeepclust.nn import counts_from_csr
    >>> counts_from_csr(torch.tensor([[0.0, 2.0], [1.0, 0.0]]).to_sparse_csr()).col
    tensor([1, 0])
    """
    lengths = x.crow_indices().diff()
    row = torch.repeat_interleave(torch.arange(len(lengths), device=x.device), lengths)
    counts = Counts(row, x.col_indices().long(), x.values().float(), *x.shape)
    if bool(counts.value.all()):
        return counts
    kept = counts.value.nonzero().squeeze(1)
    return counts._replace(row=row[kept], col=counts.col[kept], value=counts.value[kept])
