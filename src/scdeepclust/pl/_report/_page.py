"""Sections of a report, and the page made of them."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdeepclust.pl._report import _figures
from scdeepclust.pl._report._svg import Picture
from scdeepclust.tl._report_facts import N_MARKERS

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


@dataclass
class Table:
    """A table of the page with its csv: numbers as text, bars for shares."""

    name: str
    data: pd.DataFrame
    caption: str = ""
    bars: tuple[str, ...] = ()
    whole: pd.DataFrame | None = None  # what the csv holds, where the page shows only its first rows

    @property
    def link(self) -> str:
        """The csv as an address that needs no network."""
        text = (self.data if self.whole is None else self.whole).to_csv(float_format="%.6g")
        return "data:text/csv;charset=utf-8;base64," + base64.b64encode(text.encode()).decode()

    @property
    def file(self) -> str:
        """Name for the csv."""
        return re.sub(r"\W+", "_", self.name.lower()).strip("_") + ".csv"

    @property
    def head(self) -> list[str]:
        """Names of the columns, that of the rows first."""
        return [str(self.data.index.name or ""), *map(str, self.data.columns)]

    @property
    def rows(self) -> Iterator[list[dict[str, Any]]]:
        """Cells as text, with the length of their bar."""
        for name, row in zip(self.data.index, self.data.to_numpy(dtype=object), strict=True):
            cells: list[dict[str, Any]] = [{"text": str(name)}]
            for column, value in zip(self.data.columns, row, strict=True):
                bar = column in self.bars and pd.notna(value)
                cells.append(
                    {
                        "text": f"{value:.2f}" if bar else as_text(value),
                        "number": isinstance(value, int | float | np.number),
                        "bar": round(100 * float(np.clip(value, 0, 1)), 1) if bar else None,
                        "mark": str(value).replace(" ", "-") if column == "verdict" else None,
                    }
                )
            yield cells


def as_text(value: Any) -> str:
    """Three digits of a number, "-" for a missing one."""
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return "-"
    if isinstance(value, int | np.integer) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


@dataclass
class Section:
    """A heading with what is below it."""

    title: str
    text: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    code: str = ""

    @property
    def anchor(self) -> str:
        """Where links within the page go."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


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
        title=title, lead=_lead(facts), sections=list(_sections(facts)), versions=_versions(facts)
    )
    partial = out.with_name(f".{out.name}.partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(out)


def _lead(facts: Facts) -> str:
    """The answer in one paragraph."""
    verdicts = facts.clusters["verdict"]
    counts = [(word, list(verdicts.index[verdicts == word])) for word in ("safe", "look again", "doubtful")]
    said = [f"{len(names)} {word} ({', '.join(names)})" for word, names in counts if names]
    sure = "" if facts.confidence is None else f" Median confidence is {facts.confidence.median():.2f}."
    return f"{len(verdicts)} clusters of {facts.adata.n_obs:,} cells: {'; '.join(said)}.{sure}"


def _sections(facts: Facts) -> Iterator[Section]:
    """All sections that there is something to say in; one function each."""
    makers = (
        _comparison, _clusters, _maps, _markers, _batches, _types, _system, _tree, _uncertain, _done, _reproduce,
    )  # fmt: skip
    for make in makers:
        section = make(facts)
        if section is not None:
            yield section


def _clusters(facts: Facts) -> Section:
    table = facts.clusters
    bars = tuple(name for name in table if name not in ("cells", "verdict", "genes", "why") and "largest" not in name)
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
        "least a quarter of its cells), first those that many of the other cells lack. No p values: clusters made from "
        "these genes differ in them whatever the truth. Log2 fold changes are those to all other cells, and to the "
        "cluster in which the gene is highest but for this one; shares are of cells with a count."
    )
    picture = _figures.dots(facts)
    shown = {"log2_fold_change": "log2 fold", "fold_to_next": "to the next", "share_in_cluster": "in cluster"}
    shown |= {"share_elsewhere": "elsewhere"}
    table = Table(
        "Genes", best.rename(columns=shown), f"The {few} best of each cluster; the csv has up to {N_MARKERS}.",
        bars=("in cluster", "elsewhere"), whole=facts.markers.set_index("cluster"),
    )  # fmt: skip
    return Section("Genes of the clusters", [words], [picture] if picture else [], [table])


def _batches(facts: Facts) -> Section | None:
    if facts.batches is None or facts.batch_key is None:
        return None
    words = "A cluster of a single batch is a cell type that only this batch has, or a batch effect that was left."
    shown = facts.batches if facts.batches.shape[1] <= 8 else facts.batches.iloc[:, :0]
    tables = [Table("Batches", shown, bars=tuple(shown))] if shown.shape[1] else []
    picture = _figures.composition(facts.batches, "batch", facts.adata, facts.batch_key)
    return Section("Batches", [words], [picture], tables)


