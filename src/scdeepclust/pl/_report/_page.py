"""Sections of a report, and the page made of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from scdeepclust.pl._report import _figures, _how
from scdeepclust.pl._report._parts import Section, Table, as_text
from scdeepclust.tl._report_facts import LOW_CONFIDENCE, N_MARKERS, NEW

if TYPE_CHECKING:
    from scdeepclust.tl._comparison import Comparison
    from scdeepclust.tl._report_facts import Facts

_SCORES = ("repeatability", "agreement", "confidence", "batch mixing", "ARI", "NMI", "accuracy", "F1 rare")
_EXPLAINED = {
    "repeatability": "how alike the labels of two seeds are (adjusted Rand index)",
    "agreement": "how alike they are to those of the other methods (adjusted Rand index)",
    "confidence": "median confidence of a cell",
    "batch mixing": "how well batches mix among neighbours (iLISI)",
    "ARI": "adjusted Rand index with the known labels",
    "NMI": "mutual information with the known labels",
    "accuracy": "share of cells right after the best matching of clusters and types",
    "F1 rare": "how well rare types are found (F1)",
}


def write_page(facts: Facts, out: Path, title: str) -> None:
    """Write the report of a clustering, and of the comparison that belongs to it."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("scdeepclust.pl._report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html.jinja").render(
        title=title, lead=_lead(facts), sections=list(_sections(facts)), versions=_how.versions(facts)
    )
    partial = out.with_name(f".{out.name}.partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(out)


def _lead(facts: Facts) -> str:
    """The answer in one paragraph."""
    verdicts = facts.clusters["verdict"]
    counts = [(word, list(verdicts.index[verdicts == word])) for word in ("safe", "look again", "doubtful")]
    said = [f"{len(names)} {word} ({', '.join(names)})" for word, names in counts if names]
    sure = ""
    if facts.confidence is not None:
        sure = (
            f" Median confidence is {facts.confidence.median():.2f}; {facts.n_uncertain:,} cells "
            f"({facts.n_uncertain / len(facts.labels):.1%}) have one below {LOW_CONFIDENCE}."
        )
    return f"{len(verdicts)} clusters of {facts.adata.n_obs:,} cells: {'; '.join(said)}.{sure}"


def _sections(facts: Facts) -> Iterator[Section]:
    """All sections that there is something to say in; one function each."""
    makers = (
        _comparison, _clusters, _maps, _markers, _batches, _types, _novelty, _system, _tree, _uncertain, _how.done,
        _how.reproduce,
    )  # fmt: skip
    for make in makers:
        section = make(facts)
        if section is not None:
            yield section


def _clusters(facts: Facts) -> Section:
    table = facts.clusters
    bars = tuple(
        name
        for name in table
        if name not in ("cells", "median counts", "verdict", "genes", "why") and "largest" not in name
    )
    words = "A cluster is safe where nothing speaks against it, doubtful where two things do."
    return Section(
        "Clusters",
        [words, *([] if facts.warnings else ["Nothing speaks against any cluster."])],
        tables=[Table("Clusters", table.drop(columns="why"), bars=bars, whole=table)],
        warnings=facts.warnings,
    )


def _maps(facts: Facts) -> Section | None:
    pictures = [*_figures.maps(facts), _figures.sizes(facts)]
    return Section("Cells", pictures=pictures)


def _markers(facts: Facts) -> Section | None:
    if facts.markers.empty:
        return None
    few = 5 if len(facts.clusters) <= 10 else 3
    best = facts.markers.groupby("cluster", sort=False).head(few).set_index("cluster")
    words = (
        "Genes that are higher in a cluster than in all other cells (t statistic of log-normalised counts, found in at "
        "least a quarter of its cells), first those that many of the other cells lack, or that no other cluster comes "
        "near to. No p values: clusters made from these genes differ in them whatever the truth. Log2 fold changes are "
        "those to all other cells, and to the cluster in which the gene is highest but for this one; shares are of "
        "cells with a count."
    )
    picture = _figures.dots(facts)
    shown = {"log2_fold_change": "log2 fold", "fold_to_next": "to the next", "share_in_cluster": "in cluster"}
    shown |= {"share_elsewhere": "elsewhere"}
    table = Table(
        "Genes", best.rename(columns=shown), f"The {few} best of each cluster; the csv has up to {N_MARKERS}.",
        bars=("in cluster", "elsewhere"), whole=facts.markers.set_index("cluster"),
    )  # fmt: skip
    text = [words]
    if facts.label_key is None:
        text.insert(0, "No known labels were given, so that these genes have to tell what type a cluster is.")
    return Section("Genes of the clusters", text, [picture] if picture else [], [table])


def _batches(facts: Facts) -> Section | None:
    if facts.batches is None or facts.batch_key is None:
        return None
    shown = facts.batches if facts.batches.shape[1] <= 8 else facts.batches.iloc[:, :0]
    tables = [Table("Batches", shown, bars=tuple(shown))] if shown.shape[1] else []
    picture = _figures.composition(facts.batches, "batch", facts.adata, facts.batch_key)
    check = facts.batch_check
    words = ["A cluster of a single batch is a cell type that only this batch has, or a batch effect that was left."]
    if check is not None:
        found = [f"cluster {name} {verdict}" for name, verdict in check["verdict"].items() if verdict]
        words.append(
            f"A check of the batches, by counts and without labels, found: {'; '.join(found)}."
            if found
            else "A check of the batches, by counts and without labels, found nothing."
        )
        columns = {"mixing": "mixing", "shift": "shift", "groups_in": "two groups in", "verdict": "found"}
        caption = (
            "Mixing: 1 where the batches of a cluster are mixed, 0 where they are apart. Shift: how far its batches "
            "differ, as a multiple of the median cluster. Two groups in one batch: too few clusters, or too much "
            "correction. Whether a batch explains a cluster is in the last column."
        )
        tables.append(Table("Check of the batches", check[list(columns)].rename(columns=columns), caption,
                            bars=("mixing",), whole=check))  # fmt: skip
    return Section("Batches", words, [picture], tables)


def _types(facts: Facts) -> Section | None:
    if facts.types is None or facts.label_key is None:
        return None
    picture = _figures.composition(facts.types, "known type", facts.adata, facts.label_key)
    best = pd.DataFrame({"type": facts.types.iloc[:-1].idxmax(axis=1), "share": facts.types.iloc[:-1].max(axis=1)})
    return Section("Known types", [], [picture], [Table("Types", best, bars=("share",), whole=facts.types)])


def _novelty(facts: Facts) -> Section | None:
    table = facts.novelty
    if table is None:
        return None
    n, share = table.loc["all cells", "new"], table.loc["all cells", "share new"]
    words = (
        f"These cells were put into the clusters of a reference. {n:,} of them ({share:.0%}) fit their cluster worse "
        f"than {NEW:.0%} of the cells of the reference fit theirs; of cells of known kinds 5 % do. A cluster with many "
        "of them holds a kind, or a protocol, that the reference did not have."
    )
    return Section("New cells", [words], tables=[Table("New cells", table, bars=("share new",))])


def _system(facts: Facts) -> Section | None:
    pictures = list(_figures.own_view(facts))
    return Section(f"What {facts.about['model']} shows", pictures=pictures) if pictures else None


def _tree(facts: Facts) -> Section | None:
    picture = _figures.tree(facts)
    return None if picture is None else Section("Tree of the clusters", pictures=[picture])


def _uncertain(facts: Facts) -> Section | None:
    table = facts.uncertain_cells(10)
    if table is None:
        return None
    picture = _figures.borders(facts)
    data = Table(
        "Uncertain cells", table, "The ten least certain cells; the csv has a thousand.", ("confidence",
        "its probability"), facts.uncertain_cells(1000),
    )  # fmt: skip
    return Section("Uncertain cells", [], [picture] if picture else [], [data])


# ---- the comparison --------------------------------------------------------------------------------------------------


def _comparison(facts: Facts) -> Section | None:
    comparison = facts.comparison
    if comparison is None:
        return None
    tables, pictures = [], []
    for setting, summary in comparison.summary.items():
        order = summary.reindex(columns=["repeatability", "agreement"]).mean(axis=1).sort_values(ascending=False).index
        table = summary.loc[order].rename(columns={"peak_mb": "peak memory (MB)", "n_clusters": "clusters"})
        note = (
            "Resolution chosen with the known labels: a bound for comparison, not a result."
            if setting == "K from labels"
            else "Means over seeds; the first lines repeat themselves and agree with the others most."
        )
        tables.append(Table(setting, table, note, bars=tuple(name for name in _SCORES if name in table)))
        if len(summary) > 1 and setting != "K from labels":
            pictures.append(_figures.agreement(comparison.agreement[setting], setting))
    known = [name for name in _SCORES if any(name in table for table in comparison.summary.values())]
    explained = "; ".join(f"{name}: {_EXPLAINED[name]}" for name in known)
    return Section("Which method", [*_advice(comparison, facts), explained[0].upper() + explained[1:] + "."],
                   pictures, tables)  # fmt: skip


def _advice(comparison: Comparison, facts: Facts) -> Iterator[str]:
    """In words, which method to take and why."""
    setting = next(iter(comparison.summary))
    table = comparison.summary[setting]
    if facts.run is not None:
        method = comparison.runs["method"][facts.run]
        row = table.loc[method] if method in table.index else table.iloc[0]
        found = [
            f"{name} {row[name]:.2f}" for name in ("repeatability", "agreement") if name in row and pd.notna(row[name])
        ]
        yield (
            f"Take {method}: with {setting} the mean of its repeatability and its agreement with the others is highest "
            f"({', '.join(found)}; no known label has a say in this). This page shows its run {facts.run}, the one of "
            "its seeds that is most like the others."
        )
    best = []
    for name in ("repeatability", "agreement", "batch mixing", "ARI", "F1 rare"):
        if name in table and table[name].notna().any():
            winner = table[name].idxmax()
            best.append(f"{winner} has the highest {name} ({table[name][winner]:.2f})")
    fastest = table["seconds"].idxmin()
    yield f"With {setting}: {', '.join(best)}; {fastest} is the fastest ({as_text(table['seconds'][fastest])} s)."
