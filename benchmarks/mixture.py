"""Claims about the mixture of GMVAE: calibration, depth, a private cell type, the estimator -> one CSV, one page.

    python benchmarks/mixture.py               # everything that is missing
    python benchmarks/mixture.py --seeds 0     # one seed
    python benchmarks/mixture.py --table       # only rewrite the page

What needs real data is skipped where the file is missing (see SCDEEPCLUST_DATA).
"""

from __future__ import annotations

from _methods import fit_model, load  # first: it sets the number of threads

# isort: split
import _claims
import numpy as np
import pandas as pd
from _charts import BLUE, Lead, legend_in, panels
from _report import Report, markdown
from quality import REPORT as QUALITY

REPORT = Report(__file__, _claims.KEYS, seeds="0-4")

BLADDER = "mouse_bladder_2100"
N_BINS = 10


def calibration(seed: int) -> dict[str, float]:
    """Five types that overlap, in two batches: is a cell with confidence p right with probability p?"""
    import scdeepclust as sdc

    scores = {}
    for fold_change in (1.25, 1.5, 2.0):
        adata = sdc.datasets.simulate_counts(
            2000, 300, n_clusters=5, n_batches=2, marker_log_fold_change=fold_change, depth=300, seed=seed
        )
        model, _ = fit_model("GMVAE", adata, 5, seed)
        confidence = model.predict(soft=True).max(axis=1).to_numpy()
        correct = matched_types(adata.obs["cell_type"].to_numpy(), model.predict()) == adata.obs["cell_type"].to_numpy()
        scores[f"accuracy, fold change e^{fold_change}"] = correct.mean()
        scores[f"mean confidence, fold change e^{fold_change}"] = confidence.mean()
        scores[f"calibration error, fold change e^{fold_change}"] = calibration_error(confidence, correct)
    return scores


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Expected calibration error: mean distance of confidence and accuracy over bins of confidence."""
    bins = np.minimum((confidence * N_BINS).astype(int), N_BINS - 1)
    gap = np.bincount(bins, weights=correct - confidence)
    return float(np.abs(gap).sum() / len(confidence))


def matched_types(truth: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Type of each cell's cluster, clusters matched to types one to one."""
    from scipy.optimize import linear_sum_assignment

    table = pd.crosstab(labels, truth)
    rows, columns = linear_sum_assignment(-table.to_numpy())
    names = dict(zip(table.index[rows], table.columns[columns], strict=True))
    return np.array([names.get(label, "") for label in labels])


def private_type(seed: int) -> dict[str, float]:
    """Five types in two batches, one of them in a single batch: F1 of its own cluster."""
    import scdeepclust as sdc

    adata = sdc.datasets.simulate_counts(
        1500, 300, n_clusters=5, n_batches=2, marker_log_fold_change=2.0, depth=500, seed=seed
    )
    private = ((adata.obs["cell_type"] == "type_4") & (adata.obs["batch"] == "batch_1")).to_numpy()
    adata = adata[~private].copy()
    model, _ = fit_model("GMVAE", adata, 5, seed)
    obs = adata.obs.assign(found=model.predict())
    scores = sdc.tl.score_clusters(obs, "found", label_key="cell_type").loc["found"]
    return {"F1 of the private type": scores["f1[type_4]"], "ARI": scores["ARI"]}


def depth(seed: int) -> dict[str, float]:
    """Share of the variance of the latent space that log depth explains, and that cell types explain."""
    adata = load(BLADDER)
    if adata is None:
        return {}
    model, _ = fit_model("GMVAE", adata, adata.obs["cell_type"].nunique(), seed)
    z = model.get_latent_representation()
    log_depth = np.log(np.asarray(adata.layers["counts"].sum(axis=1)).ravel())
    types = pd.get_dummies(adata.obs["cell_type"]).to_numpy(dtype=float)
    return {
        "R2 of the latent space given depth": explained(z, log_depth[:, None]),
        "R2 of depth given the latent space": explained(log_depth[:, None], z),
        "R2 of the latent space given cell types": explained(z, types),
    }


def explained(y: np.ndarray, x: np.ndarray) -> float:
    """Share of the variance of all columns of y that a linear model of x explains."""
    x = np.column_stack([np.ones(len(x)), x])
    residual = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return float(1 - residual.var(axis=0).sum() / y.var(axis=0).sum())


