"""Label quality: data sets x methods x seeds -> one CSV, then one Markdown page.

Every method gets the same cells and genes (2000 highly variable genes, all genes where there are fewer), the same
number of k-means restarts and one thread. Rows that the CSV already has are not measured again, so a run may be
stopped and resumed, and two runs may write to the same file at once.

    python benchmarks/quality.py --seeds 0-4                          # everything that is missing
    python benchmarks/quality.py --methods 'pca*' --data baron_mouse  # a part of it
    python benchmarks/quality.py --methods 'scdeepcluster*' --again   # measure anew
    python benchmarks/quality.py --table                              # only write the page and the README's table

The labelled data sets are read from the folder in SCDEEPCLUST_DATA; missing files are skipped.
"""

from __future__ import annotations

from collections.abc import Iterable

from _methods import (  # first: it sets the number of threads
    DATASETS,
    FAMILIES,
    METHODS,
    N_NEIGHBORS,
    N_PCS,
    N_RESTARTS,
    N_TOP_GENES,
    OPEN,
    Labels,
    load,
    warm_up,
)

# isort: split
import numpy as np
import pandas as pd
from _quality_tables import SCVI, clusters_table, ratio_table, score_table, seconds_table, write_summary
from _report import HERE, Report
from anndata import AnnData

REPORT = Report(__file__, ("data", "method", "seed"), seeds="0-4", packages=("scanpy", "scikit-learn"))

TOO_EASY = "zheng_sorted_500"  # to tell methods apart: measured only by name


def score(truth: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    table = pd.crosstab(truth, labels).to_numpy()
    rows, columns = linear_sum_assignment(-table)
    return {
        "ari": round(float(adjusted_rand_score(truth, labels)), 4),
        "nmi": round(float(normalized_mutual_info_score(truth, labels)), 4),
        "accuracy": round(float(table[rows, columns].sum() / table.sum()), 4),
    }


def rows_of(truth: np.ndarray, data: str, seed: int, wanted: set[str], results: Iterable[Labels]) -> pd.DataFrame:
    """One row a method; `k` tells whether the true number of clusters was given, searched for or not used."""
    rows = [
        {
            "data": data,
            "method": result.method,
            "seed": seed,
            "k": result.k,
            "n_types": np.unique(truth).size,
            "n_clusters": np.unique(result.labels).size,
            **score(truth, result.labels.astype(str)),
            "fit_cpu_s": round(result.fit.cpu, 2),
            "fit_wall_s": round(result.fit.wall, 2),
            "cluster_cpu_s": round(result.cluster.cpu, 2),
            "cluster_wall_s": round(result.cluster.wall, 2),
        }
        for result in results
        if result.method in wanted
    ]
    return pd.DataFrame(rows)


def missing(methods: Iterable[str], data: str, seed: int, again: bool) -> set[str]:
    """Those of the methods that are to be measured."""
    known = REPORT.read()
    done = set(known.method[(known.data == data) & (known.seed == seed)])
    return set(methods) - (set() if again else done)


def run(datasets: list[str], methods: list[str], seeds: list[int], again: bool) -> None:
    warm_up()
    loaded: dict[str, AnnData | None] = {}
    for family, names in FAMILIES.values():
        for seed in seeds:  # all data sets with one seed first: a stopped run is then a table with fewer seeds
            for data in datasets:
                wanted = missing(set(methods) & set(names), data, seed, again)
                if not wanted:
                    continue
                if data not in loaded:
                    loaded[data] = load(data)
                if (adata := loaded[data]) is None:
                    continue
                truth = adata.obs["cell_type"].astype(str).to_numpy()
                results = family(adata, np.unique(truth).size, seed, wanted)
                rows = rows_of(truth, data, seed, wanted, results)
                if rows.empty:  # Harmony, where there are no batches
                    continue
                REPORT.append(rows)
                for row in rows.itertuples():
                    seconds = row.fit_cpu_s + row.cluster_cpu_s
                    print(f"{data:22s} {row.method:20s} seed {seed}  ARI {row.ari:.3f}  {seconds:7.1f} s", flush=True)


def write_page(rows: pd.DataFrame) -> None:
    rows = rows[rows.method.isin(METHODS) & rows.data.isin(DATASETS)]
    if rows.empty:
        print("no rows yet, no page written")
        return
    REPORT.write(
        "Label quality",
        f"""\
Same cells and genes for all methods: {N_TOP_GENES} highly variable genes (flavour `seurat` on log1p of counts to
10,000 a cell; all genes where there are fewer). PCA and Harmony see each gene standardised (clipped at 10) and
{N_PCS} components, Leiden {N_NEIGHBORS} nearest neighbours; k-means has {N_RESTARTS} restarts; everything else is at
its default. scVI, Harmony and the models of this package are told the batches where the data have some. One thread.
Mean ± standard deviation over the seeds; the best mean of a column is bold.""",
        f"""\
The column K: *given* - the method was told the true number of types; *searched* - the resolution was searched until
the true number came out; *estimated* - the method chose the number itself. Rows with different K do not compare fairly.
Rows that end in `:start` are the labels from which the clustering phase of a model starts, in those that end in
`{OPEN}` the model chose the number of clusters, `idc+kmeans` is k-means on the latent codes of `idc`, and
`pca+leiden-k` is Leiden at the true number of clusters. The mean marked * takes PCA + k-means where there are no
batches: Harmony has nothing to correct there.""",
        "## Adjusted Rand index",
        score_table(rows, "ari"),
        "## Normalised mutual information",
        score_table(rows, "nmi"),
        "## Accuracy after matching clusters to types one to one",
        score_table(rows, "accuracy"),
        "## CPU seconds of one run (seed 0), fit and clustering",
        seconds_table(rows),
        "How many times as long scVI with Leiden at the true number of clusters "
        f"(`{SCVI}`) takes, seed {rows.seed.min()}:",
        ratio_table(rows),
        "## Number of clusters, mean over seeds",
        clusters_table(rows),
        rows=rows,
    )


def main() -> None:
    parser = REPORT.parser(__doc__, data=(*DATASETS, TOO_EASY), methods=METHODS)
    parser.set_defaults(data=",".join(DATASETS))
    arguments = REPORT.parse(parser)
    if not arguments.table:
        run(arguments.data, arguments.methods, arguments.seeds, arguments.again)
    rows = REPORT.read()
    write_page(rows)
    if not REPORT.is_moved:
        write_summary(HERE.parent / "README.md", rows)


if __name__ == "__main__":
    main()
