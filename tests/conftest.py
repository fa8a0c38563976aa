from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import anndata
import numpy as np
import pandas as pd
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


@pytest.fixture(scope="session")
def tiny() -> anndata.AnnData:
    """120 cells x 60 genes of 3 clusters, with two batches (text), a kit (categories) and an age (numbers)."""
    adata = simulate_counts(120, 60, n_clusters=3, n_batches=2, marker_log_fold_change=2.5, depth=120, seed=1)
    adata.obs["kit"] = pd.Categorical.from_codes(np.arange(120) % 2, ["a", "b"])
    adata.obs["age"] = np.linspace(0, 1, 120)
    adata.obs["batch"] = adata.obs["batch"].astype(str)
    adata.obs["day"], adata.obs["donor"] = np.arange(120) % 4, np.arange(120) // 4
    return adata


@pytest.fixture(scope="session")
def saved_models(tiny: anndata.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small trained model of each class, on the cells of `tiny`."""
    import scvi

    import scdeepclust as sdc

    folder = tmp_path_factory.mktemp("models")
    more = {"SOMVAE": {"grid": (3, 3)}, "MFCVAE": {"n_facet_clusters": 2}}
    for name in sdc.model.__all__:
        scvi.settings.seed = 0
        model_cls, adata = getattr(sdc.model, name), tiny.copy()
        covariates = {"categorical_covariate_keys": ["kit"], "continuous_covariate_keys": ["age"]}
        time = {"time_key": "day", "trajectory_key": "donor"} if name == "SOMVAE" else {}
        model_cls.setup_anndata(adata, batch_key="batch", **covariates, **time)
        model = model_cls(adata, n_clusters=3, n_hidden=16, n_latent=4, **more.get(name, {}))
        model.train(pretrain_epochs=4, max_epochs=1, enable_progress_bar=False, accelerator="cpu")
        model.save(str(folder / name))
    scvi.settings.seed = None
    return folder


@pytest.fixture
def loaded(tiny: anndata.AnnData, saved_models: Path) -> Callable[..., Any]:
    """Load the model of a class, by default with a copy of `tiny` as its own data."""
    import scdeepclust as sdc

    def load(name: str, adata: anndata.AnnData | bool | None = None) -> Any:
        own = tiny.copy() if adata is None else adata
        return getattr(sdc.model, name).load(str(saved_models / name), own, accelerator="cpu")

    return load