def _types(facts: Facts) -> Section | None:
    if facts.types is None or facts.label_key is None:
        return None
    picture = _figures.composition(facts.types, "known type", facts.adata, facts.label_key)
    best = pd.DataFrame({"type": facts.types.iloc[:-1].idxmax(axis=1), "share": facts.types.iloc[:-1].max(axis=1)})
    return Section("Known types", [], [picture], [Table("Types", best, bars=("share",), whole=facts.types)])


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
            f"Take {method}: with {setting} it repeats itself and agrees with the other methods most "
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


# ---- how it was done -------------------------------------------------------------------------------------------------


def _versions(facts: Facts) -> str:
    versions = dict(facts.about.get("versions", {}))
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _done(facts: Facts) -> Section:
    about = facts.about
    setup, params = dict(about.get("setup", {})), dict(about.get("params", {}))
    asked = params.get("n_clusters")
    rows: dict[str, Any] = {
        "cells": f"{facts.adata.n_obs:,}",
        "genes": f"{facts.adata.n_vars:,} in the file" + _genes_used(facts),
        "counts": f"layer {setup['layer']!r}" if setup.get("layer") else "X",
        "batch": facts.batch_key or "none given",
        "known labels": f"{facts.label_key} (not learnt from)" if facts.label_key else "none given",
        "model": about.get("model", facts.key),
        "clusters": f"{len(facts.labels.cat.categories)} with cells" + (f" of {asked}" if asked else ""),
        "seed": "none" if about.get("seed", -1) == -1 else as_text(about["seed"]),
    }
    if "phases" in about:
        rows["epochs"] = ", ".join(f"{int(epochs)} {name}" for name, epochs in dict(about["phases"]).items())
    if "seconds" in about:
        rows["seconds"] = as_text(about["seconds"])
    if params:
        rows["parameters"] = ", ".join(f"{name}={value}" for name, value in params.items())
    rows["versions"] = _versions(facts) or "not stored"
    table = pd.DataFrame({"": pd.Series(rows, dtype=object)})
    return Section("What was done", tables=[Table("What was done", table)])


def _genes_used(facts: Facts) -> str:
    for name in (f"{facts.key}_global_gates", f"{facts.key}_profiles"):
        if name in facts.adata.varm:
            used = ~np.isnan(np.asarray(facts.adata.varm[name], dtype=float)).any(axis=1)
            return "" if used.all() else f", {used.sum():,} learnt from"
    return ""


def _reproduce(facts: Facts) -> Section | None:
    about = facts.about
    if facts.comparison is not None:
        return Section("Do it again", code=_comparison_code(facts.comparison))
    if "params" not in about:
        return None
    model, setup, params = about["model"], dict(about["setup"]), dict(about["params"])
    phases = [int(epochs) for epochs in dict(about.get("phases", {})).values()]
    epochs = f"pretrain_epochs={sum(phases[:-1])}, max_epochs={phases[-1]}" if len(phases) == 2 else ""
    code = [
        "import anndata, scvi",
        "import scdeepclust as sdc",
        "",
        f"scvi.settings.seed = {about.get('seed', 0) if about.get('seed', -1) != -1 else 0}",
        'adata = anndata.read_h5ad("cells.h5ad")  # the genes that were learnt from',
        f"sdc.model.{model}.setup_anndata({_arguments(setup)})",
        f"model = sdc.model.{model}({_arguments(params)})",
        f"model.train({epochs})",
        f"model.write_back(adata, {facts.key!r})",
        'sdc.tl.report(adata, "report.html")',
    ]
    return Section("Do it again", code="\n".join(code))


def _comparison_code(comparison: Comparison) -> str:
    options = {name: value for name, value in comparison.about["options"].items() if value not in (None, False)}
    runs = comparison.runs
    seeds = sorted(int(seed) for seed in runs["seed"].unique())
    methods = list(runs["method"].unique())
    models = [method for method in methods if "+" not in method]
    baselines = list(dict.fromkeys(method.partition("+")[0] for method in methods if "+" in method))
    ks = [None if name == "K open" else int(name[4:]) for name in comparison.summary if name != "K from labels"]
    more = {"models": models, "baselines": baselines, "seeds": seeds, "n_clusters": ks} | options
    return "\n".join(
        [
            "import anndata",
            "import scdeepclust as sdc",
            "",
            'adata = anndata.read_h5ad("cells.h5ad")',
            f'comparison = sdc.tl.compare(adata, "comparison", {_arguments(more)[7:]})',
            'sdc.tl.report("comparison", "report.html")',
        ]
    )


def _arguments(arguments: dict[str, Any]) -> str:
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in arguments.items()}
    return ", ".join(["adata", *(f"{name}={value!r}" for name, value in plain.items())])
