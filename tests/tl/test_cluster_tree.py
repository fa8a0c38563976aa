from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scanpy as sc
import scvi
from scipy.cluster.hierarchy import is_valid_linkage
from sklearn.metrics import adjusted_rand_score

import scdeepclust as sdc
from scdeepclust.model._systems import SYSTEMS

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


@pytest.fixture(autouse=True)
def _seed():
    scvi.settings.seed = 0
    yield
    scvi.settings.seed = None


@pytest.fixture
def adata():
    """Four types that are far apart, two batches."""
    return sdc.datasets.simulate_counts(
        320, 150, n_clusters=4, n_batches=2, marker_log_fold_change=3.5, depth=500, seed=1
    )


def fitted(name: str, adata, n_clusters: int | None, **kwargs):
    model_class = getattr(sdc.model, name)
    model_class.setup_anndata(adata, batch_key="batch" if "batch" in adata.obs else None)
    options = {"n_facets": 1} if name == "MFCVAE" else {}
    if "alpha" in kwargs:
        options["alpha"] = kwargs.pop("alpha")
    model = model_class(adata, n_clusters, n_latent=8, **options)
    model.train(**{"pretrain_epochs": 100, "max_epochs": 5} | QUIET | kwargs)
    return model


def one_population(n: int, n_genes: int, seed: int):
    """Negative binomial counts of cells along a gradient in some of the genes."""
    rng = np.random.default_rng(seed)
    along = rng.normal(size=(n, 1)) * np.where(rng.random(n_genes) < 0.15, rng.normal(0, 0.5, n_genes), 0)
    mean = np.exp(rng.normal(0, 1.2, n_genes) + along)
    counts = rng.poisson(rng.gamma(5, 300 * mean / mean.sum(axis=1, keepdims=True) / 5))
    return sc.AnnData(counts[:, counts.sum(axis=0) > 0].astype(np.float32))


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_one_population_is_one_cluster_and_four_types_are_four(system, adata):
    model = fitted(system.name, adata, None)
    assert model.n_clusters == 4
    assert adjusted_rand_score(adata.obs["cell_type"], model.predict()) > 0.9
    alone = fitted(system.name, one_population(250, 120, seed=1), None)
    assert alone.n_clusters == 1
    assert set(alone.predict()) == {"0"}
    alone.write_back(confidence="posterior")
    assert list(alone.adata.obs[system.key].cat.categories) == ["0"]
    with pytest.raises(ValueError, match="one cluster"):
        sdc.tl.cluster_tree(alone)


def test_a_type_that_was_cut_in_two_is_seen_as_one(adata):
    truth = adata.obs["cell_type"].cat.codes.to_numpy()
    largest = np.bincount(truth).argmax()
    cut = np.where((truth == largest) & (np.arange(len(truth)) % 2 == 0), 9, truth)
    sdc.model.SCDeepCluster.setup_anndata(adata, batch_key="batch")
    model = sdc.model.SCDeepCluster(adata, 5, init=cut, n_latent=8)
    model.train(pretrain_epochs=100, max_epochs=0, **QUIET)
    model.predict = lambda: cut.astype(str)  # whatever the model would make of such labels
    tree = sdc.tl.cluster_tree(model)
    weakest = tree.splits.iloc[0]
    assert {weakest["left"], weakest["right"]} == {str(largest), "9"}
    assert not weakest["stands"]
    assert weakest["separation"] < 1
    assert weakest["left_genes"] == weakest["right_genes"] == ""  # no gene tells halves of one type apart
    assert tree.splits["stands"][1:].all()
    groups = tree.cut()
    assert groups[str(largest)] == groups["9"]
    assert len(set(groups.values())) == 4


def test_the_level_is_an_argument(adata):
    tree = sdc.tl.cluster_tree(fitted("SCDeepCluster", adata, 4))
    weakest = tree.splits["p"].max()
    assert 0 <= weakest < 1e-4
    assert len(set(tree.cut(0.05).values())) == 4
    assert len(set(tree.cut(0.05, separation=tree.splits["separation"].max() + 1).values())) == 1
    sdc.model.GMVAE.setup_anndata(adata)
    for alpha in (0, 1, "0.1", True):
        with pytest.raises(ValueError, match="`alpha` must be above 0 and below 1"):
            sdc.model.GMVAE(adata, alpha=alpha)
    # at a level that nothing passes all is one
    assert fitted("GMVAE", adata, None, alpha=1e-320).n_clusters == 1


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_merged_clusters_are_one_in_all_that_the_model_says(system, adata, tmp_path):
    model = fitted(system.name, adata, 4)
    before, key = model.predict(), system.key
    model.write_back(confidence="posterior")
    adata.uns[f"{key}_colors"] = ["red", "green", "blue", "black"]
    sizes = np.bincount(before.astype(int))
    pair = sorted(sdc.tl.cluster_tree(model).splits.loc[0, ["left", "right"]])
    model.merge_clusters(dict.fromkeys(pair, "a"), max_epochs=3, **QUIET)
    after = model.predict()
    merged = np.where(np.isin(before, pair), "m", before)
    # clusters of a map are regions, and types that are equally far apart need not touch
    assert adjusted_rand_score(merged, after) > (0.8 if system.name == "SOMVAE" else 0.97)
    assert model.n_clusters == model.predict(soft=True).shape[1] == 3
    assert (np.diff(np.bincount(after.astype(int))) <= 0).all()
    model.write_back(confidence="posterior")
    # a cluster has the colour of the largest of those that it is made of
    colors = dict(zip(adata.obs[key].cat.categories, adata.uns[f"{key}_colors"], strict=True))
    of_merged = after[np.isin(before, pair)][0]
    assert colors[of_merged] == ["red", "green", "blue", "black"][int(pair[0])]  # the larger one
    assert sizes[int(pair[0])] >= sizes[int(pair[1])]
    if system.name == "IDC":
        assert adata.varm["idc_global_gates"].shape[1] == 3
    model.save(tmp_path / "m", save_anndata=False)
    assert (type(model).load(tmp_path / "m", adata=adata).predict() == after).all()
    with pytest.raises(ValueError, match="`groups` must map clusters"):
        model.merge_clusters({"7": "a"})
    with pytest.raises(ValueError, match="merges nothing"):
        model.merge_clusters({"0": "a"})
    model.merge_clusters({"0": "a", "1": "a", "2": "a"}, max_epochs=1, **QUIET)
    assert set(model.predict()) == {"0"}


