"""Which cells a fit trains on, and where their minibatches come from."""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule

from ._arguments import FitArguments
from ._phase import split_cells

_log = logging.getLogger(__name__)


class CellSourceMixin:
    """Splits and loaders of an AnnData object, and what a model says of a datamodule in its place."""

    adata: Any

    @property
    @abstractmethod
    def _seed(self) -> int | None:
        """Seed of this model."""

    def _split(
        self, arguments: FitArguments, train_size: float | None, validation_size: float | None, shuffle: bool
    ) -> list[np.ndarray]:
        """Training, validation and test cells."""
        asked_by = arguments.asks_for_validation()
        if (told := self._split_of_datamodule()) is not None:
            split = told
        elif (given := arguments.splitter.pop("external_indexing", None)) is not None:
            split = [np.asarray(rows, dtype=np.int64) for rows in [*given, [], []][:3]]
            if not np.array_equal(np.sort(np.concatenate(split)), np.arange(self.adata.n_obs)):
                raise ValueError(
                    "`datasplitter_kwargs`: external_indexing must name every cell once, those to leave out in the "
                    f"third of its lists; found {sum(map(len, split))} rows for {self.adata.n_obs} cells."
                )
        else:
            if asked_by and train_size is None:
                _log.info("10%% of the cells are held out, for %s; `train_size` changes that.", asked_by)
            share = train_size if train_size is not None else 0.9 if asked_by else 1.0
            split = split_cells(self.adata.n_obs, share, validation_size, self._seed or 0, shuffle)
        if asked_by and not len(split[1]):
            raise ValueError(self._no_validation(asked_by))
        return split

    def _no_validation(self, asked_by: str) -> str:
        if self._split_of_datamodule() is not None:
            return f"`datamodule.val_dataloader()` yields no cells, but {asked_by} needs some."
        return (
            f"`train_size` leaves no cells for validation, but {asked_by} needs some. Give for example "
            "`train_size=0.9`, or leave it out."
        )

    @abstractmethod
    def _check_source(self, datamodule: LightningDataModule | None, splits: dict[str, Any]) -> None:
        """Raise a ValueError unless there are cells to train on, and the split is asked of who makes it."""

    @abstractmethod
    def _take_datamodule(self, datamodule: LightningDataModule) -> None:
        """Make its cells the data of the model."""

    @abstractmethod
    def _split_of_datamodule(self) -> list[np.ndarray] | None:
        """Training, validation and test cells, if a datamodule tells them."""

    def _batch_size(self, asked: int) -> int:
        """Cells in a minibatch."""
        return asked

    def _loaders(self, split: list[np.ndarray], options: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the ``train`` of scvi-tools that tell it where minibatches come from."""
        indexing = {"external_indexing": [rows.copy() for rows in split], "seed": self._seed or 0}
        return {"datasplitter_kwargs": options | indexing}
