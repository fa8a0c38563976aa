"""From a datamodule of the user (annbatch, lamindb, TileDB, or one's own) to minibatches as this package reads them.

Datamodules of scvi-tools yield dense counts, entries that no network here reads, and no cell index. Without the index
targets and start labels cannot find their cells, so it has to be there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from scipy.sparse import csr_matrix, issparse
from scvi import REGISTRY_KEYS

from scdeepclust._keys import CELL_INDEX
from scdeepclust.nn import Counts

from ._data import Block, Minibatch, stacked, tensors_of, to_device

# What a datamodule has to have.
ASKED = ("train_dataloader", "inference_dataloader", "registry", "n_obs", "n_vars")

# Under which names a minibatch may say which cells it holds.
INDEX_KEYS = (CELL_INDEX, REGISTRY_KEYS.INDICES_KEY)


class DataModuleCells:
    """The cells of a datamodule, read as often as need be.

    Parameters
    ----------
    datamodule
        A LightningDataModule with all of :data:`ASKED`.
    registry
        Registry of the model that reads it.

    Raises
    ------
    TypeError
        If it is no such datamodule.
    ValueError
        If its genes are not those of the model.
    """

    def __init__(self, datamodule: Any, registry: dict):
        missing = [name for name in ASKED if not hasattr(datamodule, name)]
        is_one = isinstance(datamodule, pl.LightningDataModule)
        if missing or not is_one:
            lack = f"without {', '.join(f'`{name}`' for name in missing)}" if missing else ""
            raise TypeError(
                f"`datamodule` must be a LightningDataModule with {', '.join(f'`{name}`' for name in ASKED)}; found "
                f"{type(datamodule).__name__} {lack}".rstrip()
                + "."
            )
        self.datamodule = datamodule
        self.n_obs = int(datamodule.n_obs)
        self.form = MinibatchForm(registry, self.n_obs)
        if datamodule.n_vars != self.form.n_genes:
            raise ValueError(
                f"`datamodule` has {datamodule.n_vars} genes, the model {self.form.n_genes}. Make the model with "
                "`registry=datamodule.registry`."
            )
        datamodule.prepare_data()
        datamodule.setup("fit")

    def in_order(self) -> Iterator[Block]:
        """All cells, in the order of their index."""
        n_seen = 0
        for tensors in self.datamodule.inference_dataloader():
            block = self.form.block(tensors, "datamodule.inference_dataloader()", first=n_seen)
            n_seen += len(block[CELL_INDEX])
            yield block
        if n_seen != self.n_obs:
            raise ValueError(
                f"`datamodule.inference_dataloader()` yields {n_seen} cells, but `datamodule.n_obs` is {self.n_obs}. "
                "It has to yield each cell once."
            )

    def training(self) -> Iterator[Block]:
        """Minibatches to train on."""
        return self._prepared(self.datamodule.train_dataloader(), "train_dataloader")

    def n_minibatches(self) -> int:
        """Minibatches an epoch: as the loader says, or as one epoch has."""
        loader = self.datamodule.train_dataloader()
        return len(loader) if hasattr(loader, "__len__") else self._n_minibatches

    @cached_property
    def _n_minibatches(self) -> int:
        return sum(1 for _ in self.training())

    def held_out(self) -> Iterator[Block]:
        """Minibatches to validate on; none where the datamodule holds out no cells."""
        return self._prepared(self._validation_loader(), "val_dataloader")

    def held_out_cells(self) -> Iterator[np.ndarray]:
        """Rows of the cells to validate on, block by block."""
        return (block[CELL_INDEX] for block in self.held_out())

    def _validation_loader(self) -> Any:
        """What ``val_dataloader`` returns; that of Lightning itself refuses to be called."""
        if type(self.datamodule).val_dataloader is pl.LightningDataModule.val_dataloader:
            return ()
        loader = self.datamodule.val_dataloader()
        return () if loader is None else loader

    def _prepared(self, loader: Iterable, name: str) -> Iterator[Block]:
        for tensors in loader:
            # the hook that makes a minibatch of what datamodules of scvi-tools yield
            tensors = self.datamodule.on_before_batch_transfer(tensors, 0)
            yield self.form.block(tensors, f"datamodule.{name}()")


class MinibatchForm:
    """Checks minibatches of others, and takes from them what the networks read.

    Parameters
    ----------
    registry
        Registry of the model.
    n_obs
        Cells that an index may number; None where no index is needed.
    """

    def __init__(self, registry: dict, n_obs: int | None = None):
        stats = {
            name: value
            for field in registry["field_registries"].values()
            for name, value in field["summary_stats"].items()
        }
        self.n_obs, self.n_genes, self.n_batch = n_obs, stats["n_vars"], stats["n_batch"]
        setup = registry["setup_args"]
        # annbatch sends size factors that nobody asked for, relative to the mean of the minibatch
        wanted = {
            REGISTRY_KEYS.SIZE_FACTOR_KEY: "size_factor_key",
            REGISTRY_KEYS.CAT_COVS_KEY: "categorical_covariate_keys",
            REGISTRY_KEYS.CONT_COVS_KEY: "continuous_covariate_keys",
        }
        self.wanted = [key for key, argument in wanted.items() if setup.get(argument)]

    def block(self, tensors: Any, where: str, first: int | None = None) -> Block:
        """A minibatch of the loader that ``where`` names; with ``first``, the number of its first cell.

        Raises
        ------
        TypeError, ValueError
            If it is none.
        """
        if not isinstance(tensors, Mapping):
            raise TypeError(
                f"`{where}` must yield minibatches of scvi-tools, which are dictionaries; found "
                f"{type(tensors).__name__}."
            )
        given = {name: value for name, value in tensors.items() if value is not None}
        if lacking := [key for key in (REGISTRY_KEYS.X_KEY, *self.wanted) if key not in given]:
            raise ValueError(
                f"`{where}`: a minibatch has no {lacking[0]!r}, which the registry says there is; found {list(given)}."
            )
        x = _as_csr(given[REGISTRY_KEYS.X_KEY])
        if x.shape[1] != self.n_genes:
            raise ValueError(f"`{where}`: a minibatch has {x.shape[1]} genes, the model {self.n_genes}.")
        block: Block = {REGISTRY_KEYS.X_KEY: x}
        if self.n_obs is not None:
            block[CELL_INDEX] = self._index(given, len_of(x), where, first)
        if REGISTRY_KEYS.BATCH_KEY in given:
            codes = _column(given[REGISTRY_KEYS.BATCH_KEY]).astype(np.int64)
            if len(codes) and not 0 <= codes.min() <= codes.max() < self.n_batch:
                raise ValueError(
                    f"`{where}`: batches are coded from 0 to {self.n_batch - 1}; found {codes.min()} to {codes.max()}."
                )
        elif self.n_batch == 1:
            codes = np.zeros((len_of(x), 1), dtype=np.int64)
        else:
            raise ValueError(f"`{where}`: a minibatch has no 'batch', but the model has {self.n_batch}.")
        block[REGISTRY_KEYS.BATCH_KEY] = codes
        for key in self.wanted:
            block[key] = _column(given[key]).astype(np.int64 if key == REGISTRY_KEYS.CAT_COVS_KEY else np.float32)
        if unequal := [key for key, value in block.items() if value.shape[0] != len_of(x)]:
            raise ValueError(
                f"`{where}`: a minibatch has counts of {len_of(x)} cells, but {unequal[0]!r} of "
                f"{block[unequal[0]].shape[0]}."
            )
        return block

    def _index(self, given: dict, n_cells: int, where: str, first: int | None) -> np.ndarray:
        key = next((key for key in INDEX_KEYS if key in given), None)
        in_order = None if first is None else np.arange(first, first + n_cells)
        if key is None and in_order is not None:
            return in_order
        if key is None:
            raise ValueError(
                f"`{where}`: a minibatch does not say which cells it holds, so that targets and start labels cannot "
                "find them. Put their row numbers (0 to n_obs - 1, as `inference_dataloader()` orders them) into it as "
                f"{REGISTRY_KEYS.INDICES_KEY!r}; annbatch yields them with `Loader(..., return_index=True)`."
            )
        index = _column(given[key]).ravel().astype(np.int64)
        if in_order is not None and not np.array_equal(index, in_order):
            raise ValueError(
                f"`{where}` must yield the cells in the order of {key!r}, 0 to n_obs - 1; expected {first} next, found "
                f"{index[0] if len(index) else 'none'}. Do not shuffle it."
            )
        if len(index) and self.n_obs is not None and not 0 <= index.min() <= index.max() < self.n_obs:
            raise ValueError(
                f"`{where}`: {key!r} must be row numbers from 0 to {self.n_obs - 1}; found {index.min()} to "
                f"{index.max()}."
            )
        return index


class DataModuleRows:
    """Minibatches of some cells of a datamodule, in the order of ``rows``.

    Rows that increase are passed on as they come; for any other order the cells are held in memory.
    """

    def __init__(self, cells: DataModuleCells, rows: np.ndarray, batch_size: int, *, sparse: bool):
        self.cells, self.rows, self.batch_size, self.sparse = cells, rows, batch_size, sparse

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[Minibatch]:
        chosen, place = np.unique(self.rows, return_inverse=True)
        if np.array_equal(chosen, self.rows):
            yield from (tensors_of(block, self.sparse) for block in self._resized(self._chosen(chosen)))
            return
        blocks = list(self._chosen(chosen))
        held = {key: stacked([block[key] for block in blocks]) for key in blocks[0]}
        for start in range(0, len(place), self.batch_size):
            rows = place[start : start + self.batch_size]
            yield tensors_of({key: value[rows] for key, value in held.items()}, self.sparse)

    def _chosen(self, chosen: np.ndarray) -> Iterator[Block]:
        """What the datamodule yields of these cells."""
        first = 0
        for block in self.cells.in_order():
            index = block[CELL_INDEX]
            start, stop = np.searchsorted(chosen, [first, first + len(index)])
            rows = chosen[start:stop] - first
            first += len(index)
            if len(rows):
                yield {key: value if len(rows) == len(index) else value[rows] for key, value in block.items()}

    def _resized(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """The same cells in blocks of the size that was asked for."""
        waiting: list[Block] = []
        for block in blocks:
            waiting.append(block)
            if sum(len(part[CELL_INDEX]) for part in waiting) < self.batch_size:
                continue
            held = {key: stacked([part[key] for part in waiting]) for key in block}
            n = len(held[CELL_INDEX]) // self.batch_size * self.batch_size
            for start in range(0, n, self.batch_size):
                yield {key: value[start : start + self.batch_size] for key, value in held.items()}
            waiting = [{key: value[n:] for key, value in held.items()}] if n < len(held[CELL_INDEX]) else []
        if waiting:
            yield {key: stacked([part[key] for part in waiting]) for key in waiting[0]}


class DataModuleLoaders(pl.LightningDataModule):
    """Loaders of one phase: those of the datamodule, in the form that the networks read."""

    def __init__(self, cells: DataModuleCells, split: list[np.ndarray]):
        super().__init__()
        self.cells = cells
        self.train_idx, self.val_idx, self.test_idx = split
        self.n_train, self.n_val = len(split[0]), len(split[1])

    def setup(self, stage: str) -> None:
        """Give the trainer to the datamodule, which may ask it for its device."""
        if self.trainer is not None and self.trainer.world_size > 1:
            raise ValueError(
                "`datamodule`: each process would read all cells. Train on one device (`devices=1`), or on data in a "
                "file with `adata`."
            )
        self.cells.datamodule.trainer = self.trainer

    def train_dataloader(self) -> _Tensors:
        """Minibatches to train on, as the datamodule shuffles them."""
        return _Tensors(self.cells.training, self.cells.n_minibatches)

    def val_dataloader(self) -> _Tensors:
        """Minibatches to validate on."""
        return _Tensors(self.cells.held_out)

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        """Move the minibatch (Lightning walks through it recursively, which takes as long as a small layer)."""
        return to_device(batch, device)


class _Tensors:
    """A loader that starts anew each epoch."""

    def __init__(self, blocks: Callable[[], Iterator[Block]], n_minibatches: Callable[[], int] | None = None):
        self.blocks, self.n_minibatches = blocks, n_minibatches

    def __iter__(self) -> Iterator[Minibatch]:
        return (tensors_of(block, sparse=True) for block in self.blocks())

    def __len__(self) -> int:
        """Minibatches an epoch: what fades in over a phase has to know."""
        if self.n_minibatches is None:
            raise TypeError("nobody has counted the minibatches")
        return self.n_minibatches()


def len_of(x: csr_matrix) -> int:
    """Number of cells."""
    return x.shape[0]


def _as_csr(x: Any) -> csr_matrix:
    """A copy of the counts of a minibatch, of any kind that a loader may yield."""
    if isinstance(x, Counts):
        return csr_matrix((x.value.cpu().numpy(), (x.row.cpu().numpy(), x.col.cpu().numpy())), (x.n_cells, x.n_genes))
    if isinstance(x, torch.Tensor) and x.layout == torch.sparse_csr:
        x = x.cpu()
        parts = (x.values().numpy().astype(np.float32), x.col_indices().numpy(), x.crow_indices().numpy())
        return csr_matrix(parts, shape=tuple(x.shape))
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu().numpy()
    return csr_matrix(x, dtype=np.float32) if not issparse(x) else csr_matrix(x).astype(np.float32)


def _column(values: Any) -> np.ndarray:
    """One row a cell, (n, columns)."""
    values = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    return values.reshape(len(values), -1)
