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


def table(frame: pd.DataFrame) -> str:
    cells = [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in row] for row in frame.itertuples(index=False)]
    return markdown([list(frame), *cells])


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
        summary.append(
            {
                "K": k,
                "model": NAMES[model],
                "sets": part.data.nunique(),
                "repeats": part.repeats.mean(),
                "error": part.error.mean(),
                "worst": part.error.max(),
                "AUROC": few.auroc.mean(),
                "AUROC, type": part.auroc_type.mean(),
                "error, posterior": part.error_posterior.mean(),
                "worst, posterior": part.error_posterior.max(),
                "AUROC, posterior": few.auroc_posterior.mean(),
                "AUROC, type, posterior": part.auroc_type_posterior.mean(),
                "time": part.time.median(),
            }
        )
    coverage = rows.groupby(["k", "model"])[[f"{what}_{1 - a:g}" for a in ALPHAS for what in ("coverage", "size")]]
    columns = ["repeats", "confidence", "error", "auroc", "confidence_posterior", "error_posterior", "auroc_posterior"]
    each = rows[rows.model == "gmvae"].groupby(["k", "data"])[columns].mean()
    REPORT.write(
        "Confidence",
        """\
A cell *repeats* if a fit to one half of its counts and a fit to the other half, with another seed, put it into the same
cluster. *Error* is the expected calibration error over ten bins, mean and worst over the data sets; *AUROC* says how
well confidence tells cells that repeat from others, over the sets where 60 to 97 % repeat; *AUROC, type* how well it
tells cells of the majority type of their cluster. *Posterior* is the highest assignment probability of the same fit.
*Time* is what the confidence takes in CPU time, in fits (median).""",
        "## All models",
        table(pd.DataFrame(summary)),
        "## Prediction sets",
        """\
Share of the cells whose repeat is in their set, and the number of clusters in a set, at a nominal coverage of .9 and
.95. The sets are calibrated on another fit than the one that is covered here.""",
        table(coverage.mean().reset_index()),
        "## GMVAE, set by set",
        table(each.reset_index()),
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
