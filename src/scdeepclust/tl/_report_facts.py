"""What a report says about a clustering, as tables and sentences. Nothing is drawn or written here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdeepclust._keys import ResultKeys

if TYPE_CHECKING:
    from anndata import AnnData

    from scdeepclust.tl._comparison import Comparison

# Where a cluster gets a warning.
FEW_CELLS = 20
LOW_CONFIDENCE = 0.6
ONE_BATCH, USUAL_SHARE = 0.9, 0.7
MIXED_TYPES = 0.6
FOUND_AGAIN = 0.5
# A gene that marks a cluster: log2 fold change to the cluster in which it is highest but for this one, and share of its
# cells with a count. The fold change to all other cells says nothing where a cluster was split in two.
MARKER_FOLD, MARKER_SHARE = 1.0, 0.25
# Genes looked at. First come those that other cells lack: by how much the share of cells with a count has to be larger;
# or, as counts of the strongest genes leak into all cells, by how much the mean (log2, to the next cluster).
N_MARKERS, SPECIFIC, FAR_ABOVE = 50, 0.25, 2.0
# Share of all cells that batches have which a cluster lacks, where that is worth a warning.
LACKING = 0.4
# Cells that the cells of a fit say are of no known kind: above this novelty are 5 % of those of known kinds.
NEW, MANY_NEW = 0.95, 0.5
# Cells that a check of the batches looks at; it makes a dense matrix of them.
CHECKED_CELLS = 20_000
VERDICTS = ("safe", "look again", "doubtful")


@dataclass(frozen=True)
class Facts:
    """A clustering in an AnnData object, what is known about its cells, and a comparison where there is one.

    Parameters
    ----------
    adata
        Data with results under ``key``.
    key
        Key of the results.
    batch_key, label_key
        Columns of ``obs``.
    comparison
        Runs to find the clusters again in.
    run
        Run of the comparison that the clusters are.
    """

    adata: AnnData
    key: str
    batch_key: str | None = None
    label_key: str | None = None
    comparison: Comparison | None = None
    run: str | None = None

    @property
    def about(self) -> dict[str, Any]:
        """What `write_back` stored about the fit."""
        return dict(self.adata.uns.get(self.key, {}))

    @cached_property
    def labels(self) -> pd.Series:
        """Cluster of each cell, as strings."""
        labels = self.adata.obs[self.key].astype("category")
        return labels.cat.rename_categories(str).cat.remove_unused_categories()

    @cached_property
    def confidence(self) -> pd.Series | None:
        """Confidence of each cell, where the method tells one."""
        column = ResultKeys(self.key).confidence
        return self.adata.obs[column].astype(float) if column in self.adata.obs else None

    @cached_property
    def totals(self) -> pd.Series:
        """Counts of each cell: twice as many as elsewhere can mean two cells in one, very few a broken one."""
        from scdeepclust.model._base import row_blocks

        blocks = row_blocks(self.adata, dict(self.about.get("setup", {})).get("layer"))
        totals = [np.asarray(block.sum(axis=1, dtype=np.float64)).ravel() for block in blocks]
        return pd.Series(np.concatenate(totals), self.labels.index)

    @cached_property
    def markers(self) -> pd.DataFrame:
        """Genes of each cluster by the t statistic against all other cells, first those that these lack.

        There are no p values: groups that were made by these genes differ in them whatever the truth.
        """
        import scanpy as sc

        from scdeepclust.tl._counts import log_normalised
        from scdeepclust.train import one_thread

        folds = ["log2_fold_change", "fold_to_next"]
        columns = ["cluster", "gene", *folds, "share_in_cluster", "share_elsewhere"]
        sizes = self.labels.value_counts()
        groups = [name for name in self.labels.cat.categories if sizes[name] >= 2]
        if len(sizes) < 2 or not groups:
            return pd.DataFrame(columns=columns)
        with one_thread():
            logged = log_normalised(self.adata, dict(self.about.get("setup", {})).get("layer"))
            logged.obs["cluster"] = self.labels.to_numpy()
            logged.obs["cluster"] = logged.obs["cluster"].astype("category")
            sc.tl.rank_genes_groups(logged, "cluster", groups=groups, method="t-test", pts=True, n_genes=2 * N_MARKERS)
        table = sc.get.rank_genes_groups_df(logged, groups)
        if "group" not in table:  # of a single group
            table.insert(0, "group", groups[0])
        names = {"group": "cluster", "names": "gene", "logfoldchanges": "log2_fold_change"}
        names |= {"pct_nz_group": "share_in_cluster", "pct_nz_reference": "share_elsewhere"}
        table = table.rename(columns=names)
        table["fold_to_next"] = self._fold_to_next(logged, table["cluster"].astype(str), table["gene"])
        table = table[columns]
        table = table[(table["log2_fold_change"] > 0) & (table["share_in_cluster"] >= MARKER_SHARE)]
        common = table["share_in_cluster"] - table["share_elsewhere"] < SPECIFIC
        common &= table["fold_to_next"] < FAR_ABOVE
        place = pd.Series(np.arange(len(table)), table.index)
        order = np.lexsort([place, common, table["cluster"].astype(self.labels.dtype).cat.codes])
        return table.iloc[order].groupby("cluster", sort=False, observed=True).head(N_MARKERS)

    def _fold_to_next(self, logged: AnnData, clusters: pd.Series, genes: pd.Series) -> np.ndarray:
        """For pairs of cluster and gene, log2 of the mean over that of the highest other cluster."""
        from scipy.sparse import csr_matrix

        codes = self.labels.cat.codes.to_numpy()
        member = csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))))
        means = np.expm1((member @ logged.X).toarray() / np.bincount(codes)[:, None]) + 1e-9
        column, row = logged.var_names.get_indexer(genes), self.labels.cat.categories.get_indexer(clusters)
        others = means[:, column]
        own = others[row, np.arange(len(row))]
        others[row, np.arange(len(row))] = 0
        return np.log2(own / others.max(axis=0))

    @cached_property
    def batches(self) -> pd.DataFrame | None:
        """Share of each batch in each cluster, and in all cells in the last row."""
        return None if self.batch_key is None else self._shares(self.batch_key)

    @cached_property
    def batch_check(self) -> pd.DataFrame | None:
        """What :func:`scdeepclust.tl.check_batches` says of each cluster, where there are two batches."""
        from scdeepclust.tl._batches import check_batches

        if self.batch_key is None or self.adata.obs[self.batch_key].isna().any():
            return None
        if self.adata.obs[self.batch_key].nunique() < 2 or len(self.labels.cat.categories) < 2:
            return None
        chosen = np.arange(self.adata.n_obs)
        if len(chosen) > CHECKED_CELLS:
            chosen = np.sort(np.random.default_rng(0).choice(chosen, CHECKED_CELLS, replace=False))
        table = check_batches(self.adata[chosen], self.key, self.batch_key)
        return table.set_axis(table.index.astype(str).rename("cluster"))

    @cached_property
    def novelty(self) -> pd.DataFrame | None:
        """For cells that a reference was asked about: share of each cluster that is of no kind that it knows."""
        column = ResultKeys(self.key).novelty
        if column not in self.adata.obs:
            return None
        new = (self.adata.obs[column] > NEW).to_numpy()
        by_cluster = pd.Series(new).groupby(self.labels.to_numpy())
        table = pd.DataFrame({"cells": by_cluster.size(), "new": by_cluster.sum(), "share new": by_cluster.mean()})
        table = table.reindex(self.labels.cat.categories)
        table.loc["all cells"] = [len(new), new.sum(), new.mean()]
        return table.astype({"cells": int, "new": int}).rename_axis(index="cluster")

    @property
    def n_uncertain(self) -> int:
        """Cells with a confidence that would speak against a cluster."""
        return 0 if self.confidence is None else int((self.confidence < LOW_CONFIDENCE).sum())

    @cached_property
    def types(self) -> pd.DataFrame | None:
        """Share of each known type in each cluster, and in all cells in the last row."""
        return None if self.label_key is None else self._shares(self.label_key)

    def _shares(self, column: str) -> pd.DataFrame:
        table = pd.crosstab(self.labels, self.adata.obs[column].astype(object), dropna=True)
        table = table.reindex(self.labels.cat.categories, fill_value=0)
        table.loc["all cells"] = table.sum()
        shares = table.div(table.sum(axis=1).clip(lower=1), axis=0)
        return shares.rename_axis(index="cluster", columns=None).rename(columns=str)

    @cached_property
    def found_again(self) -> pd.DataFrame | None:
        """How well each cluster is found again: median over the other runs of the largest Jaccard index."""
        if self.comparison is None or self.run is None:
            return None
        runs = self.comparison.runs
        own, columns = runs.loc[self.run], {}
        same = (runs["method"] == own["method"]) & (runs["setting"] == own["setting"]) & (runs.index != self.run)
        # with the number of clusters found anew by everyone, a different number is an answer too
        others = (runs["method"] != own["method"]) & (runs["setting"] == own["setting"])
        for name, chosen in (("other seeds", same), ("other methods", others)):
            if chosen.any():
                columns[name] = np.median(
                    [self._best_overlap(self.comparison.labels[r]) for r in runs.index[chosen]], 0
                )
        return pd.DataFrame(columns, index=self.labels.cat.categories)

    def _best_overlap(self, other: pd.Series) -> np.ndarray:
        table = pd.crosstab(self.labels.to_numpy(), other.to_numpy()).reindex(self.labels.cat.categories).to_numpy()
        union = table.sum(1, keepdims=True) + table.sum(0) - table
        return (table / union).max(axis=1)

    @cached_property
    def clusters(self) -> pd.DataFrame:
        """One row a cluster: size, confidence, batch, type, genes, how often found again, verdict and why."""
        sizes = self.labels.value_counts().reindex(self.labels.cat.categories)
        table = pd.DataFrame({"cells": sizes, "share": sizes / len(self.labels)})
        table["median counts"] = self.totals.groupby(self.labels, observed=True).median().astype(int)
        if self.confidence is not None:
            table["median confidence"] = self.confidence.groupby(self.labels, observed=True).median()
        for name, shares in (("batch", self.batches), ("type", self.types)):
            if shares is not None:
                inside = shares.drop(index="all cells")
                table[f"largest {name}"] = inside.idxmax(axis=1)
                table[f"share of {name}"] = inside.max(axis=1)
        genes = self.markers.groupby("cluster", observed=True)["gene"].agg(lambda names: ", ".join(names[:4]))
        table["genes"] = genes.reindex(table.index).fillna("")
        if self.found_again is not None:
            for name in self.found_again:
                table[f"again in {name}"] = self.found_again[name]
        reasons = {str(name): list(self._reasons(str(name), row)) for name, row in table.iterrows()}
        table.insert(0, "verdict", [VERDICTS[min(len(reasons[name]), 2)] for name in table.index])
        table["why"] = ["; ".join(reasons[name]) for name in table.index]
        table.index.name = "cluster"
        return table

    def _reasons(self, name: str, row: pd.Series) -> Iterator[str]:
        """What speaks against a cluster, in words that follow "cluster 7"."""
        if row["cells"] < FEW_CELLS:
            yield f"has {row['cells']} cell{'s' * (row['cells'] > 1)}"
        if row.get("median confidence", 1.0) < LOW_CONFIDENCE:
            yield f"has median confidence {row['median confidence']:.2f}"
        if self.batches is not None:
            usual = self.batches.loc["all cells", row["largest batch"]]
            if row["share of batch"] >= ONE_BATCH and usual < USUAL_SHARE:
                twin = "" if self.batch_check is None else self.batch_check["twin"].get(name, "")
                yield (
                    f"comes from one {self.batch_key}: {row['share of batch']:.0%} of it is {row['largest batch']}, "
                    f"which has {usual:.0%} of all cells"
                    + (f", and it differs from cluster {twin} by no more than batches differ" if twin else "")
                )
            elif lacks := self._lacks(name):
                yield f"has nearly no cells of {', '.join(lacks)}"
        if self.novelty is not None and self.novelty.loc[name, "share new"] > MANY_NEW:
            yield f"holds cells that the reference does not know: {self.novelty.loc[name, 'share new']:.0%} of it"
        if row.get("share of type", 1.0) < MIXED_TYPES:
            yield f"mixes known types: {row['share of type']:.0%} are {row['largest type']}"
        own = self.markers[self.markers["cluster"] == name]
        if not (own["fold_to_next"] >= MARKER_FOLD).any():
            yield "has no gene that marks it against all other clusters"
        for others in ("other seeds", "other methods"):
            if row.get(f"again in {others}", 1.0) < FOUND_AGAIN:
                yield f"is not found again in {others} (overlap {row[f'again in {others}']:.2f})"

    def _lacks(self, name: str) -> list[str]:
        """Batches of which a cluster has less than a tenth of what it would by chance, if they are many cells."""
        assert self.batches is not None
        usual, own = self.batches.loc["all cells"], self.batches.loc[name]
        lacking = list(usual.index[own < usual / 10])
        return lacking if usual[lacking].sum() >= LACKING else []

    @property
    def warnings(self) -> list[str]:
        """One sentence for each thing that a reader has to know before trusting the clusters."""
        sentences = [
            f"Cluster {name} {reason}."
            for name, why in self.clusters["why"].items()
            for reason in why.split("; ")
            if why
        ]
        empty = self.about.get("n_clusters", 0) - (self.about.get("n_active") or self.about.get("n_clusters", 0))
        if empty > 0:
            sentences.append(f"{empty} of {self.about['n_clusters']} clusters have no cells.")
        if self.comparison is not None:
            if self.comparison.missing:
                sentences.append(
                    f"{len(self.comparison.missing)} of {len(self.comparison.about['runs'])} runs are "
                    f"missing, such as {self.comparison.missing[0]}."
                )
            sentences += [f"Run {name} failed: {error}" for name, error in self.comparison.errors.items()]
        return sentences

    def uncertain_cells(self, n: int = 20) -> pd.DataFrame | None:
        """The cells with the lowest confidence: their cluster, the one they nearly are in, batch and type."""
        if self.confidence is None:
            return None
        lowest = np.argsort(self.confidence.to_numpy(), kind="stable")[:n]
        columns = {"cell": self.adata.obs_names[lowest], "cluster": self.labels.iloc[lowest].to_numpy()}
        table = pd.DataFrame(columns | {"confidence": self.confidence.iloc[lowest].to_numpy()})
        stored = ResultKeys(self.key).probabilities
        if stored in self.adata.obsm and self.adata.obsm[stored].shape[1] > 1:
            probabilities = np.asarray(self.adata.obsm[stored])[lowest]
            second = np.argsort(-probabilities, axis=1)[:, 1]
            table["next cluster"] = [self._name_of(column) for column in second]
            table["its probability"] = np.take_along_axis(probabilities, second[:, None], 1)[:, 0]
        for column in (self.batch_key, self.label_key):
            if column is not None:
                table[column] = self.adata.obs[column].astype(str).to_numpy()[lowest]
        return table.set_index("cell")

    def _name_of(self, column: int) -> str:
        """Name that a column of the stored probabilities has now."""
        from scdeepclust.tl._labels import written_clusters

        raw = self.adata.obs[self.key].astype("category").cat
        codes = written_clusters(raw.codes.to_numpy(), self.adata.obsm[ResultKeys(self.key).probabilities])
        names = {cluster: str(raw.categories[code]) for code, cluster in codes.items()}
        return names.get(column, str(column))


def find_key(adata: AnnData, key: str | None) -> str:
    """The key of the results, or the only one there is."""
    found = [
        name for name, value in adata.uns.items() if name in adata.obs and hasattr(value, "keys") and "model" in value
    ]
    if key is not None:
        if key not in adata.obs:
            raise ValueError(
                f"`key`: there are no clusters {key!r} in `adata.obs`; results of {', '.join(found) or 'no model'}."
            )
        return key
    if len(found) != 1:
        raise ValueError(
            f"`key`: name the results to report; found {', '.join(found)}."
            if found
            else "`key`: there are no results of a model in `adata`. `model.write_back(adata)` writes them."
        )
    return found[0]


def facts_of(adata: AnnData, key: str | None, batch_key: str | None, label_key: str | None, **more: Any) -> Facts:
    """Facts about results, columns by default those that the model was set up with."""
    key = find_key(adata, key)
    setup = dict(dict(adata.uns.get(key, {})).get("setup", {}))
    for argument, column in (("batch_key", batch_key), ("label_key", label_key)):
        if column is not None and column not in adata.obs:
            raise ValueError(
                f"`{argument}`: there is no column {column!r} in `adata.obs`; found {', '.join(map(str, adata.obs))}."
            )
    if n_missing := int(adata.obs[key].isna().sum()):
        raise ValueError(f"`key`: {n_missing} cells have no label in {key!r}. Leave them out, or label them.")
    batch_key = batch_key or (setup.get("batch_key") if setup.get("batch_key") in adata.obs else None)
    label_key = label_key or (setup.get("labels_key") if setup.get("labels_key") in adata.obs else None)
    return Facts(adata, key, batch_key, label_key, **more)


def facts_of_comparison(comparison: Comparison, run: str | None = None) -> Facts:
    """Facts about one run of a comparison, by default the one to look at first."""
    if not comparison.files:
        raise ValueError(f"`source`: {comparison.folder} holds no finished run yet.")
    run = comparison.best() if run is None else run
    adata, about, options = comparison.data(), comparison.about_run(run), comparison.about["options"]
    result = comparison.result(run)
    key = about["method"]
    names = sorted(set(result["labels"]), key=int)
    adata.obs[key] = pd.Categorical(result["labels"], categories=names)
    adata.obsm[ResultKeys(key).embedding] = result["embedding"]
    if "confidence" in result:
        adata.obs[ResultKeys(key).confidence] = result["confidence"]
    setup = {"batch_key": options["batch_key"]} if options["batch_key"] else {}
    adata.uns[key] = {"model": key, "setup": setup, "seed": about["seed"], "versions": about["versions"]}
    adata.uns[key] |= {"n_clusters": len(names), "seconds": about["seconds"]}
    return facts_of(adata, key, options["batch_key"], options["label_key"], comparison=comparison, run=run)
