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


def write_page() -> None:
    rows = REPORT.read()
    sections = []
    for data in [name for name in DATASETS if name in set(rows.data)]:
        part = rows[rows.data == data].groupby("embedding")
        mean, sd = part[[*SHOWN]].mean().reindex(EMBEDDINGS), part["Total"].std()
        lines = [["embedding", *SHOWN[:-1], "own labels, ARI", "CPU s"]]
        for name in mean.index:
            cells = ["-" if np.isnan(mean.loc[name, column]) else f"{mean.loc[name, column]:.3f}" for column in SHOWN]
            if not np.isnan(sd[name]):
                cells[SHOWN.index("Total")] += f" ± {sd[name]:.3f}"
            lines.append([name, *cells, f"{part['fit_cpu_s'].mean()[name]:.0f}"])
        sections.append(f"## {data}\n\nSeeds: {part.size().max()}.\n\n{markdown(lines)}")
    REPORT.write("Batch integration", TEXT, *sections, rows=rows)


TEXT = """\
Scores of `tl.benchmark_integration` (scib-metrics), all between 0 and 1, 1 is best; they judge an embedding by the
labels that come with the data. *Total* is 0.6 of the mean bio conservation (the first five columns) plus 0.4 of the
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
