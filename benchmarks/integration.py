"""Batch integration: GMVAE, scVI and components scored by scib-metrics -> one CSV, then one Markdown page.

On three data sets with batches each embedding is scored by `tl.benchmark_integration`, with the labels of the data as
cell types. scVI has the layers, the latent size and the number of epochs of the GMVAE. Rows that the CSV already has
are not measured again. One thread.

    python benchmarks/integration.py                            # everything that is missing
    python benchmarks/integration.py --data kang_muscat --seeds 0
    python benchmarks/integration.py --table                    # only rewrite the page
"""

from __future__ import annotations

from collections.abc import Iterator

from _methods import DATASETS, Timer, batch_key, components, fit_model, load, one_thread  # first: number of threads

# isort: split
import numpy as np
import pandas as pd
from _charts import BLUE, GREY, ORANGE, Lead, Mark, dots, legend_below, panels, titled
from _report import Report, markdown
from anndata import AnnData

REPORT = Report(__file__, ("data", "seed"), seeds="0-2", packages=("scib-metrics",))

BATCHES = ("kang_muscat", "sc_mixology_cellines", "baron_mouse")
EMBEDDINGS = ("pca", "scvi", "gmvae")
SHOWN = ("Isolated labels", "KMeans NMI", "KMeans ARI", "Silhouette label", "cLISI", "BRAS", "iLISI", "KBET",
         "Graph connectivity", "Bio conservation", "Batch correction", "Total", "Silhouette batch",
         "Own ARI")  # fmt: skip


def embed(adata: AnnData, seed: int) -> Iterator[tuple[str, np.ndarray, float, np.ndarray | None]]:
    """Name, embedding, CPU seconds of the fit and, if it has any, own labels of each method."""
    with Timer() as timer:
        pca = components(adata, seed)
    yield "pca", pca, timer.cpu, None
    n_types = adata.obs["cell_type"].nunique()
    model, timer = fit_model("GMVAE", adata, n_types, seed)
    epochs = sum(length for _, length in model.phases_)
    yield "gmvae", model.get_latent_representation(), timer.cpu, model.predict()
    same = {"n_layers": model.init_params_["non_kwargs"]["n_layers"], "n_latent": model.module.n_latent}
    latent, seconds = fit_scvi(adata, same, epochs, seed)
    yield "scvi", latent, seconds, None


def fit_scvi(adata: AnnData, arguments: dict, epochs: int, seed: int) -> tuple[np.ndarray, float]:
    import scvi

    scvi.settings.seed = seed
    one_thread()
    adata = adata.copy()
    scvi.model.SCVI.setup_anndata(adata, layer="counts", batch_key=batch_key(adata))
    with Timer() as timer:
        model = scvi.model.SCVI(adata, **arguments)
        model.train(max_epochs=epochs, accelerator="cpu", enable_progress_bar=False)
    return model.get_latent_representation(), timer.cpu


def measure(adata: AnnData, data: str, seed: int) -> pd.DataFrame:
    import scdeepclust as sdc

    seconds, own = {}, {}
    for name, embedding, cpu, labels in embed(adata, seed):
        adata.obsm[name], seconds[name], own[name] = embedding, cpu, None
        if labels is not None:
            own[name] = f"{name}_labels"
            adata.obs[own[name]] = labels
    table = sdc.tl.benchmark_integration(adata, own, batch_key="batch", label_key="cell_type")
    table = table.round(4).reset_index()
    table.insert(0, "data", data)
    table.insert(1, "seed", seed)
    table["fit_cpu_s"] = [round(seconds[name], 1) for name in table["embedding"]]
    return table


def run(datasets: list[str], seeds: list[int], again: bool) -> None:
    for seed in seeds:
        for data in datasets:
            if REPORT.has(data=data, seed=seed) and not again:
                continue
            adata = load(data)
            if adata is None:
                continue
            table = measure(adata, data, seed)
            REPORT.append(table)
            print(data, seed, table.set_index("embedding")["Total"].to_dict(), flush=True)


MARKS = {"pca": Mark("PCA", GREY), "scvi": Mark("scVI", ORANGE, "^"), "gmvae": Mark("GMVAE", BLUE, "D")}


def lead(rows: pd.DataFrame) -> Lead:
    """Total, bio conservation and batch correction of each embedding."""
    figure, axes = panels(3, height=0.35 * rows.data.nunique() + 1.3)
    order = [name for name in DATASETS if name in set(rows.data)]
    tables = {}
    for ax, score in zip(axes, ("Total", "Bio conservation", "Batch correction"), strict=True):
        tables[score] = rows.pivot_table(index="data", columns="embedding", values=score).loc[order]
        dots(ax, tables[score], MARKS, "score, 1 is best")
        titled(ax, score)
        if ax is not axes[0]:
            ax.set_yticklabels([])
    legend_below(figure, axes[0])
    total, bio, batch = (tables[score].mean() for score in tables)
    behind = [data for data, row in tables["Total"].iterrows() if row.gmvae < row.scvi]
    lost = [name for name, mean in (("bio conservation", bio), ("batch correction", batch)) if mean.gmvae < mean.scvi]
    text = f"""\
The embedding of `GMVAE` has a mean total of {total.gmvae:.3f}, that of scVI {total.scvi:.3f}; it is behind on
{len(behind)} of {len(order)} sets. Bio
conservation is {bio.gmvae:.3f} against {bio.scvi:.3f}, batch correction {batch.gmvae:.3f} against {batch.scvi:.3f}.
**What is lost:**
{" and ".join(lost) or "neither of the two"}{", and the total on " + ", ".join(behind) if behind else ""}."""
    return Lead(figure, "Scores of three embeddings, one mark an embedding", text)


def write_page() -> None:
    rows = REPORT.read()
    sections = []
    for data in [name for name in DATASETS if name in set(rows.data)]:
        part = rows[rows.data == data].groupby("embedding")
        mean, sd = part[[*SHOWN]].mean().reindex(EMBEDDINGS), part["Total"].std()
        lines = [["score", *mean.index]]
        for column in SHOWN:
            cells = ["-" if np.isnan(value) else f"{value:.3f}" for value in mean[column]]
            if column == "Total":
                cells = [
                    cell if np.isnan(sd[name]) else f"{cell} ± {sd[name]:.3f}"
                    for cell, name in zip(cells, mean.index, strict=True)
                ]
            lines.append(["own labels, ARI" if column == "Own ARI" else column, *cells])
        lines.append(["CPU s", *(f"{seconds:.0f}" for seconds in part["fit_cpu_s"].mean()[mean.index])])
        sections.append(f"## {data}\n\nSeeds: {part.size().max()}.\n\n{markdown(lines)}")
    REPORT.write("Batch integration", lead(rows), TEXT, *sections, rows=rows)


TEXT = """\
Scores of `tl.benchmark_integration` (scib-metrics), all between 0 and 1, 1 is best; they judge an embedding by the
labels that come with the data. *Total* is 0.6 of the mean bio conservation (the first five rows) plus 0.4 of the
mean batch correction (the next four). *Silhouette batch* is in no mean. Values are means over seeds, with the
standard deviation of the total where there is more than one.
scVI has the number of layers, the latent size and the number of epochs of the GMVAE. All see the same cells and genes
and are told the batches, but for *pca*."""


def main() -> None:
    arguments = REPORT.parse(REPORT.parser(__doc__, data=BATCHES))
    if not arguments.table:
        run(arguments.data, arguments.seeds, arguments.again)
    write_page()


if __name__ == "__main__":
    main()