def test_what_fails_in_a_merge_leaves_the_model_as_it_was(adata, monkeypatch):
    model = fitted("GMVAE", adata, 4)
    before = model.predict(soft=True)
    monkeypatch.setattr(type(model), "_end_training", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.merge_clusters({"0": "a", "1": "a"}, max_epochs=1, **QUIET)
    monkeypatch.undo()
    assert model.predict(soft=True).equals(before)
    assert model._given_start is None


def test_the_table_says_what_the_tree_is(adata):
    model = fitted("GMVAE", adata, 4)
    tree = sdc.tl.cluster_tree(model)
    assert is_valid_linkage(tree.linkage)
    assert tree.clusters == ["0", "1", "2", "3"]
    root = tree.splits.iloc[-1]
    assert sorted((root["left"] + "+" + root["right"]).split("+")) == tree.clusters
    assert root["n_left"] + root["n_right"] == adata.n_obs
    assert (tree.splits["repeats"] > 0.95).all()
    assert (tree.splits["batches"] == 1).all()
    # genes of a split are markers of a type on that side, and not of one on the other
    labels = model.predict()
    type_of = {k: adata.obs["cell_type"][labels == k].mode()[0] for k in tree.clusters}
    for _, row in tree.splits.iterrows():
        for side in ("left", "right"):
            best = row[f"{side}_genes"].split(" (")[0]
            marked = adata.var.loc[best, "marker_of"]
            assert marked in {type_of[k] for k in row[side].split("+")}


def test_the_tree_is_drawn_by_us_and_by_scanpy(adata):
    model = fitted("GMVAE", adata, 4)
    model.write_back(adata, confidence="posterior")
    tree = sdc.tl.cluster_tree(model)
    ax = sdc.pl.cluster_tree(tree)
    assert [label.get_text().split()[0] for label in ax.get_yticklabels()] == tree.clusters
    by_height = sorted(zip(ax.get_yticks(), tree.clusters, strict=True))
    assert [name for _, name in by_height] == tree.to_uns("gmvae")["categories_ordered"]
    adata.uns["dendrogram_gmvae"] = tree.to_uns("gmvae")
    assert sc.pl.dendrogram(adata, "gmvae", show=False) is not None
    dots = sc.pl.dotplot(adata, adata.var_names[:3], groupby="gmvae", dendrogram=True, return_fig=True)
    assert dots.categories_order == tree.to_uns("gmvae")["categories_ordered"]
    plt.close("all")


def test_a_tree_is_kept_with_its_results_only(adata, tmp_path):
    model = fitted("GMVAE", adata, 4)
    tree = sdc.tl.cluster_tree(model)
    with pytest.raises(ValueError, match="`key`: there are no results 'gmvae'.*write_back"):
        tree.write(adata, "gmvae")
    model.write_back(adata, confidence="posterior")
    tree.write(adata, "gmvae")
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = sc.read_h5ad(tmp_path / "a.h5ad")
    assert again.uns["gmvae"]["tree"]["splits"]["separation"].tolist() == tree.splits["separation"].tolist()
    assert sc.pl.dendrogram(again, "gmvae", show=False) is not None
    assert sc.pl.dotplot(again, again.var_names[:3], groupby="gmvae", dendrogram=True, return_fig=True) is not None
    plt.close("all")
    model.write_back(adata, confidence="posterior")
    assert "tree" not in adata.uns["gmvae"]
    adata.obs["gmvae"] = adata.obs["gmvae"].cat.rename_categories({"0": "zero"})
    with pytest.raises(ValueError, match="are not those of the tree"):
        tree.write(adata, "gmvae")


def test_it_repeats(adata):
    model = fitted("SCDeepCluster", adata, 4)
    first, second = sdc.tl.cluster_tree(model), sdc.tl.cluster_tree(model)
    np.testing.assert_array_equal(first.linkage, second.linkage)


def test_halves_of_counts_add_up_and_are_binomial():
    import torch

    from scdeepclust.nn import counts_from_dense

    x = torch.randint(0, 50, (300, 40)).float()
    a, b = counts_from_dense(x).halved(torch.Generator().manual_seed(0))
    assert torch.equal(a.to_dense() + b.to_dense(), x)
    assert (a.value > 0).all()
    first = a.to_dense()
    assert first.sum() / x.sum() == pytest.approx(0.5, abs=0.01)
    assert ((first - x / 2).square().sum() / x.sum()) == pytest.approx(0.25, rel=0.05)  # n p (1 - p)
