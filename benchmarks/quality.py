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
    NEW_DATASETS,
    Labels,
    load,
    warm_up,
)

# isort: split
import numpy as np
import pandas as pd
from _agreement import STABLE, agreement
from _quality_tables import (
    SCVI,
    TOLD,
    against_table,
    agreement_table,
    clusters_table,
    distance_table,
    lead,
    left_out_table,
    ratio_table,
    score_table,
    seconds_table,
    write_summary,
)
from _report import HERE, Report
from anndata import AnnData

REPORT = Report(__file__, ("data", "method", "seed"), seeds="0-4", packages=("scanpy", "scikit-learn"))

SEEDS = Report("seed_agreement.py", ("data", "method"), packages=("scanpy", "scikit-learn"))

SETS = (*DATASETS, *NEW_DATASETS)
CACHE = HERE / ".cache" / "labels"
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
                results = keep_labels(data, seed, wanted, family(adata, np.unique(truth).size, seed, wanted))
                rows = rows_of(truth, data, seed, wanted, results)
                if rows.empty:  # Harmony, where there are no batches
                    continue
                REPORT.append(rows)
                for row in rows.itertuples():
                    seconds = row.fit_cpu_s + row.cluster_cpu_s
                    print(f"{data:22s} {row.method:20s} seed {seed}  ARI {row.ari:.3f}  {seconds:7.1f} s", flush=True)


def keep_labels(data: str, seed: int, wanted: set[str], results: Iterable[Labels]) -> list[Labels]:
    """The same results; their labels go into a cache, to see how far seeds agree."""
    found = [result for result in results if result.method in wanted]
    CACHE.mkdir(parents=True, exist_ok=True)
    for result in found:
        codes = np.unique(result.labels.astype(str), return_inverse=True)[1].astype(np.int16)
        np.save(CACHE / f"{data}__{result.method}__{seed}.npy", codes)
    return found


def compare_seeds() -> None:
    """One row a set and method of which the labels of several seeds are in the cache."""
    runs: dict[tuple[str, str], list[np.ndarray]] = {}
    for path in sorted(CACHE.glob("*.npy")):
        data, method, _ = path.stem.split("__")
        runs.setdefault((data, method), []).append(np.load(path))
    rows = [
        {"data": data, "method": method, "n_seeds": len(labels), **agreement(labels)}
        for (data, method), labels in runs.items()
        if len(labels) > 1
    ]
    if rows:
        SEEDS.append(pd.DataFrame(rows).round(4))


def write_page(rows: pd.DataFrame) -> None:
    rows = rows[rows.method.isin(METHODS) & rows.data.isin(SETS)]
    if rows.empty:
        print("no rows yet, no page written")
        return
    seeds = SEEDS.read()
    REPORT.write(
        "Label quality",
        lead(rows),
        f"""\
Same cells and genes for all methods: {N_TOP_GENES} highly variable genes (flavour `seurat` on log1p of counts to
10,000 a cell; all genes where there are fewer). PCA and Harmony see each gene standardised (clipped at 10) and
{N_PCS} components, Leiden {N_NEIGHBORS} nearest neighbours; k-means has {N_RESTARTS} restarts; everything else is at
its default. scVI, Harmony and the models of this package are told the batches where the data have some; without
batches Harmony is PCA. One thread. Means over the seeds; the best of a row is bold.""",
        """\
What a method was told does not compare with what another one had to find, so there is a table for each. Defaults of
this package up to version 0.1 were chosen on the first nine sets; the nine below them had no part in that, but for the
length of the training of `GMVAE`. A dash: not measured.""",
        *(
            f"## Adjusted Rand index, number of clusters {told}\n\n{score_table(rows, 'ari', methods)}"
            for told, methods in TOLD.items()
        ),
        "## Gained and lost against each baseline",
        against_table(rows),
        "## Distance to the best baseline of each set",
        "Number of clusters given, or searched with the help of the labels for the baselines by Leiden.",
        distance_table(rows),
        "## What a choice is worth on sets left out of it",
        left_out_table(rows),
        "" if seeds.empty else "## Agreement of seeds",
        ""
        if seeds.empty
        else f"""\
The same cells, another seed: mean adjusted Rand index over pairs of seeds, the least over all pairs and sets, and the
share of cells whose element-centric consistency is below {STABLE}. Rows are in
`benchmarks/results/{SEEDS.csv.name}`.""",
        "" if seeds.empty else agreement_table(seeds),
        "## Normalised mutual information, number of clusters given",
        score_table(rows, "nmi", TOLD["given"]),
        f"## CPU seconds of one run (seed {rows.seed.min()}), fit and clustering",
        seconds_table(rows),
        f"How many times as long scVI with Leiden at the true number of clusters (`{SCVI}`) takes:",
        ratio_table(rows),
        "## Number of clusters where the method finds it, mean over seeds",
        clusters_table(rows),
        rows=rows,
    )


def main() -> None:
    parser = REPORT.parser(__doc__, data=(*SETS, TOO_EASY), methods=METHODS)
    parser.set_defaults(data=",".join(SETS))
    arguments = REPORT.parse(parser)
    if not arguments.table:
        run(arguments.data, arguments.methods, arguments.seeds, arguments.again)
        compare_seeds()
    rows = REPORT.read()
    write_page(rows)
    if not REPORT.is_moved:
        write_summary(HERE.parent / "README.md", rows)


if __name__ == "__main__":
    main()
