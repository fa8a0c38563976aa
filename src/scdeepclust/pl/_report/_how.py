"""Sections of a report about how it was done, and how to do it again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdeepclust.pl._report._parts import Section, Table, as_text

if TYPE_CHECKING:
    from scdeepclust.tl._comparison import Comparison
    from scdeepclust.tl._report_facts import Facts


def versions(facts: Facts) -> str:
    versions = dict(facts.about.get("versions", {}))
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def done(facts: Facts) -> Section:
    about = facts.about
    setup, params = dict(about.get("setup", {})), dict(about.get("params", {}))
    asked = params.get("n_clusters")
    rows: dict[str, Any] = {
        "cells": f"{facts.adata.n_obs:,}" + _cells_used(facts),
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
        rows["training"] = f"{about['seconds']:,.0f} seconds"
    if params:
        rows["parameters"] = ", ".join(f"{name}={value}" for name, value in params.items())
    rows["versions"] = versions(facts) or "not stored"
    table = pd.DataFrame({"": pd.Series(rows, dtype=object)})
    return Section("What was done", tables=[Table("What was done", table)])


def _cells_used(facts: Facts) -> str:
    used = facts.about.get("n_cells", 0)
    if not used:
        return ""
    return ", all learnt from; none was left out" if used == facts.adata.n_obs else f"; learnt from {used:,} cells"


def _genes_used(facts: Facts) -> str:
    used = facts.about.get("n_genes", 0)
    return f", {used:,} of them learnt from" if used and used < facts.adata.n_vars else ""


def reproduce(facts: Facts) -> Section | None:
    about = facts.about
    if facts.comparison is not None:
        return Section("Do it again", code=_comparison_code(facts.comparison))
    if "params" not in about:
        return None
    if "command" in about:
        return Section("Do it again", ["In a terminal:"], code=str(about["command"]))
    model, setup, params = about["model"], dict(about["setup"]), dict(about["params"])
    phases = [int(epochs) for epochs in dict(about.get("phases", {})).values()]
    epochs = f"pretrain_epochs={sum(phases[:-1])}, max_epochs={phases[-1]}" if len(phases) == 2 else ""
    code = [
        "import anndata, scvi",
        "import scdeepclust as sdc",
        "",
        f"scvi.settings.seed = {about.get('seed', 0) if about.get('seed', -1) != -1 else 0}",
        'adata = anndata.read_h5ad("cells.h5ad")  # the cells and genes that were learnt from',
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
