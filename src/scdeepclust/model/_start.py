"""Where the clusters of all models start: labels found in denoised expression."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from scvi import settings

from scdeepclust.train import given_labels, initial_labels, one_thread

# Principal components of denoised expression that start labels are looked for in.
N_START_COMPONENTS = 20

# Largest dense block (cells x genes) from which those components are computed: 80 MB.
MAX_DENSE_ENTRIES = 20_000_000


class StartLabelsMixin:
    """Start labels of the clustering phase, and the denoised expression that they are looked for in."""

    # of the model that this is mixed into
    module: Any
    adata: Any
    init_params_: dict
    _init: Any
    _n_init: int
    _encode: Callable
    _minibatches: Callable

    def _start_labels(self, cells: np.ndarray, points: np.ndarray | None = None) -> np.ndarray:
        """Labels (n,) int64 for the clustering phase to start from, largest cluster first.

        ``points`` are the start points of these cells where the caller has them already.
        """
        n_clusters = self.module.n_clusters or None
        if isinstance(self._init, str):
            points = self._start_points(cells) if points is None else points
            labels = initial_labels(points, self._init, n_clusters, n_init=self._n_init, seed=start_seed())
        else:
            labels = given_labels(self._init, self.adata.n_obs, n_clusters)[cells]
        order = np.argsort(-np.bincount(labels), kind="stable")
        labels = np.argsort(order)[labels]
        self.initial_labels_: np.ndarray | None = labels.astype(str)
        self._keep_n_clusters(len(order))
        return labels

    def _start_points(self, cells: np.ndarray) -> np.ndarray:
        """Where clusters are looked for, (n, P): denoised expression, unless a model knows better."""
        return self._denoised_points(cells)

    def _keep_n_clusters(self, n_clusters: int) -> None:
        """Loading builds the module from the arguments of the constructor: let them have the number that was found."""
        self.init_params_["non_kwargs"]["n_clusters"] = n_clusters

    def _denoised_points(
        self, cells: np.ndarray, transform: Callable[[np.ndarray], np.ndarray] = np.asarray
    ) -> np.ndarray:
        """Principal components of denoised expression, (n, P), where distances are Hellinger distances.

        Distances there weigh genes as the data do; in the latent space, dimensions that carry noise are about as wide
        as those that carry cell types. ``transform`` is applied to the square roots of the expected shares first.
        """
        from sklearn.decomposition import PCA

        # the components come from a bounded number of cells, so that no cells x genes matrix is ever dense
        n_sample = min(len(cells), max(1000, MAX_DENSE_ENTRIES // self.module.n_input))
        sample = np.sort(np.random.default_rng(start_seed()).choice(cells, n_sample, replace=False))
        n_components = min(N_START_COMPONENTS, n_sample - 1, self.module.n_input)
        with one_thread():
            pca = PCA(n_components, svd_solver="randomized", random_state=start_seed())
            pca.fit(np.concatenate([transform(block) for block in self._denoised_blocks(sample)]))
        return np.concatenate([pca.transform(transform(block)) for block in self._denoised_blocks(cells)])

    @torch.inference_mode()
    def _denoised_blocks(self, cells: np.ndarray) -> Iterator[np.ndarray]:
        for tensors in self._minibatches(indices=cells):
            z = self._encode(tensors)["z_mean"]
            yield self.module.denoised_expression(z, self.module.covariates(tensors)).cpu().numpy()


def start_seed() -> int:
    """The seed of scvi-tools, or 0: start labels are the same in each process of a distributed fit."""
    return settings.seed or 0