def estimator(seed: int) -> dict[str, float]:
    """The exact prior term and the published one: components in use, labels."""
    from sklearn.metrics import adjusted_rand_score

    adata = load(BLADDER)
    if adata is None:
        return {}
    truth = adata.obs["cell_type"]
    scores = {}
    for name in ("exact", "analytic_kl"):
        model, _ = fit_model("GMVAE", adata, truth.nunique(), seed, prior_estimator=name)
        scores[f"components in use, {name}"] = model.n_active_
        scores[f"ARI, {name}"] = adjusted_rand_score(truth, model.predict())
    return scores


CLAIMS: dict[str, _claims.Claim] = {
    "calibration": (
        "Confidence as a probability: 2000 simulated cells, 300 genes, five types, two batches. Accuracy is that after "
        "matching clusters to types one to one; the expected calibration error is the mean distance of confidence and "
        f"accuracy over {N_BINS} bins. The lower the fold change of the markers, the more the types overlap.",
        calibration,
    ),
    "private type": (
        "A cell type that only one batch has, simulated: it should stay a cluster of its own.",
        private_type,
    ),
    "depth": (
        f"Sequencing depth in the latent space of `{BLADDER}`: shares of explained variance, linear.",
        depth,
    ),
    "estimator": (
        f"`prior_estimator` on `{BLADDER}`, 16 components: the exact prior term, and the published estimate of it.",
        estimator,
    ),
}


def open_number_section() -> str:
    """Error of the number of clusters and what not knowing it costs, from the rows of `quality.py`."""
    rows = QUALITY.read()
    given = rows[rows.method == "gmvae"].set_index(["data", "seed"])
    found = rows[rows.method == "gmvae+auto"].set_index(["data", "seed"])
    if found.empty:
        return ""
    table = pd.DataFrame({"types": found.n_types, "found": found.n_clusters, "ari": found.ari, "given": given.ari})
    table = table.dropna()
    mean = table.groupby(level="data").mean()
    error = (table["found"] - table["types"]).abs() / table["types"]
    lines = [["data", "types in the labels", "clusters found", "ARI, number given", "ARI, number found"]]
    for name, row in mean.iterrows():
        lines.append([str(name), f"{row.types:.0f}", f"{row.found:.1f}", f"{row.given:.3f}", f"{row.ari:.3f}"])
    return f"""## number of clusters left open

From the rows of [label quality](quality.md), means over seeds. Median relative error of the number:
{error.median():.2f}; median loss of adjusted Rand index: {(table["given"] - table["ari"]).median():.3f}.

{markdown(lines)}"""


def lead(rows: pd.DataFrame) -> Lead:
    """Probability said against share of labels that are right, one point a seed."""
    part = rows[rows.claim == "calibration"]
    table = part.assign(
        what=part.quantity.str.split(", ").str[0], change=part.quantity.str.split(", ").str[1]
    ).pivot_table(index=["change", "seed"], columns="what", values="value")
    figure, (ax,) = panels(height=3.4)
    markers = dict(zip(table.index.unique("change"), "o^s", strict=False))
    for change, marker in markers.items():
        own = table.loc[change]
        ax.scatter(own["mean confidence"], own["accuracy"], s=26, marker=marker, color=BLUE, label=change, alpha=0.8)
    ax.plot([0.75, 1], [0.75, 1], color="#999999", linewidth=0.8)
    ax.set(xlabel="mean of the highest probability of a cell", ylabel="share of labels that are right", aspect="equal")
    legend_in(ax, loc="upper left")
    mean = part.groupby("quantity")["value"].mean()
    errors = mean[mean.index.str.startswith("calibration error")]
    private = rows[rows.quantity == "F1 of the private type"]["value"].mean()
    text = f"""\
On simulated cells whose types are known, the probabilities of the mixture are off by {errors.min():.3f} where types
are clear. A type that
only one batch has stays a cluster of its own (F1 {private:.2f}). **What is lost:** the more types overlap, the less a
cluster is a type, and
the error grows to {errors.max():.3f}."""
    return Lead(figure, "Mean probability against the share of right labels, one point a simulated set", text)


def write_page() -> None:
    rows = REPORT.read()
    REPORT.write("The mixture of GMVAE", lead(rows), *_claims.sections(rows, CLAIMS), open_number_section(), rows=rows)


if __name__ == "__main__":
    _claims.run(REPORT, __doc__, CLAIMS)
    write_page()
