"""Whether confidence holds: data sets x models x number of clusters given or open -> one CSV, then one Markdown page.

Each molecule of a data set goes to one of two halves at random. A model is fitted to the first half, and says how sure
it is of each cell; another one, with another seed, is fitted to the second half. A cell repeats if both put it into the
same cluster, clusters being matched one to one.

    python benchmarks/confidence.py                                    # everything that is missing
    python benchmarks/confidence.py --models gmvae --k given           # a part of it
    python benchmarks/confidence.py --table                            # only write the page
"""

from __future__ import annotations

from _methods import DATASETS, NEW_DATASETS, Timer, fit_model, load, one_thread  # first: it sets the number of threads

# isort: split
import numpy as np
import pandas as pd
from _charts import BLUE, GREY, Lead, legend_in, panels, titled
from _report import Report, markdown
from anndata import AnnData
from scipy.sparse import csr_matrix

from scdeepclust.model._systems import SYSTEMS

REPORT = Report(__file__, ("data", "model", "k", "seed"), seeds="0")

NAMES = {system.key: system.name for system in SYSTEMS}
SETS = DATASETS + NEW_DATASETS
ALPHAS = (0.1, 0.05)


def halves(adata: AnnData, seed: int) -> list[AnnData]:
    """The same cells by either half of their counts; cells that have none in one of them are left out."""
    rng = np.random.default_rng(seed)
    counts = adata.layers["counts"].tocsr()
    first = counts.copy()
    first.data = rng.binomial(counts.data.astype(np.int64), 0.5).astype(np.float32)
    second = csr_matrix(counts - first)
    for half in (first, second):
        half.eliminate_zeros()
    some = np.logical_and(*(np.asarray(half.sum(axis=1)).ravel() > 0 for half in (first, second)))
    return [AnnData(half[some], obs=adata.obs[some].copy(), layers={"counts": half[some]}) for half in (first, second)]


