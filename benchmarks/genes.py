"""Which genes to cluster by: selections x data sets x methods, on the sets that have genes to choose from.

Every selection takes 2000 genes; the labels of a method differ by nothing else.

    python benchmarks/genes.py --seeds 0                 # everything that is missing
    python benchmarks/genes.py --methods 'pca*'          # a part of it
    python benchmarks/genes.py --table                   # only rewrite the page
"""

from __future__ import annotations

from _methods import (  # first: it sets the number of threads
    FAMILIES,
    N_TOP_GENES,
    batch_key,
    load,
    warm_up,
)

# isort: split
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
from _agreement import gained_and_lost, left_out
from _charts import BLUE, GREEN, GREY, ORANGE, PINK, Lead, Mark, dots, legend_below, panels, titled
from _report import Report, markdown
from anndata import AnnData
from quality import SETS, score

REPORT = Report(__file__, ("data", "selection", "method", "seed"), seeds="0", packages=("scanpy", "scikit-learn"))

METHODS = ("pca+kmeans", "pca+leiden-k", "scdeepcluster", "gmvae")
IN_WORDS = {
    "pca+kmeans": "PCA + k-means",
    "pca+leiden-k": "PCA + Leiden at K",
    "scdeepcluster": "SCDeepCluster",
    "gmvae": "GMVAE",
}


def by_dispersion(adata: AnnData) -> np.ndarray:
    """What `tl.select_genes` does without batches."""
    import scdeepclust as sdc

    return sdc.tl.select_genes(adata, N_TOP_GENES, layer="counts").to_numpy()


def by_dispersion_in_batches(adata: AnnData) -> np.ndarray:
    """What `tl.select_genes` does with batches, where the data have some."""
    import scdeepclust as sdc

    return sdc.tl.select_genes(adata, N_TOP_GENES, layer="counts", batch_key=batch_key(adata)).to_numpy()


def by_flavour(adata: AnnData, select: str, flavour: str) -> np.ndarray:
    """By a flavour of scanpy that reads counts, in batches where there are some."""
    import scanpy as sc

    rank = {"pp": sc.pp, "experimental": sc.experimental.pp}[select].highly_variable_genes
    options = {"layer": "counts", "n_top_genes": N_TOP_GENES, "batch_key": batch_key(adata)}
    return rank(adata, flavor=flavour, inplace=False, check_values=False, **options)["highly_variable"].to_numpy()


def by_deviance(adata: AnnData) -> np.ndarray:
    """Binomial deviance from a constant share (Townes et al., Genome Biology 2019), all batches at once."""
    counts = adata.layers["counts"].tocsr().astype(np.float64)
    total = np.asarray(counts.sum(axis=1)).ravel()  # (n,)
    of_gene = np.asarray(counts.sum(axis=0)).ravel()
    share = np.clip(of_gene / total.sum(), 1e-12, 1 - 1e-12)
    cell = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    y, gene, n = counts.data, counts.indices, total[cell]
    at_counts = y * np.log(y / (n * share[gene]))
    rest = n - y
    at_rest = np.where(rest > 0, rest * np.log(np.maximum(rest, 1e-12) / (n * (1 - share[gene]))), 0)
    # a cell without the gene: n log(1 / (1 - share)), for all cells less those that have it
    zeros = -np.log1p(-share) * (total.sum() - np.bincount(gene, weights=n, minlength=len(share)))
    deviance = np.bincount(gene, weights=at_counts + at_rest, minlength=len(share)) + zeros
    chosen = np.zeros(len(share), dtype=bool)
    chosen[np.argsort(-deviance)[:N_TOP_GENES]] = True
    return chosen


def all_genes(adata: AnnData) -> np.ndarray:
    return np.ones(adata.n_vars, dtype=bool)


SELECTIONS: dict[str, Callable[[AnnData], np.ndarray]] = {
    "seurat": by_dispersion,
    "seurat by batch": by_dispersion_in_batches,
    "seurat_v3": partial(by_flavour, select="pp", flavour="seurat_v3"),
    "pearson": partial(by_flavour, select="experimental", flavour="pearson_residuals"),
    "deviance": by_deviance,
    "all genes": all_genes,
}


def run(datasets: list[str], methods: list[str], seeds: list[int], selections: list[str]) -> None:
    warm_up()
    for family, names in FAMILIES.values():
        wanted = set(methods) & set(names)
        for data in datasets if wanted else ():
            whole = load(data, None)
            if whole is None or whole.n_vars <= N_TOP_GENES:
                continue
            truth = whole.obs["cell_type"].astype(str).to_numpy()
            usual = by_dispersion(whole)
            for name in selections:
                if name == "seurat by batch" and batch_key(whole) is None:
                    continue  # the same as without
                for seed in seeds:
                    missing = {m for m in wanted if not REPORT.has(data=data, selection=name, method=m, seed=seed)}
                    if not missing:
                        continue
                    try:
                        chosen = SELECTIONS[name](whole)
                    except ValueError as error:  # the curve of seurat_v3 cannot be fitted to every batch
                        print(f"{data:22s} {name:16s} failed: {error}", flush=True)
                        continue
                    adata = whole[:, chosen].copy()
                    rows = [
                        {
                            "data": data,
                            "selection": name,
                            "method": result.method,
                            "seed": seed,
                            "n_genes": int(chosen.sum()),
                            "shared": round(float((chosen & usual).sum() / usual.sum()), 3),
                            "ari": score(truth, result.labels)["ari"],
                            "cpu_s": round(result.fit.cpu + result.cluster.cpu, 1),
                        }
                        for result in family(adata, np.unique(truth).size, seed, missing)
                        if result.method in missing
                    ]
                    REPORT.append(pd.DataFrame(rows))
                    for row in rows:
                        print(f"{data:22s} {name:16s} {row['method']:16s} ARI {row['ari']:.3f}", flush=True)


