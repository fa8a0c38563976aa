"""A model fitted again as it was, to other counts of the same cells."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.sparse import csr_matrix, vstack

from scdeepclust.train import is_collection, kept_random_states

from ._halves import csr_of
from ._start import StartsMixin

# Arguments of a constructor that another fit has of its own.
OWN = ("n_clusters", "seed", "extra_payload_autotune")


class RefitMixin(StartsMixin):
    """The same fit of the same cells, sequenced again."""

    phases_: list[tuple[str, int]]
    fit_options_: dict[str, Any]
    init_params_: dict[str, Any]

    def _halved_counts(self, cells: np.ndarray, seed: int) -> tuple[csr_matrix, csr_matrix]:
        """The counts of these cells (n, G), each molecule in one of two halves at random."""
        generator = torch.Generator().manual_seed(seed)
        halves: tuple[list[csr_matrix], list[csr_matrix]] = ([], [])
        for tensors in self._minibatches(indices=cells):
            counts = self.module._get_inference_input(tensors)["counts"]
            for half, blocks in zip(counts.halved(generator), halves, strict=True):
                blocks.append(csr_of(half))
        first, second = (vstack(blocks, format="csr") for blocks in halves)
        return first, second

    def _counts_of(self, cells: np.ndarray) -> csr_matrix:
        """The counts of these cells (n, G)."""
        minibatches = self._minibatches(indices=cells)
        return vstack([csr_of(self.module._get_inference_input(tensors)["counts"]) for tensors in minibatches], "csr")

    @contextmanager
    def _refit(self, counts: csr_matrix, cells: np.ndarray, seed: int) -> Iterator[Self]:
        """A model made and trained as this one was, of these counts (n, G) of its cells, with another seed.

        The random states are afterwards what they were before.
        """
        cls = type(self)
        again = AnnData(
            counts.astype(np.float32),
            obs=self._obs_of(cells),
            var=pd.DataFrame(index=self.gene_names_),
        )
        # as many steps where there are fewer cells
        epochs = {name: 0.0 for name, _ in self.phases_}
        for name, n in self.phases_:
            epochs[name] += n * self.adata.n_obs / len(cells)
        *before, last = (int(np.ceil(n)) for n in epochs.values())
        with kept_random_states(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong with the fit has been said of the fit
            cls.setup_anndata(again, **self.registry_["setup_args"] | {"layer": None})
            refit = cls(again, seed=seed, **self._arguments_of_refit(cells))
            try:
                self._hand_down(refit)
                refit.train(last, sum(before), accelerator=_accelerator(self.device), devices=1, **self.fit_options_)
                if refit.interrupted_:  # `train` keeps half a fit, of which nothing can be learnt here
                    raise KeyboardInterrupt
                yield refit
            finally:  # scvi-tools would keep the data
                cls._setup_adata_manager_store.pop(again.uns["_scvi_uuid"], None)
                cls._per_instance_manager_store.pop(refit.id, None)

    def _obs_of(self, cells: np.ndarray) -> pd.DataFrame:
        """What is known of cells, by number."""
        if is_collection(self.adata):
            columns = {name: np.asarray(self.adata.obs[name])[cells] for name in self.adata.obs.keys()}
            return pd.DataFrame(columns, index=cells.astype(str))
        return pd.DataFrame(self.adata.obs).iloc[cells].set_axis(cells.astype(str), axis=0)

    def _arguments_of_refit(self, cells: np.ndarray) -> dict[str, Any]:
        """Arguments of the constructor, with what was to be found still to be found."""
        arguments = {name: value for name, value in self.init_params_["non_kwargs"].items() if name not in OWN}
        if isinstance(self._init, str):
            return arguments | {"n_clusters": None if self.finds_n_clusters_ else self.n_clusters}
        return arguments | {"init": np.asarray(self._init)[cells]}

    def _hand_down(self, refit: Self) -> None:
        """Give to another fit what it does not learn itself."""


def _accelerator(device: torch.device) -> str:
    """The kind of a device, as Lightning names it."""
    return "gpu" if device.type == "cuda" else device.type