def of_majority(labels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Whether each cell is of the most frequent type of its cluster."""
    majority = pd.crosstab(labels, truth).idxmax(axis=1)
    return majority.loc[labels].to_numpy() == truth


def auroc(event: np.ndarray, score: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(event, score)) if 0 < event.mean() < 1 else np.nan


def measure(adata: AnnData, model: str, k: str, seed: int) -> dict[str, object]:
    import scdeepclust as sdc
    from scdeepclust.train import matched

    truth = adata.obs["cell_type"].astype(str).to_numpy()
    n_clusters = len(np.unique(truth)) if k == "given" else None
    first, second = halves(adata, seed)
    truth = first.obs["cell_type"].astype(str).to_numpy()
    fitted, fit = fit_model(NAMES[model], first, n_clusters, 2 * seed)
    labels = fitted.predict().astype(int)
    one_thread()
    with Timer() as timer:
        confidence = fitted.get_confidence()
    posterior = fitted.get_confidence(confidence="posterior")
    sets = {alpha: sdc.tl.prediction_sets(fitted, alpha=alpha).to_numpy() for alpha in ALPHAS}
    others = fit_model(NAMES[model], second, n_clusters, 2 * seed + 1)[0].predict().astype(int)
    again = matched(labels, others)[others]
    checks = {
        "": sdc.tl.ConfidenceCheck(confidence, again == labels),
        "_posterior": sdc.tl.ConfidenceCheck(posterior, again == labels),
    }
    right = of_majority(labels, truth)
    row: dict[str, object] = {
        "cells": len(labels),
        "n_clusters": len(np.unique(labels)),
        "repeats": round(checks[""].repeats, 4),
        "majority": round(float(right.mean()), 4),
    }
    for name, check in checks.items():
        row |= {
            f"confidence{name}": round(float(check.confidence.mean()), 4),
            f"error{name}": round(check.calibration_error, 4),
            f"auroc{name}": round(check.auroc, 4),
            f"auroc_type{name}": round(auroc(right, check.confidence), 4),
        }
    for alpha, inside in sets.items():
        covered = np.where(again < 0, False, inside[np.arange(len(again)), again])
        row |= {
            f"coverage_{1 - alpha:g}": round(float(covered.mean()), 4),
            f"size_{1 - alpha:g}": round(float(inside.sum(axis=1).mean()), 3),
        }
    return row | {"fit_cpu_s": round(fit.cpu, 2), "confidence_cpu_s": round(timer.cpu, 2)}


def _text(value: object) -> str:
    if isinstance(value, float):
        return "-" if np.isnan(value) else f"{value:.3f}"
    return str(value)


def table(frame: pd.DataFrame) -> str:
    cells = [[_text(value) for value in row] for row in frame.itertuples(index=False)]
    return markdown([list(frame), *cells])


def lead(rows: pd.DataFrame) -> Lead:
    """Reliability set by set: what a model says on average, and what a repeat does."""
    given = rows[rows.k == "given"]
    figure, axes = panels(2, height=3.5)
    kinds = (
        ("confidence", "error", BLUE, "probability of a repeat"),
        ("posterior", "error_posterior", GREY, "posterior"),
    )
    for ax, model in zip(axes, ("gmvae", "scdeepcluster"), strict=True):
        part = given[given.model == model]
        for kind, error, color, name in kinds:
            said = part["confidence" if kind == "confidence" else "confidence_posterior"]
            label = f"{name}: error {part[error].mean():.3f}"
            ax.scatter(said, part.repeats, s=22, color=color, label=label, alpha=0.85, linewidths=0, zorder=2)
        ax.plot([0.2, 1], [0.2, 1], color="#999999", linewidth=0.8, zorder=1)
        ax.set(xlabel="mean confidence", ylabel="share of the cells that repeat", xlim=(0.2, 1.02), ylim=(0.2, 1.02))
        titled(ax, f"{NAMES[model]}, {part.data.nunique()} sets")
        legend_in(ax, loc="lower right")
    one, other = (given[given.model == model] for model in ("gmvae", "scdeepcluster"))
    worst = one.loc[one.error.idxmax()]
    text = f"""\
Each point is a data set: on the line, a confidence of .9 means that 90 % of the cells are put into the same cluster
again. The mean calibration error is {one.error.mean():.3f} for `GMVAE` and {other.error.mean():.3f} for
`SCDeepCluster`; that of the
highest assignment probability of the same fits is {one.error_posterior.mean():.3f} and
{other.error_posterior.mean():.3f}. **What is lost:** the worst
set is `{worst.data}` with an error of {worst.error:.3f} (`GMVAE`), the confidence takes
{(one.confidence_cpu_s / one.fit_cpu_s).median():.1f} times the time of the fit, and it tells
cells of the majority type of their cluster from others with an AUROC of {one.auroc_type.mean():.2f} only."""
    return Lead(figure, "Mean confidence against the share of cells that repeat, one point a data set", text)


def write_page(rows: pd.DataFrame) -> None:
    if rows.empty:
        print("no rows yet, no page written")
        return
    rows = rows.assign(
        time=rows.confidence_cpu_s / rows.fit_cpu_s,
        few=rows.repeats.between(0.6, 0.97),
    )
    summary = []
    for (k, model), part in rows.groupby(["k", "model"]):
        few = part[part.few]
        for end, name in (("", "repeat"), ("_posterior", "posterior")):
            summary.append(
                {
                    "K": k,
                    "model": NAMES[model],
                    "sets": part.data.nunique(),
                    "repeats": part.repeats.mean(),
                    "confidence": name,
                    "error": part[f"error{end}"].mean(),
                    "worst": part[f"error{end}"].max(),
                    "AUROC": few[f"auroc{end}"].mean(),
                    "AUROC, type": part[f"auroc_type{end}"].mean(),
                    "time": "" if end else part.time.median(),
                }
            )
    coverage = rows.groupby(["k", "model"])[[f"{what}_{1 - a:g}" for a in ALPHAS for what in ("coverage", "size")]]
    columns = ["repeats", "confidence", "error", "auroc", "confidence_posterior", "error_posterior", "auroc_posterior"]
    each = rows[rows.model == "gmvae"].groupby(["k", "data"])[columns].mean()
    REPORT.write(
        "Confidence",
        lead(rows),
        """\
A cell *repeats* if a fit to one half of its counts and a fit to the other half, with another seed, put it into the same
cluster. *Error* is the expected calibration error over ten bins, mean and worst over the data sets; *AUROC* says how
well confidence tells cells that repeat from others, over the sets where 60 to 97 % repeat; *AUROC, type* how well it
tells cells of the majority type of their cluster. The confidence is the probability of a repeat, or (*posterior*) the
highest assignment probability of the same fit.
*Time* is what the confidence takes in CPU time, in fits (median).""",
        "## All models",
        table(pd.DataFrame(summary)),
        "## Prediction sets",
        """\
Share of the cells whose repeat is in their set, and the number of clusters in a set, at a nominal coverage of .9 and
.95. The sets are calibrated on another fit than the one that is covered here.""",
        table(
            coverage.mean()
            .reset_index()
            .rename(columns=lambda name: name.replace("_", " ").replace("size", "clusters,"))
        ),
        "## GMVAE, set by set",
        table(each.reset_index().rename(columns=lambda name: name.replace("_", ", "))),
        rows=rows,
    )


def main() -> None:
    parser = REPORT.parser(__doc__, data=SETS, models=tuple(NAMES), k=("given", "open"))
    arguments = REPORT.parse(parser)
    if not arguments.table:
        for k in arguments.k:
            for data in arguments.data:
                adata = None
                for model in arguments.models:
                    for seed in arguments.seeds:
                        if REPORT.has(data=data, model=model, k=k, seed=seed) and not arguments.again:
                            continue
                        adata = load(data) if adata is None else adata
                        if adata is None:
                            break
                        row = {"data": data, "model": model, "k": k, "seed": seed} | measure(adata, model, k, seed)
                        REPORT.append(pd.DataFrame([row]))
                        print(f"{data:22s} {model:14s} {k:6s} repeats {row['repeats']:.3f}  error {row['error']:.3f} "
                              f"({row['error_posterior']:.3f})  AUROC {row['auroc']:.2f}", flush=True)  # fmt: skip
    write_page(REPORT.read())


if __name__ == "__main__":
    main()