def scores_of(rows: pd.DataFrame, method: str) -> pd.DataFrame:
    """Sets x selections; where there are no batches, to select within them is to select."""
    table = rows[rows.method == method].pivot_table(index="data", columns="selection", values="ari")
    table = table.reindex(columns=[name for name in SELECTIONS if name in table])
    if "seurat by batch" in table:
        table["seurat by batch"] = table["seurat by batch"].fillna(table["seurat"])
    return table


MARKS = {
    "seurat": Mark("seurat", BLUE, filled=False),
    "seurat by batch": Mark("seurat by batch (the default)", BLUE),
    "seurat_v3": Mark("seurat_v3", ORANGE, "s"),
    "pearson": Mark("Pearson residuals", GREEN, "^"),
    "deviance": Mark("deviance", PINK, "v"),
    "all genes": Mark("all genes", GREY, "D"),
}


def lead(rows: pd.DataFrame) -> Lead:
    """Each set with the labels of the two baselines, by what genes were taken."""
    tables = {method: scores_of(rows, method) for method in METHODS if (rows.method == method).any()}
    figure, axes = panels(2, height=0.28 * max(map(len, tables.values())) + 1.4)
    for ax, method in zip(axes, list(tables)[:2], strict=True):
        dots(ax, tables[method], MARKS, "adjusted Rand index")
        titled(ax, IN_WORDS[method])
    axes[1].set_yticklabels([])
    legend_below(figure, axes[0], n_columns=3)
    means = {method: table.dropna().mean() for method, table in tables.items()}
    said = "; ".join(
        f"with {IN_WORDS[method]} {mean.idxmax()} has the highest mean ({mean.max():.3f}), the default has "
        f"{mean['seurat by batch']:.3f}"
        for method, mean in means.items()
        if len(tables[method].dropna()) > 3
    )
    text = (
        f"What genes are taken moves single sets by up to "
        f"{max((t.max(axis=1) - t.min(axis=1)).max() for t in tables.values()):.2f}, and no selection is best "
        f"everywhere. On the sets that have all columns, {said}."
    )
    return Lead(figure, "Dots of the adjusted Rand index of each data set by selection of genes", text)


def write_page(rows: pd.DataFrame) -> None:
    if rows.empty:
        print("no rows yet, no page written")
        return
    sections = []
    for method in (method for method in METHODS if (rows.method == method).any()):
        table = scores_of(rows, method)
        whole = table.dropna()
        lines = [["data", *table.columns]]
        lines += [[data, *("-" if np.isnan(x) else f"{x:.3f}" for x in row)] for data, row in table.iterrows()]
        if len(whole):
            lines.append(["*mean*", *(f"{x:.3f}" for x in whole.mean())])
            against = [gained_and_lost(whole[name], whole["seurat"]) for name in whole]
            lines.append(["*sets gained / lost*", *(f"{gained} / {lost}" for gained, lost in against)])
        text = ""
        if len(whole) > 3:
            mean, spread = left_out(whole)
            text = (
                f"Chosen on half of the {len(whole)} sets that have all columns and judged on the other half, over 20 "
                f"splits: {mean:.3f} ± {spread:.3f}; the default, `seurat by batch`, has "
                f"{whole['seurat by batch'].mean():.3f}."
            )
        sections += [f"## {IN_WORDS[method]}", text, markdown(lines)]
    seeds = ", ".join(map(str, sorted(rows.seed.unique())))
    REPORT.write(
        "Which genes to cluster by",
        lead(rows),
        f"""\
Adjusted Rand index with the number of clusters given (for Leiden, searched), on the sets that have more than
{N_TOP_GENES} genes; seed {seeds}. Each selection takes {N_TOP_GENES} genes, but for the last. *seurat* ranks genes by
their dispersion among genes of like mean; *by batch* does so within each batch, which is what
{{func}}`scdeepclust.tl.select_genes` does; *seurat_v3*, *pearson* and *deviance* rank by the variance of standardised
counts, of Pearson residuals (both within batches), and by the deviance from a constant share. Gained and lost by more
than .01 are counted against *seurat*.""",
        *sections,
        rows=rows,
    )


def main() -> None:
    parser = REPORT.parser(__doc__, data=SETS, methods=METHODS, selections=tuple(SELECTIONS))
    arguments = REPORT.parse(parser)
    if not arguments.table:
        run(arguments.data, arguments.methods, arguments.seeds, arguments.selections)
    write_page(REPORT.read())


if __name__ == "__main__":
    main()
