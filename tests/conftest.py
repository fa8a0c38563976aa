from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import anndata
import pytest

from scdeepclust.datasets import simulate_counts

_DATA = Path(os.environ.get("SCDEEPCLUST_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def _simulated() -> anndata.AnnData:
    return simulate_counts(400, 200, n_clusters=4, n_batches=2, marker_log_fold_change=2.5, depth=120, seed=1)


@pytest.fixture
def adata(_simulated: anndata.AnnData) -> anndata.AnnData:
    """400 cells x 200 genes, 4 clusters in `cell_type`, 2 batches. A copy: a test may do what it likes with it."""
    return _simulated.copy()


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], anndata.AnnData]:
    """Read a labelled data set by name; the test is skipped where the file is not there."""

    def read(name: str) -> anndata.AnnData:
        path = _DATA / f"{name}.h5ad"
        if not path.exists():
            pytest.skip(f"{path} is missing; point SCDEEPCLUST_DATA to the folder that holds it")
        return anndata.read_h5ad(path)

    return read
