"""From a registered AnnData object to minibatches.

Differences from the loaders of scvi-tools: sparse counts stay sparse (their non-zero entries are what the likelihood
needs), and every minibatch says which cells it holds, because the targets of a clustering phase belong to cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix, issparse
from scvi.data import AnnDataManager, AnnTorchDataset
from scvi.dataloaders import DataSplitter
from torch.utils.data import Subset

from scdeepclust._keys import CELL_INDEX
from scdeepclust.nn import Counts


def _counts(x: csr_matrix) -> Counts:
    """Non-zero entries of a block of cells."""
    x.eliminate_zeros()  # a stored zero is no count, and the block is a copy
    rows = np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))
    entries = (rows, x.indices.astype(np.int64), x.data)
    return Counts(*map(torch.from_numpy, entries), n_cells=x.shape[0], n_genes=x.shape[1])


class CountsDataset(AnnTorchDataset):
    """Rows of an AnnData object as tensors, with the row numbers under :data:`CELL_INDEX`."""

    def __getitem__(self, indexes: int | Sequence[int] | slice) -> dict[str, np.ndarray | Counts]:
        rows = np.arange(len(self))[indexes] if isinstance(indexes, slice) else np.atleast_1d(indexes)
        if self.adata_manager.adata.isbacked:
            rows = np.sort(rows)  # HDF5 reads increasing row numbers only
        minibatch = {key: self._load(self.data[key], rows, dtype) for key, dtype in self.keys_and_dtypes.items()}
        minibatch[CELL_INDEX] = rows.astype(np.int64)
        return minibatch

    def _load(self, data, rows: np.ndarray, dtype: type) -> np.ndarray | Counts:
        block = data.iloc[rows].to_numpy() if isinstance(data, pd.DataFrame) else data[rows]
        block = block.astype(dtype, copy=False)
        if not issparse(block):
            return block
        return _counts(block.tocsr()) if self.load_sparse_tensor else block.toarray()


class CountsManager(AnnDataManager):
    """An AnnDataManager whose minibatches come from :class:`CountsDataset`."""

    def create_torch_dataset(self, indices=None, data_and_attributes=None, load_sparse_tensor=False):
        """Dataset over ``indices``; see :meth:`scvi.data.AnnDataManager.create_torch_dataset`."""
        dataset = CountsDataset(self, getitem_tensors=data_and_attributes, load_sparse_tensor=load_sparse_tensor)
        return dataset if indices is None else Subset(dataset, indices)


class CountsSplitter(DataSplitter):
    """Training, validation and test loaders whose sparse counts stay sparse up to the model."""

    def __init__(self, adata_manager: AnnDataManager, **kwargs):
        super().__init__(adata_manager, **(kwargs | {"load_sparse_tensor": True}))

    def on_after_batch_transfer(self, batch, dataloader_idx):
        """Leave the minibatch as it is (the parent class densifies it here)."""
        return batch

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        """Move the minibatch (Lightning walks through it recursively, which takes as long as a small layer)."""
        return to_device(batch, device)


def to_device(minibatch: dict[str, torch.Tensor | Counts], device: torch.device) -> dict[str, torch.Tensor | Counts]:
    """Move a minibatch to a device."""
    return {name: value.to(device) for name, value in minibatch.items()}
