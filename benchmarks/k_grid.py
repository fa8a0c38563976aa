"""The published grid over the number of components K, on data with batches -> one CSV, then one Markdown page.

Two protocols side by side. That of the published study reads scores off the latent space with the labels at hand: the
best adjusted Rand index over k-means with 1 to 21 clusters, the best mutual information over Leiden resolutions 0.1 to
2. The other one needs no labels: those of the model, the largest component posterior.

K = 1 is the autoencoder with its prior N(0, I), that is the first phase alone, trained for as many epochs.

    python benchmarks/k_grid.py                  # everything that is missing
    python benchmarks/k_grid.py --table          # only rewrite the page
"""

from __future__ import annotations

from _methods import Timer, leiden, load, neighbour_graph, one_thread  # first: it sets the number of threads

# isort: split
import numpy as np
import pandas as pd
import torch
from _charts import BLUE, GREY, Lead, legend_in, panels
from _report import Report, markdown, number_list
from anndata import AnnData

REPORT = Report(__file__, ("data", "k", "seed"), seeds="0-2", packages=("scib-metrics",))

DATA = "kang_muscat"
GRID = (1, 10, 20, 30, 40, 50)
N_RESTARTS = 10  # of k-means; the best of many clusterings is taken anyway
TRAIN_SIZE = 0.8  # the evidence is that of the other cells

# Column of the CSV -> (head in the page, format). The first block is the protocol of the published study.
COLUMNS = {
    "best_ari": ("best ARI (labels used)", ".3f"),
    "best_nmi": ("best NMI (labels used)", ".3f"),
    "isolated": ("isolated labels", ".3f"),
    "batch_asw": ("batch ASW", ".3f"),
    "kbet": ("kBET", ".3f"),
    "minus_elbo": ("-ELBO, held out", ".1f"),
    "own_ari": ("own ARI", ".3f"),
    "own_nmi": ("own NMI", ".3f"),
    "n_active": ("components in use", ".1f"),
}


def fit(adata: AnnData, k: int, seed: int):
    """A model with k components, from its usual number of epochs."""
    import scvi

    import scdeepclust as sdc
    from scdeepclust.train import epochs_for_steps

    scvi.settings.seed = seed
    one_thread()
    adata = adata.copy()
    sdc.model.GMVAE.setup_anndata(adata, layer="counts", batch_key="batch")
    model = sdc.model.GMVAE(adata, n_clusters=max(k, 2))
    epochs = {}
    if k == 1:
        epochs = {"pretrain_epochs": epochs_for_steps(1800, round(TRAIN_SIZE * adata.n_obs), 128, 260), "max_epochs": 0}
    model.train(**epochs, train_size=TRAIN_SIZE, accelerator="cpu", enable_progress_bar=False)
    return model


def minus_elbo(model, k: int) -> float:
    """Negative evidence of the held-out cells, in nats a cell."""
    cells = model.validation_indices
    if k > 1:
        return -model.get_elbo_terms(indices=cells)["elbo"].mean()
    model.module.eval()
    total = 0.0
    with torch.inference_mode():
        for tensors in model._minibatches(indices=cells):
            terms = model.module(tensors, loss_kwargs={"phase": "vae"})[2]  # with the prior N(0, I)
            total += float(terms.reconstruction_loss_sum + terms.kl_local_sum)
    return total / len(cells)


