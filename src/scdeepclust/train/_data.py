"""From a registered AnnData object to minibatches.

Differences from the loaders of scvi-tools: sparse counts stay sparse (their non-zero entries are what the likelihood
needs), every minibatch says which cells it holds (the targets of a clustering phase belong to cells), and data that
lie in a file are read in blocks of rows instead of row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import cached_property
from math import ceil
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from anndata.experimental import AnnCollection
from scipy.sparse import csr_matrix, issparse, vstack
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager, AnnTorchDataset
from scvi.data.fields import AnnDataField
from scvi.dataloaders import AnnDataLoader, DataSplitter
from torch.utils.data import Subset

from scdeepclust._compat import annbatch_reader
from scdeepclust._keys import CELL_INDEX
from scdeepclust.nn import Counts

Block = dict[str, np.ndarray | csr_matrix]
Minibatch = dict[str, torch.Tensor | Counts]

# Rows read at once from a file, and how many such blocks are mixed: 8192 cells are in memory at a time.
BLOCK_ROWS = 256
BUFFER_BLOCKS = 32


def to_device(minibatch: Minibatch, device: torch.device) -> Minibatch:
    """Move a minibatch to a device."""
    return {name: value.to(device) for name, value in minibatch.items()}


def lie_in_a_file(manager: AnnDataManager) -> bool:
    """Whether the registered counts are read from an HDF5 file or a zarr store, not from memory."""
    counts = manager.get_from_registry(REGISTRY_KEYS.X_KEY)
    return not (isinstance(counts, np.ndarray) or issparse(counts)) or is_collection(manager.adata)


def is_collection(adata: AnnData) -> bool:
    """Whether these are several files behind the interface of one (:class:`scvi.dataloaders.CollectionAdapter`)."""
    return not issubclass(type(adata), AnnData)


def files_reader(counts: Any) -> Callable[[np.ndarray], csr_matrix] | None:
    """A function that reads any rows of a layer of a collection, each run of rows as one slice of its file.

    The collection itself reads row by row. None where it changes what it reads, or is a part of another one.
    """
    collection, layer = counts.collection, counts.key
    if not isinstance(collection, AnnCollection) or collection.convert is not None:
        return None
    starts = np.array([0, *collection.limits])
    parts = [part.layers[layer] for part in collection.adatas]

    def read(rows: np.ndarray) -> csr_matrix:
        file = np.searchsorted(starts, rows, side="right") - 1
        ends = np.flatnonzero((np.diff(rows) != 1) | (np.diff(file) != 0)) + 1
        blocks = []
        for run in np.split(rows, ends):
            i = np.searchsorted(starts, run[0], side="right") - 1
            block = csr_matrix(parts[i][run[0] - starts[i] : run[-1] + 1 - starts[i]])
            genes = collection.adatas_vidx[i]
            blocks.append(block if genes is None else block[:, genes])
        return vstack(blocks, format="csr")

    return read


def _counts(x: csr_matrix) -> Counts:
    """Non-zero entries of a block of cells."""
    x.eliminate_zeros()  # a stored zero is no count, and the block is a copy
    rows = np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))
    row, col, value = map(torch.from_numpy, (rows, x.indices.astype(np.int64), x.data))
    return Counts(row, col, value, n_cells=x.shape[0], n_genes=x.shape[1])


def converted(block: Block, sparse: bool) -> dict[str, np.ndarray | Counts]:
    """The same cells with their sparse counts as non-zero entries, or dense for who reads loaders of scvi-tools."""
    convert = _counts if sparse else csr_matrix.toarray
    return {key: convert(csr_matrix(value)) if issparse(value) else value for key, value in block.items()}


def tensors_of(block: Block, sparse: bool) -> Minibatch:
    """A block of cells as a minibatch."""
    return {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in converted(block, sparse).items()}


class CountsDataset(AnnTorchDataset):
    """Rows of an AnnData object as tensors, with the row numbers under :data:`CELL_INDEX`."""

    @cached_property
    def _read_counts(self) -> Callable[[np.ndarray], csr_matrix] | None:
        """How to read any rows of the counts at once, where there is a way."""
        counts = self.data.get(REGISTRY_KEYS.X_KEY)
        return files_reader(counts) if is_collection(self.adata_manager.adata) else annbatch_reader(counts)

    @cached_property
    def _in_a_file(self) -> bool:
        """Asked for each minibatch, where a look into the registry would cost a twentieth of a small step."""
        return lie_in_a_file(self.adata_manager)

    def __getitem__(self, indexes: int | Sequence[int] | slice) -> dict[str, np.ndarray | Counts]:
        rows = np.arange(len(self))[indexes] if isinstance(indexes, slice) else np.atleast_1d(indexes)
        if self._in_a_file and not (np.diff(rows) > 0).all():  # HDF5 reads increasing row numbers only
            rows, place = np.unique(rows, return_inverse=True)
            return self.convert({key: value[place] for key, value in self.read(rows).items()})
        return self.convert(self.read(rows))

    def read(self, rows: np.ndarray) -> Block:
        """Registered data of some rows, sparse counts as CSR."""
        first, last = int(rows.min()), int(rows.max()) + 1
        contiguous = last - first == len(rows) > 1 and bool((np.diff(rows) == 1).all())
        # a slice reads far faster from a file than rows one by one, even if not all of it is wanted
        by_slice = contiguous or (last - first <= 2 * len(rows) and self._in_a_file)
        index = slice(first, last) if by_slice else rows
        block: Block = {CELL_INDEX: rows.astype(np.int64)}
        for key, dtype in self.keys_and_dtypes.items():
            if key == REGISTRY_KEYS.X_KEY and self._read_counts is not None:
                block[key] = self._read_counts(rows).astype(dtype, copy=False)
                continue
            data = self.data[key]
            values = data.iloc[index].to_numpy() if isinstance(data, pd.DataFrame) else data[index]
            values = values[rows - first] if by_slice and not contiguous else values
            if issparse(values):
                block[key] = values.astype(dtype, copy=contiguous).tocsr()
            else:  # of any subclass or byte order
                block[key] = np.asarray(values).astype(dtype, copy=contiguous)
        return block

    def read_blocks(self, blocks: list[np.ndarray]) -> Block:
        """Registered data of several runs of rows, one run after the other."""
        if self._read_counts is not None:
            return self.read(np.concatenate(blocks))
        parts = [self.read(rows) for rows in blocks]
        return {key: stacked([part[key] for part in parts]) for key in parts[0]}

    def convert(self, block: Block) -> dict[str, np.ndarray | Counts]:
        """What a minibatch holds: sparse counts as non-zero entries, or dense for loaders of scvi-tools."""
        return converted(block, self.load_sparse_tensor)


class CountsManager(AnnDataManager):
    """An AnnDataManager whose minibatches come from :class:`CountsDataset`."""

    adata: AnnData | None
    checked: tuple | None = None  # what the counts looked like when they were last checked

    @classmethod
    def over(cls, adata: AnnData, fields: list[AnnDataField], registry: dict) -> CountsManager:
        """Manager of data that are registered already."""
        manager = cls(fields=fields)
        manager.adata, manager._registry = adata, registry
        return manager

    def is_registered(self) -> bool:
        """Whether the codes in the data are those of this manager, not of another one or gone."""
        adata = self.adata
        fields = [field for field in self.fields if not field.is_empty and field.attr_key is not None]
        return (
            adata is not None
            and adata.uns.get("_scvi_manager_uuid") == self.id
            and all(field.attr_key in getattr(adata, field.attr_name).keys() for field in fields)
        )

    def register_again(self) -> None:
        """Write the codes of the categories that are known anew (scvi-tools would number them as it finds them)."""
        adata = self.adata
        registry = deepcopy(self._registry)
        self.adata = None  # scvi-tools registers once
        try:
            self.register_fields(adata, registry)
        except BaseException:
            self.adata = adata
            self._registry.update(registry)
            raise

    def validate(self) -> None:
        """As in scvi-tools, but for the categories, which stay those of the model."""
        if not self.is_registered():
            self.register_again()

    def create_torch_dataset(self, indices=None, data_and_attributes=None, load_sparse_tensor=False):
        """Dataset over ``indices``; see :meth:`scvi.data.AnnDataManager.create_torch_dataset`."""
        dataset = CountsDataset(self, getitem_tensors=data_and_attributes, load_sparse_tensor=load_sparse_tensor)
        return dataset if indices is None else Subset(dataset, indices)


class BlockShuffleLoader:
    """Shuffled minibatches of data in a file or store, read in blocks of consecutive rows.

    Random rows of a file are read more slowly than a model trains on them. Here random *blocks* of rows are read
    into a buffer, and minibatches are drawn from the shuffled buffer.

    Parameters
    ----------
    manager
        Manager of the registered data.
    indices
        Rows to read.
    batch_size
        Cells in a minibatch.
    rank, world_size
        Which share of the blocks this process reads, of how many.
    seed
        Seed of the order.
    """

    def __init__(
        self,
        manager: AnnDataManager,
        indices: np.ndarray,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
    ):
        self.dataset = CountsDataset(manager, load_sparse_tensor=True)
        n_blocks = max(ceil(len(indices) / BLOCK_ROWS), min(world_size, len(indices)))  # one for each process
        self.blocks = np.array_split(np.sort(indices), n_blocks)  # sizes differ by at most 1
        self.batch_size = batch_size
        self.rank, self.world_size = rank, world_size
        # The order of the blocks is the same in each process: its generator draws nothing else. Buffers differ in size
        # between processes, and so does what is drawn to shuffle them.
        self.block_order = torch.Generator().manual_seed(seed)
        self.buffer_order = torch.Generator().manual_seed(seed + 1 + rank)

    def __len__(self) -> int:
        """Minibatches per epoch, the same in each process."""
        n_full, rest = divmod(ceil(len(self.blocks) / self.world_size), BUFFER_BLOCKS)
        return n_full * self._n_minibatches(BUFFER_BLOCKS) + self._n_minibatches(rest)

    def _n_minibatches(self, n_blocks: int) -> int:
        """Minibatches from a buffer of so many blocks."""
        return ceil(n_blocks * len(self.blocks[0]) / self.batch_size)

    def _order(self) -> list[np.ndarray]:
        order = torch.randperm(len(self.blocks), generator=self.block_order).numpy()
        n_each = ceil(len(order) / self.world_size)
        order = np.resize(order, n_each * self.world_size)  # every process reads equally many
        return [self.blocks[i] for i in order[self.rank :: self.world_size]]

    def __iter__(self) -> Iterator[Minibatch]:
        blocks = self._order()
        for start in range(0, len(blocks), BUFFER_BLOCKS):
            chosen = blocks[start : start + BUFFER_BLOCKS]
            buffer = self.dataset.read_blocks(chosen)
            shuffled = torch.randperm(len(buffer[CELL_INDEX]), generator=self.buffer_order)
            shuffled = _at_least(shuffled, self._n_minibatches(len(chosen)))
            for rows in shuffled.tensor_split(self._n_minibatches(len(chosen))):
                yield tensors_of({key: value[rows.numpy()] for key, value in buffer.items()}, sparse=True)


def _at_least(order: torch.Tensor, n: int) -> torch.Tensor:
    """The rows, some of them twice where there are fewer than minibatches, so that none is empty."""
    return torch.cat([order, order[: n - len(order)]]) if len(order) < n else order


def stacked(parts: list[np.ndarray | csr_matrix]) -> np.ndarray | csr_matrix:
    """Data of runs of cells, one after the other."""
    return vstack(parts, format="csr") if issparse(parts[0]) else np.concatenate(parts)


class LateLoader(AnnDataLoader):
    """A loader that starts at the first minibatch that is asked for, also with ``scvi.settings.dl_num_workers``.

    Processes that read ahead would draw the order of the cells before what is drawn at the start of an epoch, and the
    same seed would give other labels than without them.
    """

    def __iter__(self) -> Iterator[Minibatch]:
        yield from super().__iter__()


class CountsSplitter(DataSplitter):
    """Training, validation and test loaders whose sparse counts stay sparse up to the model."""

    data_loader_cls = LateLoader

    def __init__(self, adata_manager: AnnDataManager, *, seed: int = 0, **kwargs):
        super().__init__(adata_manager, **(kwargs | {"load_sparse_tensor": True}))
        self.seed = seed

    def train_dataloader(self):
        """Random minibatches; by blocks where the data lie in a file."""
        if not lie_in_a_file(self.adata_manager):
            return super().train_dataloader()
        batch_size = self.data_loader_kwargs["batch_size"]
        ranks = self.trainer.global_rank, self.trainer.world_size
        return BlockShuffleLoader(self.adata_manager, self.train_idx, batch_size, *ranks, seed=self.seed)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        """Leave the minibatch as it is (the parent class densifies it here)."""
        return batch

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        """Move the minibatch (Lightning walks through it recursively, which takes as long as a small layer)."""
        return to_device(batch, device)
