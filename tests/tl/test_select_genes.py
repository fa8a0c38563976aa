"""Genes to cluster by: what is chosen, from where, and what is refused."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch

import scdeepclust as sdc
from scdeepclust.datasets import simulate_counts
from scdeepclust.tl import _genes, select_genes


@pytest.fixture(scope="module")
def adata():
    return simulate_counts(600, 300, n_clusters=3, n_markers=10, depth=300, inverse_dispersion=20.0)


def batches_with_genes_of_their_own():
    """Ten markers, and twenty genes that are high in one batch and flat in each."""
    rng = np.random.default_rng(0)
    batch, group = np.repeat([0, 1], 150), np.tile([0, 1, 2], 100)
    mean = np.full((300, 200), 3.0)
    mean[:, :10] = np.where(group[:, None] == np.arange(10) % 3, 7, 1)
    mean[:, 10:30] = np.where(batch[:, None] == np.arange(20) % 2, 5.9, 0.1)
    obs = pd.DataFrame({"batch": batch.astype(str)}, index=[str(i) for i in range(300)])
    return anndata.AnnData(rng.poisson(mean).astype(np.float32), obs=obs)


def test_markers_are_chosen(adata):
    chosen = select_genes(adata, 30)
    assert chosen.name == "highly_variable"
    assert chosen.index.equals(adata.var_names)
    assert chosen.sum() == 30
    assert (adata.var["marker_of"][chosen] != "none").mean() > 0.5


def test_the_choice_is_that_of_scanpy_and_leaves_the_data(adata):
    before = adata.copy()
    logged = adata.copy()
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    expected = sc.pp.highly_variable_genes(logged, n_top_genes=40, flavor="seurat", inplace=False)
    assert (select_genes(adata, 40).to_numpy() == expected["highly_variable"].to_numpy()).all()
    assert (adata.X != before.X).nnz == 0
    assert list(adata.var) == list(before.var)
    assert not set(adata.uns) - set(before.uns)


def test_genes_vary_within_batches_not_between_them():
    adata = batches_with_genes_of_their_own()
    assert select_genes(adata, 10, batch_key="batch")[:10].all()
    assert select_genes(adata, 10)[:10].sum() < 5


def test_counts_in_a_layer_or_a_file_give_the_same_genes(adata, tmp_path):
    expected = select_genes(adata, 50)
    layered = anndata.AnnData(np.zeros(adata.shape, dtype=np.float32), obs=adata.obs, var=adata.var)
    layered.layers["counts"] = adata.X
    assert (select_genes(layered, 50, layer="counts") == expected).all()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    assert (select_genes(backed, 50) == expected).all()
    assert backed.isbacked


def test_many_cells_are_looked_at_in_a_sample(adata, monkeypatch):
    looked_at = []
    real = _genes.log_normalised

    def spy(*args):
        looked_at.append(real(*args))
        return looked_at[-1]

    monkeypatch.setattr(_genes, "MAX_CELLS", 400)
    monkeypatch.setattr(_genes, "log_normalised", spy)
    chosen = select_genes(adata, 30, seed=1)
    assert (select_genes(adata, 30, seed=1) == chosen).all()
    assert [cells.n_obs for cells in looked_at] == [400, 400]
    markers = (adata.var["marker_of"] != "none").to_numpy()
    assert markers[chosen.to_numpy()].mean() > 3 * markers.mean()


def test_all_genes_stay_where_there_are_no_more(adata):
    assert select_genes(adata, 300).all()
    assert select_genes(adata).all()


def test_cells_that_would_be_empty_are_refused():
    adata = simulate_counts(100, 60, n_clusters=2, n_markers=5, depth=2.0)
    with pytest.raises(ValueError, match=r"`n_top_genes`: \d+ cells have no counts in the 3 most variable genes"):
        select_genes(adata, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_top_genes": 0}, "`n_top_genes`"),
        ({"layer": "elsewhere"}, "no layer 'elsewhere'"),
        ({"batch_key": "donor"}, "donor"),
    ],
)
def test_bad_arguments(adata, options, message):
    with pytest.raises(ValueError, match=message):
        sdc.tl.select_genes(adata, **{"n_top_genes": 20, **options})


def test_values_that_are_no_counts_are_refused(adata):
    logged = adata.copy()
    sc.pp.log1p(logged)
    with pytest.raises(ValueError, match="counts"):
        select_genes(logged, 20)


def test_torch_keeps_its_threads(adata):
    # compiled code of scanpy resets them, and training then takes many times as long on a busy machine
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        select_genes(adata, 20)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
