"""The examples of the user guide on trust, on real data -> one CSV, one Markdown page, and the figures of the guide.

Each question has an example where the answer is yes, and one where it is no.

    python benchmarks/trust_examples.py            # everything that is missing
    python benchmarks/trust_examples.py --figures  # also draw again
"""

from __future__ import annotations

from _methods import components, fit_model, leiden_default, load  # first: it sets the number of threads

# isort: split
import matplotlib
import numpy as np
import pandas as pd
from _charts import BLUE, GREY, Lead, bars, panels, titled
from _report import HERE, Report, markdown

REPORT = Report(__file__, ("example", "what"))
FIGURES = HERE.parent / "docs" / "user_guide" / "figures"
SMALL = {"dpi": 110, "bbox_inches": "tight"}


def note(example: str, **values: object) -> None:
    rows = [{"example": example, "what": name, "value": str(value)} for name, value in values.items()]
    REPORT.append(pd.DataFrame(rows))
    print(example, values, flush=True)


def save(drawn, name: str) -> None:
    import matplotlib.pyplot as plt

    FIGURES.mkdir(parents=True, exist_ok=True)
    figure = drawn.get_figure(root=True)
    figure.savefig(FIGURES / f"{name}.png", **SMALL)
    plt.close(figure)


def confidence(example: str, data: str) -> None:
    import scdeepclust as sdc

    adata = load(data)
    model, _ = fit_model("GMVAE", adata, adata.obs["cell_type"].nunique(), 0)
    check = sdc.tl.check_confidence(model)
    save(sdc.pl.reliability(check), example)
    sets = sdc.tl.prediction_sets(model, alpha=0.1)
    values = model.get_confidence()
    note(
        example,
        cells=adata.n_obs,
        repeats=round(check.repeats, 3),
        error=round(check.calibration_error, 3),
        auroc=round(check.auroc, 2),
        median=round(float(np.median(values)), 2),
        median_posterior=round(float(np.median(model.get_confidence(confidence="posterior"))), 2),
        above_90=round(float((values > 0.9).mean()), 2),
        set_size=round(float(sets.sum(axis=1).mean()), 2),
        sets_of_one=round(float((sets.sum(axis=1) == 1).mean()), 2),
    )


def number(example: str, data: str, kind: str | None = None) -> None:
    import scdeepclust as sdc

    adata = load(data)
    if kind is not None:
        adata = adata[adata.obs["cell_type"] == kind].copy()
    model, _ = fit_model("GMVAE", adata, None, 0)
    leiden = len(np.unique(leiden_default(components(adata, 0), 0, 0)))
    found: dict[str, object] = {"cells": adata.n_obs, "n_clusters": model.n_clusters, "leiden": leiden}
    save(sdc.pl.n_clusters(sdc.tl.estimate_n_clusters(model)), f"{example}_numbers")
    if model.n_clusters > 1:
        tree = sdc.tl.cluster_tree(model)
        save(sdc.pl.cluster_tree(tree), f"{example}_tree")
        found |= {
            "weakest_separation": round(tree.splits["separation"].min(), 1),
            "types": adata.obs.cell_type.nunique(),
        }
    note(example, **found)


def batches(example: str, data: str, with_batches: bool) -> None:
    import scdeepclust as sdc

    adata = load(data)
    if with_batches:
        model, _ = fit_model("GMVAE", adata, None, 0)
    else:
        alone = adata.copy()
        del alone.obs["batch"]
        model, _ = fit_model("GMVAE", alone, None, 0)
    adata.obs["gmvae"] = pd.Categorical(model.predict())
    adata.obsm["X_gmvae"] = model.get_latent_representation()
    table = sdc.tl.check_batches(adata, "gmvae", "batch", layer="counts")
    save(sdc.pl.batches(adata, "gmvae", "batch", table), example)
    note(
        example,
        cells=adata.n_obs,
        n_clusters=len(table),
        median_mixing=round(float(table["mixing"].median()), 2),
        twins=int((table["twin"] != "").sum()),
        with_verdict=int((table["verdict"] != "").sum()),
    )


EXAMPLES = {
    "sure_pbmc3k": (confidence, "pbmc3k_full"),
    "sure_bladder": (confidence, "mouse_bladder_2100"),
    "number_pbmc3k": (number, "pbmc3k_full"),
    "number_cell_line": (number, "sc_mixology_cellines", "H2228"),
    "batches_ifnb": (batches, "ifnb_2800", True),
    "batches_ifnb_without_key": (batches, "ifnb_2800", False),
}


def lead(rows: pd.DataFrame) -> Lead:
    """A good and a bad case of two of the three questions."""
    values = rows.pivot_table(index="example", columns="what", values="value", aggfunc="first")
    sure = values.loc[["sure_pbmc3k", "sure_bladder"], ["repeats", "median"]].astype(float)
    number = values.loc[["number_pbmc3k", "number_cell_line"], ["n_clusters", "leiden"]].astype(float)
    figure, (left, right) = panels(2, height=1.9)
    bars(left, sure, (BLUE, GREY), "blue: cells that repeat, grey: median confidence")
    titled(left, "How sure is a label?")
    bars(right, number, (BLUE, GREY), "blue: n_clusters=None, grey: PCA and Leiden", form="{:.0f}")
    titled(right, "How many clusters?")
    with_key, without = (values.loc[name] for name in ("batches_ifnb", "batches_ifnb_without_key"))
    text = f"""\
Each question has an example that goes well and one that does not. {sure.repeats.iloc[0]:.0%} of the cells of
`pbmc3k_full` repeat, {sure.repeats.iloc[1]:.0%} of
`mouse_bladder_2100`; the {float(values.loc["number_cell_line", "cells"]):.0f} cells of one line are one cluster,
where Leiden at its default makes {number.leiden.iloc[1]:.0f}. **What is lost:**
without `batch_key` {float(without.with_verdict):.0f} of {float(without.n_clusters):.0f} clusters get a verdict, and
with it still {float(with_key.with_verdict):.0f} of {float(with_key.n_clusters):.0f}."""
    return Lead(figure, "Two examples of confidence and of the number of clusters", text)


def main() -> None:
    parser = REPORT.parser(__doc__, examples=tuple(EXAMPLES))
    parser.add_argument("--figures", action="store_true", help="draw again what is there")
    arguments = REPORT.parse(parser)
    matplotlib.use("agg")
    for example in () if arguments.table else arguments.examples:
        if arguments.again or arguments.figures or not REPORT.has(example=example):
            function, *options = EXAMPLES[example]
            function(example, *options)
    rows = REPORT.read()
    lines = [["example", "what", "value"], *rows[["example", "what", "value"]].astype(str).to_numpy().tolist()]
    REPORT.write(
        "Examples of the guide on trust", lead(rows), "GMVAE at its defaults, seed 0.", markdown(lines), rows=rows
    )


if __name__ == "__main__":
    main()
