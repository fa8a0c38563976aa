"""The only place that looks at versions of other packages, at optional ones, or at names that are not public."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
from anndata.abc import CSRDataset
from scipy.sparse import csr_matrix


def package_versions() -> dict[str, str]:
    """Versions worth storing beside a result, as ``{distribution: version}``."""
    return {name: version(name) for name in ("scdeepclust", "scvi-tools", "torch", "anndata", "scikit-learn")}


def annbatch_reader(counts: Any) -> Callable[[np.ndarray], csr_matrix] | None:
    """A function that reads any rows of ``counts`` at once, or None unless they lie in zarr and annbatch is there.

    anndata reads one run of rows after the other, annbatch asks for all of them side by side, which is faster. It needs
    Python 3.12, so it is an extra.
    """
    if not isinstance(counts, CSRDataset) or counts.backend != "zarr" or find_spec("annbatch") is None:
        return None
    from annbatch import Loader
    from annbatch.abc import Sampler

    class TheseRows(Sampler):
        """One minibatch: the rows that are wanted just now."""

        batch_size, shuffle = None, False
        rows = np.empty(0, dtype=np.int64)

        def n_batches(self, n_obs: int) -> int:
            return 1

        def validate(self, n_obs: int) -> None:
            """Nothing to check: the rows come from us."""

        def _sample(self, n_obs: int) -> Iterator[dict]:
            yield {"requests": self.rows, "splits": [np.arange(len(self.rows))]}

    sampler = TheseRows()
    loader = Loader(batch_sampler=sampler, preload_to_gpu=False).add_datasets([counts])

    def read(rows: np.ndarray) -> csr_matrix:
        sampler.rows = rows
        return next(iter(loader))["X"]

    return read