def label_based(z: np.ndarray, truth: np.ndarray, seed: int) -> dict[str, float]:
    """Best scores over many clusterings of the latent space, chosen with the labels."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    labels = [KMeans(k, n_init=N_RESTARTS, random_state=seed).fit_predict(z) for k in range(1, 22)]
    graph = neighbour_graph(z, seed)
    resolutions = np.arange(1, 21) / 10
    return {
        "best_ari": max(adjusted_rand_score(truth, found) for found in labels),
        "best_nmi": max(normalized_mutual_info_score(truth, leiden(graph, float(r), seed)) for r in resolutions),
    }


def measure(adata: AnnData, k: int, seed: int) -> dict[str, float]:
    import scdeepclust as sdc

    with Timer() as timer:
        model = fit(adata, k, seed)
    truth = adata.obs["cell_type"].astype(str).to_numpy()
    adata.obsm["z"], adata.obs["own"] = model.get_latent_representation(), model.predict()
    keys = {"batch_key": "batch", "label_key": "cell_type"}
    table = sdc.tl.benchmark_integration(adata, {"z": "own"}, **keys).loc["z"]
    row = label_based(adata.obsm["z"], truth, seed) | {
        "isolated": table["Isolated labels"],
        "batch_asw": table["Silhouette batch"],
        "kbet": table["KBET"],
        "minus_elbo": minus_elbo(model, k),
    }
    if k > 1:
        row |= {"own_ari": table["Own ARI"], "own_nmi": table["Own NMI"], "n_active": model.n_active_}
    return {name: round(float(value), 4) for name, value in row.items()} | {"fit_cpu_s": round(timer.cpu, 1)}


def run(seeds: list[int], grid: list[int], again: bool) -> None:
    adata = load(DATA)
    if adata is None:
        return
    for seed in seeds:
        for k in grid:
            if REPORT.has(data=DATA, k=k, seed=seed) and not again:
                continue
            row = {"data": DATA, "k": k, "seed": seed} | measure(adata, k, seed)
            REPORT.append(pd.DataFrame([row]))
            print(row, flush=True)


def lead(rows: pd.DataFrame) -> Lead:
    """Scores against the number of components."""
    figure, (ax,) = panels(height=2.8)
    mean, sd = rows.groupby("k").mean(numeric_only=True), rows.groupby("k").std(numeric_only=True)
    for column, color, name in (
        ("best_ari", GREY, "best over clusterings of the latent space, chosen with the labels"),
        ("own_ari", BLUE, "the model's own K clusters"),
    ):
        ax.errorbar(mean.index, mean[column], sd[column], color=color, marker="o", markersize=4, capsize=2, label=name)
    ax.set(xlabel="components K", ylabel="adjusted Rand index", ylim=(0, 1))
    legend_in(ax, loc="lower left")
    best, first = mean.own_ari.idxmax(), mean.best_ari
    text = f"""\
The latent space hardly depends on K: the best clustering of it has an ARI of {first.min():.2f} to {first.max():.2f}
over the whole grid. The
model's own clusters do: {mean.own_ari.max():.2f} with {best} components, {mean.own_ari.iloc[-1]:.2f} with
{mean.index[-1]}. **What is lost:** components that are too many are
not emptied but used, so that K has to be given, or [found](one_population.md), close to the number of groups."""
    return Lead(figure, "Adjusted Rand index against the number of components", text)


def write_page() -> None:
    rows = REPORT.read()
    adata = load(DATA)
    n_types = "" if adata is None else f", {adata.obs['cell_type'].nunique()} cell types"
    columns = list(COLUMNS)
    text = f"""\
GMVAE with K components on `{DATA}` ({rows.seed.nunique()} seeds{n_types}), everything else at its defaults, trained on
{TRAIN_SIZE:.0%} of the cells. *best ARI*, *best NMI*, *isolated labels*, *batch ASW* and *kBET* follow the protocol of
the published study and say something of the latent space: the first two are the best over k-means with 1 to 21 clusters
and over Leiden resolutions 0.1 to 2, **chosen with the labels**. *own ARI* and *own NMI* need no labels: they are those
of the model's own clusters, all K of them. With K = 1 the prior is N(0, I), which has no clusters."""
    REPORT.write("The grid over K", lead(rows), text, table(rows, columns[:5]), table(rows, columns[5:]), rows=rows)


def table(rows: pd.DataFrame, columns: list[str]) -> str:
    lines = [["K", *(COLUMNS[name][0] for name in columns)]]
    for k, part in rows.groupby("k"):
        cells = []
        for name in columns:
            mean, sd, form = part[name].mean(), part[name].std(), COLUMNS[name][1]
            text = "-" if np.isnan(mean) else f"{mean:{form}}"
            cells.append(text if np.isnan(sd) else f"{text} ± {sd:{form}}")
        lines.append([str(k), *cells])
    return markdown(lines)


def main() -> None:
    parser = REPORT.parser(__doc__)
    parser.add_argument("--grid", type=number_list, default=list(GRID), help="numbers of components")
    arguments = REPORT.parse(parser)
    if not arguments.table:
        run(arguments.seeds, arguments.grid, arguments.again)
    write_page()


if __name__ == "__main__":
    main()
