from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

import scdeepclust as sdc
from scdeepclust.pl._report import _figures
from scdeepclust.tl._report_facts import Facts, facts_of, facts_of_comparison


@pytest.fixture
def result(adata):
    """What `write_back` leaves, without a model, with one fault of each kind."""
    codes = adata.obs["cell_type"].cat.codes.to_numpy().copy()
    rng = np.random.default_rng(0)
    first = adata.obs["batch"].to_numpy() == adata.obs["batch"].cat.categories[0]
    codes[rng.choice(np.flatnonzero(codes == 0), 12, replace=False)] = 4  # few cells, and no gene of its own
    codes[(codes == 1) & first] = 5  # one batch
    labels = pd.Categorical(codes.astype(str))
    confidence = np.where(codes == 3, 0.4, 0.9)
    probabilities = np.full((adata.n_obs, 6), 0.02)
    probabilities[np.arange(adata.n_obs), codes] = 0.9
    adata.obs["sys"], adata.obs["sys_confidence"] = labels, confidence
    adata.obsm["sys_probabilities"] = probabilities
    adata.obsm["X_umap"] = rng.normal(size=(adata.n_obs, 2)) + 6 * np.c_[np.cos(codes), np.sin(codes)]
    versions = {"scdeepclust": "9.9", "torch": "2"}
    adata.uns["sys"] = {"model": "GMVAE", "setup": {"batch_key": "batch", "labels_key": "cell_type"}, "seed": 3,
                        "params": {"n_clusters": 7}, "phases": {"vae": 5, "mixture": 2}, "versions": versions,
                        "n_clusters": 7, "n_active": 6}  # fmt: skip
    return adata


