"""Models that an older version saved still load, and say what they said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import scdeepclust as sdc
from scdeepclust.model._systems import SYSTEMS

SAVED = sorted((Path(__file__).parents[1] / "data").glob("saved_by_*"))


@pytest.fixture(scope="module")
def counts():
    """The data that they were trained on."""
    return sdc.datasets.simulate_counts(
        200, 60, n_clusters=3, n_batches=2, marker_log_fold_change=2.5, depth=120, seed=1
    )


@pytest.mark.parametrize("folder", SAVED, ids=lambda folder: folder.name)
@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_a_saved_model_of_an_older_version_loads(folder, system, counts):
    adata = counts.copy()
    model = getattr(sdc.model, system.name).load(str(folder / system.key), adata)
    expected = pd.read_csv(folder / system.key / "probabilities.csv")
    np.testing.assert_allclose(model.predict(soft=True), expected, atol=1e-4)
    model.write_back(adata)
    assert adata.obs[system.key].nunique() > 1


def test_there_is_a_version_to_load():
    assert SAVED
