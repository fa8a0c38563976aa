from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scanpy as sc
import scvi
from scipy.stats import kstest, norm

import scdeepclust as sdc
from scdeepclust.model._systems import SYSTEMS
from scdeepclust.tl._rank_genes import _named, _of_all
from scdeepclust.tl._unused_counts import gene_test

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


@pytest.fixture(autouse=True)
def _seed():
    scvi.settings.seed = 0
    yield
    scvi.settings.seed = None


@pytest.fixture
def adata():
    return sdc.datasets.simulate_counts(320, 150, n_clusters=3, marker_log_fold_change=3, depth=400, seed=1)


def fitted(name: str, adata, n_clusters: int = 3, **kwargs):
    model_class = getattr(sdc.model, name)
    model_class.setup_anndata(adata)
    model = model_class(adata, n_clusters, n_latent=8, **({"n_facets": 1} if name == "MFCVAE" else {}), **kwargs)
    model.train(pretrain_epochs=60, max_epochs=4, **QUIET)
    model.write_back(confidence="posterior")
    return model


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_the_markers_of_each_cluster_are_found(system, adata):
    model = fitted(system.name, adata)
    table = sdc.tl.rank_genes(model)
    types = adata.obs.groupby(system.key, observed=True)["cell_type"].agg(lambda x: x.mode()[0])
    for name, group in table.groupby("group"):
        planted = set(adata.var_names[adata.var["marker_of"] == types[name]])
        found = group[(group["pvals_adj"] < 0.05) & (group["scores"] > 0)]
        assert len(planted & set(found["names"])) >= 0.7 * len(planted)
        assert len(set(found["names"]) - planted) <= 2
        assert set(group["names"][:10]) <= planted
        assert (group["scores"].diff()[1:] <= 0).all()
    assert ("gate" in table) == (system.name == "IDC")
    assert not table.isna().any(axis=None)


def test_scanpy_draws_and_reads_the_table(adata, tmp_path):
    table = sdc.tl.rank_genes(fitted("GMVAE", adata), key_added="honest")
    frame = sc.get.rank_genes_groups_df(adata, None, key="honest")
    assert list(frame["names"]) == list(table["names"])
    for column in ("scores", "logfoldchanges", "pvals", "pvals_adj"):
        np.testing.assert_allclose(frame[column], table[column], rtol=1e-5, atol=1e-12)
    adata.obs["gmvae"] = adata.obs["gmvae"].cat.rename_categories({"0": "T cells", "1": "B/plasma", "2": "été"})
    sc.pl.rank_genes_groups_dotplot(adata, key="honest", n_genes=2, show=False)
    plt.close("all")
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = sc.read_h5ad(tmp_path / "a.h5ad")
    assert sc.get.rank_genes_groups_df(again, None, key="honest").equals(frame)


def test_a_population_cut_in_two_has_no_markers():
    """Counts of one population: the clusters are noise, and p-values are uniform although they were found in it."""
    rng, everywhere = np.random.default_rng(0), []
    for seed in range(3):
        mean = np.exp(rng.normal(0, 1, 120))
        counts = rng.poisson(rng.gamma(3, 500 * mean / mean.sum() / 3, size=(300, 120)))
        model = fitted("GMVAE", sc.AnnData(counts.astype(np.float32)), 2, seed=seed)
        codes = model.get_latent_representation()
        side = codes @ np.linalg.svd(codes - codes.mean(axis=0))[2][0]
        model.adata.obs["cut"] = np.where(side > np.median(side), "high", "low")
        table = sdc.tl.rank_genes(model, "cut")
        assert (table["pvals_adj"] < 0.05).sum() <= 1
        halves = model._halves(np.arange(300), 1, independent=True)[0]
        labels = (model.adata.obs["cut"] == "high").to_numpy().astype(int)
        tests = [gene_test(halves.counts[1 - i], _named(halves.points[i], labels) == 1) for i in (0, 1)]
        p = [test.p for test in tests]
        everywhere.append(p[0])
        table = sdc.tl.rank_genes(model, "cut", n_halvings=1).query("group == 'high'").set_index("names")["pvals"]
        np.testing.assert_allclose(table[model.gene_names_], _of_all(p, [test.score for test in tests]))
        circular = gene_test(halves.counts[0] + halves.counts[1], labels == 1).p
        assert kstest(circular, "uniform").pvalue < 1e-3
    assert kstest(np.concatenate(everywhere), "uniform").pvalue > 0.01


def test_some_cells_and_renamed_clusters(adata):
    model = fitted("SCDeepCluster", adata)
    adata.obs["mine"] = adata.obs["scdeepcluster"].astype(object)
    adata.obs.loc[adata.obs_names[:40], "mine"] = None
    adata.obs["mine"] = adata.obs["mine"].replace({"0": "a", "1": "b"}).astype("category")
    adata.obs["mine"] = adata.obs["mine"].cat.reorder_categories(["b", "a", "2"]).cat.add_categories("none")
    table = sdc.tl.rank_genes(model, "mine")
    assert list(table["group"].unique()) == ["b", "a", "2"]  # as the categories are ordered
    assert adata.uns["rank_genes_groups"]["params"]["groupby"] == "mine"


def test_mistakes_are_named(adata):
    model = fitted("SCDeepCluster", adata)
    adata.obs["one"] = "a"
    with pytest.raises(ValueError, match="`key`: there is no column 'none'.*write_back"):
        sdc.tl.rank_genes(model, "none")
    with pytest.raises(ValueError, match="`key`: column 'one' must hold at least two clusters"):
        sdc.tl.rank_genes(model, "one")
    with pytest.raises(ValueError, match="`n_halvings` must be a whole number"):
        sdc.tl.rank_genes(model, n_halvings=0)
    with pytest.raises(TypeError, match="`model` must be a model"):
        sdc.tl.rank_genes(adata)
    with pytest.raises(RuntimeError, match="train"):
        sdc.tl.rank_genes(sdc.model.SCDeepCluster(adata, 3))


@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
def test_one_p_value_of_several_is_never_too_small_and_keeps_what_all_say(shared):
    rng = np.random.default_rng(0)
    common = rng.normal(size=20_000)
    z = np.sqrt(shared) * common + np.sqrt(1 - shared) * rng.normal(size=(4, 20_000))
    p = _of_all(list(2 * norm.sf(np.abs(z))), list(z))
    assert kstest(p, "uniform", alternative="greater").pvalue > 0.01
    if shared == 1:
        assert kstest(p, "uniform").pvalue > 0.01  # four times the same says what one of them says
    one = 2 * norm.sf(3.0)
    same, torn = [np.full(1, one)] * 2, [np.ones(1), -np.ones(1)]
    np.testing.assert_allclose(_of_all(same, [np.ones(1)] * 2), one)
    np.testing.assert_allclose(_of_all(same, torn), 1)
    assert _of_all([np.zeros(1)] * 2, [np.ones(1)] * 2)[0] < 1e-200