class Page(HTMLParser):
    """Tags with their attributes, and what is written."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text = [], ""
        self.source = path.read_text()
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def csv(self, name):
        (link,) = [a["href"] for tag, a in self.tags if tag == "a" and a.get("download") == name]
        return pd.read_csv(io.BytesIO(base64.b64decode(link.partition("base64,")[2])), dtype={"cluster": str})


def test_warnings_say_in_words_what_is_wrong(result):
    warnings = " ".join(facts_of(result, None, None, None).warnings)
    few = result.obs["sys"].value_counts()["4"]
    assert f"Cluster 4 has {few} cells." in warnings
    assert "Cluster 3 has median confidence 0.40." in warnings
    assert "Cluster 5 comes from one batch: 100% of it is batch_0" in warnings
    assert "1 of 7 clusters have no cells." in warnings
    assert "Cluster 2" not in warnings
    verdicts = facts_of(result, None, None, None).clusters["verdict"]
    assert verdicts[["2", "3", "5"]].tolist() == ["safe", "look again", "look again"]


def test_halves_of_one_type_have_no_genes_of_their_own(result):
    codes = result.obs["cell_type"].cat.codes.to_numpy().copy()
    half = np.flatnonzero(codes == 0)[::2]
    codes[half] = 4
    result.obs["sys"] = pd.Categorical(codes.astype(str))
    result.obs["sys_confidence"] = 1.0
    clusters = Facts(result, "sys").clusters
    for name in "04":
        assert clusters.loc[name, "why"] == "has no gene that marks it against all other clusters"
    assert (clusters.loc[list("123"), "verdict"] == "safe").all()


def test_a_cluster_of_every_donor_is_no_cluster_of_one_donor(result):
    """A batch that has most of the cells has most of each cluster too."""
    result.obs["batch"] = pd.Categorical(np.where(np.arange(result.n_obs) < 20, "small", "large"))
    assert "comes from one" not in " ".join(facts_of(result, "sys", None, None).warnings)


def test_markers_are_those_that_were_simulated(result):
    result.obs["sys"] = result.obs["cell_type"]
    result.obs["sys"] = result.obs["sys"].cat.rename_categories(list("wxyz"))
    facts = Facts(result, "sys")
    for name, kind in zip("wxyz", result.obs["cell_type"].cat.categories, strict=True):
        best = facts.markers.loc[facts.markers["cluster"] == name].head(4)
        assert (result.var.loc[best["gene"], "marker_of"] == kind).all()
        cells = result.obs["sys"] == name
        gene = best.iloc[0]
        values = result[:, gene["gene"]].X.toarray().ravel() > 0
        assert gene["share_in_cluster"] == pytest.approx(values[cells].mean())
        assert gene["share_elsewhere"] == pytest.approx(values[~cells].mean())
    assert facts.uncertain_cells() is not None


def test_a_strong_gene_that_leaks_into_all_cells_still_names_its_cluster(result):
    """Insulin is in every droplet of a pancreas, and no other gene marks a beta cell better."""
    counts = result.X.toarray()
    own = (result.obs["cell_type"] == result.obs["cell_type"].cat.categories[1]).to_numpy()
    counts[:, 0] = np.where(own, 60, 2)
    result.X = csr_matrix(counts)
    result.obs["sys"] = result.obs["cell_type"]
    facts = Facts(result, "sys")
    best = facts.markers.groupby("cluster").head(4)
    row = best[best["gene"] == result.var_names[0]].iloc[0]
    assert row["cluster"] == result.obs["cell_type"].cat.categories[1]
    assert row["share_elsewhere"] == 1


def test_a_check_of_the_batches_is_part_of_it(result, tmp_path):
    facts = facts_of(result, None, None, None)
    direct = sdc.tl.check_batches(result, "sys", "batch")
    assert facts.batch_check.reset_index(drop=True).equals(direct.reset_index(drop=True))
    assert direct["twin"][["1", "5"]].tolist() == ["5", "1"]  # the cells of one type, by batch
    (told,) = [warning for warning in facts.warnings if warning.startswith("Cluster 5 comes from one batch")]
    assert told.endswith(", and it differs from cluster 1 by no more than batches differ.")
    page = Page(sdc.tl.report(result, tmp_path / "page.html"))
    assert "cluster 5 split from 1 by batch batch_0" in page.text
    assert page.csv("check_of_the_batches.csv").set_index("cluster")["twin"]["5"] == 1
    del result.uns["sys"]["setup"]["batch_key"]
    assert facts_of(result, None, None, None).batch_check is None


def test_new_cells_are_counted(result, tmp_path):
    result.obs["sys_novelty"] = np.where(result.obs["sys"] == "2", 0.99, 0.5)
    facts = facts_of(result, None, None, None)
    n = int((result.obs["sys"] == "2").sum())
    assert facts.novelty.loc[["2", "3", "all cells"], "new"].tolist() == [n, 0, n]
    assert "Cluster 2 holds cells that the reference does not know: 100% of it." in facts.warnings
    page = Page(sdc.tl.report(result, tmp_path / "page.html"))
    assert f"{n} of them ({n / result.n_obs:.0%}) fit their cluster worse" in page.text


def test_the_page_says_what_was_left_out_and_how_long_it_took(result, tmp_path):
    result.uns["sys"] |= {"n_cells": result.n_obs, "n_genes": 77, "seconds": 12.3, "command": "scdeepclust cluster x"}
    page = Page(sdc.tl.report(result, tmp_path / "page.html"))
    n_uncertain = int((result.obs["sys"] == "3").sum())
    for words in (
        f"{n_uncertain} cells ({n_uncertain / result.n_obs:.1%}) have one below 0.6.",
        f"{result.n_obs}, all learnt from; none was left out",
        f"{result.n_vars} in the file, 77 of them learnt from",
        "12 seconds",
        "scdeepclust cluster x",
    ):
        assert words in page.text
    totals = np.asarray(result.X.sum(axis=1)).ravel()
    median = page.csv("clusters.csv").set_index("cluster")["median counts"]["3"]
    assert median == int(np.median(totals[result.obs["sys"] == "3"]))


def test_the_page_is_complete_and_asks_for_nothing(result, tmp_path):
    """And every table is there as csv."""
    before = set(result.obs), set(result.obsm), set(result.uns), result.X.copy()
    page = Page(sdc.tl.report(result, tmp_path / "page.html"))
    check_tables(page, result)
    assert (set(result.obs), set(result.obsm), set(result.uns)) == before[:3]
    assert (result.X != before[3]).nnz == 0
    headings = re.findall(r"<h2[^>]*>([^<]*)", page.source)
    assert headings == ["Clusters", "Cells", "Genes of the clusters", "Batches", "Known types", "Uncertain cells",
                        "What was done", "Do it again"]  # fmt: skip
    # nothing from outside: no address of the network, and all that is loaded lies in the file
    code = re.sub(r"data:[\w/;=-]*base64,[^\"]*", "", page.source)
    assert not re.search(r"https?:|//[a-z]|@import|<script|<iframe|<link rel=.stylesheet", code)
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
    assert all(part.startswith("#") for part in re.findall(r"url\(([^)]*)\)", page.source))
    # names within pictures are those of one element each
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(names)) == len(names)
    used = re.findall(r"(?:href=\"#|url\(#)([^\")]*)", page.source)
    assert set(used) <= set(names)
    pictures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(pictures) >= 7
    assert all(len(attributes.get("aria-label", "")) > 10 for attributes in pictures)
    assert "prefers-color-scheme: dark" in page.source
    assert "@media print" in page.source
    assert "Cluster 3 has median confidence 0.40." in page.text
    assert "scdeepclust 9.9" in page.text
    assert "setup_anndata(adata, batch_key='batch', labels_key='cell_type')" in page.text


def check_tables(page, result):
    clusters = page.csv("clusters.csv").set_index("cluster")
    assert clusters.loc["4", "cells"] == (result.obs["sys"] == "4").sum()
    batches = page.csv("batches.csv").set_index("cluster")
    assert batches.loc["5", "batch_0"] == 1
    assert batches.sum(axis=1).to_numpy() == pytest.approx(1)
    cells = page.csv("uncertain_cells.csv")
    assert set(cells["cluster"].head(5)) == {"3"}
    assert len(page.csv("genes.csv")) > 20
    assert page.source.count('class="csv"') == page.source.count("<table>")


def test_names_are_written_as_text_and_not_as_code(result, tmp_path):
    result.obs["sys"] = result.obs["sys"].cat.rename_categories({"2": "<script>alert(1)</script> & co"})
    result.obs["batch"] = result.obs["batch"].cat.codes.astype(int)
    page = Page(sdc.tl.report(result, tmp_path / "page.html"))
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert "<script>alert(1)</script> & co" in page.text


@pytest.mark.parametrize("dtype", [int, float, str, bool, "category"])
def test_columns_of_any_type_count_as_batches(result, dtype):
    result.obs["lane"] = (result.obs["batch"].cat.codes % 2).astype(dtype)
    result.obs["sys"] = result.obs["sys"].astype(str).astype(int)
    facts = facts_of(result, "sys", "lane", None)
    assert list(facts.batches.columns) == [str(value) for value in sorted(set(result.obs["lane"]))]
    assert list(facts.clusters.index) == list("012345")
    _figures.with_umap(facts)
    _figures.composition(facts.batches, "batch", result, "lane")


def test_a_clustering_that_is_no_model_of_ours(adata, tmp_path):
    """A column alone: sizes and genes, no confidence and no embedding."""
    adata.obs["leiden"] = adata.obs["cell_type"]
    page = Page(sdc.tl.report(adata, tmp_path / "page.html", key="leiden"))
    assert "Genes of the clusters" in page.text
    assert "Uncertain cells" not in page.text


def test_a_comparison_says_which_method_to_take(tmp_path):
    adata = sdc.datasets.simulate_counts(300, 120, n_clusters=3, n_batches=2, marker_log_fold_change=3, depth=200)
    options = {"models": ["gmvae"], "baselines": ["pca"], "seeds": 2, "n_clusters": [None, 3], "batch_key": "batch"}
    options |= {"max_epochs": 1, "pretrain_epochs": 2, "n_jobs": 1, "progress": False, "label_key": "cell_type"}
    comparison = sdc.tl.compare(adata, tmp_path / "runs", **options)
    page = Page(sdc.tl.report(tmp_path / "runs", tmp_path / "page.html"))
    assert re.search(r"Take [\w+-]+: with K ", page.text)
    tables = {name: page.csv(name).set_index("method") for name in ("k_open.csv", "k_3.csv", "k_from_labels.csv")}
    for setting, (_, table) in zip(comparison.summary, tables.items(), strict=True):
        expected = comparison.summary[setting]
        np.testing.assert_allclose(table["ARI"], expected.loc[table.index, "ARI"], rtol=1e-4)
    assert page.text.index("Which method") < page.text.index("Batches")
    facts = facts_of_comparison(comparison, "pca+kmeans_k-3_seed-0")
    own, other = (comparison.labels[f"pca+kmeans_k-3_seed-{seed}"].astype(str).to_numpy() for seed in (0, 1))
    for name in facts.labels.cat.categories:
        overlap = max(((own == name) & (other == o)).sum() / ((own == name) | (other == o)).sum() for o in set(other))
        assert facts.clusters.loc[name, "again in other seeds"] == pytest.approx(overlap)
    (comparison.folder / "runs" / "gmvae_k-3_seed-1.npz").unlink()
    (comparison.folder / "runs" / "gmvae_k-3_seed-1.error.txt").write_text("Traceback\nMemoryError: too much")
    warnings = " ".join(facts_of_comparison(sdc.tl.read_comparison(comparison.folder)).warnings)
    assert "1 of 10 runs are missing" in warnings
    assert "MemoryError: too much" in warnings


def test_mistakes_are_named_and_no_file_is_left(result, adata, tmp_path):
    out = tmp_path / "page.html"
    with pytest.raises(ValueError, match="`key`: there are no clusters 'gmvae'.*results of sys"):
        sdc.tl.report(result, out, key="gmvae")
    with pytest.raises(ValueError, match="`label_key`: there is no column 'kind'"):
        sdc.tl.report(result, out, label_key="kind")
    with pytest.raises(ValueError, match="`out`: there is no folder"):
        sdc.tl.report(result, tmp_path / "no" / "page.html")
    with pytest.raises(ValueError, match="`source`: there is no file or folder"):
        sdc.tl.report(tmp_path / "x.h5ad", out)
    result.uns["second"], result.obs["second"] = result.uns["sys"], result.obs["sys"]
    with pytest.raises(ValueError, match="`key`: name the results to report; found sys, second"):
        sdc.tl.report(result, out)
    del result.uns["second"], result.uns["sys"]
    with pytest.raises(ValueError, match="`key`: there are no results"):
        sdc.tl.report(result, out)
    result.obs["sys"] = result.obs["sys"].where(result.obs["sys"] != "4")
    with pytest.raises(ValueError, match="have no label in 'sys'"):
        sdc.tl.report(result, out, key="sys")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_twenty_thousand_cells_fit_into_eight_megabytes(tmp_path):
    adata = sdc.datasets.simulate_counts(20_000, 500, n_clusters=12, n_batches=4, depth=150)
    rng = np.random.default_rng(0)
    adata.obs["sys"] = adata.obs["cell_type"].cat.rename_categories([str(i) for i in range(12)])
    adata.obs["sys_confidence"] = rng.uniform(size=20_000)
    adata.obsm["X_umap"] = rng.normal(size=(20_000, 2))
    adata.X = csr_matrix(adata.X)
    path = sdc.tl.report(adata, tmp_path / "page.html", key="sys", batch_key="batch", label_key="cell_type")
    assert path.stat().st_size < 8e6
