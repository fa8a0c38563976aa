"""Label quality: data sets x methods x seeds -> one CSV, then one Markdown page.

Every method gets the same cells and genes (2000 highly variable genes, all genes where there are fewer), the same
number of k-means restarts and one thread. Rows that the CSV already has are not measured again, so a run may be
stopped and resumed, and two runs may write to the same file at once.

    python benchmarks/quality.py --seeds 0-4                          # everything that is missing
    python benchmarks/quality.py --methods 'pca*' --data baron_mouse  # a part of it
    python benchmarks/quality.py --methods 'scdeepcluster*' --again   # measure anew, the newest row counts
    python benchmarks/quality.py --table                              # only rewrite the page and the README's table

The labelled data sets are read from the folder in SCDEEPCLUST_DATA; missing files are skipped.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import fnmatch
import io
import os
import subprocess
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path

from _methods import DATASETS, FAMILIES, METHODS, Labels, load, warm_up  # first: it sets the number of threads

# isort: split
import numpy as np
import pandas as pd
from _page import write_page, write_summary
from anndata import AnnData

HERE = Path(__file__).resolve().parent
CSV = HERE / "results" / "quality.csv"
PAGE = HERE.parent / "docs" / "benchmarks" / "quality.md"
README = HERE.parent / "README.md"


@dataclass
class Row:
    """One measurement; `k` tells whether the true number of clusters was given, searched for or not used."""

    data: str
    method: str
    seed: int
    k: str
    n_types: int
    n_clusters: int
    ari: float
    nmi: float
    accuracy: float
    fit_cpu_s: float
    fit_wall_s: float
    cluster_cpu_s: float
    cluster_wall_s: float
    versions: str


# ---- measuring -------------------------------------------------------------------------------------------------------


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


def versions() -> str:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True, check=False
    ).stdout.strip()
    packages = " ".join(f"{name}={version(name)}" for name in ("torch", "scvi-tools", "scanpy", "scikit-learn"))
    return f"scdeepclust={version('scdeepclust')}({commit or 'no git'}) {packages}"


def measure(adata: AnnData, data: str, family: str, seed: int, wanted: set[str]) -> list[Row]:
    truth = adata.obs["cell_type"].astype(str).to_numpy()
    return rows_of(truth, data, seed, wanted, FAMILIES[family][0](adata, np.unique(truth).size, seed, wanted))


def rows_of(truth: np.ndarray, data: str, seed: int, wanted: set[str], results: Iterable[Labels]) -> list[Row]:
    k = np.unique(truth).size
    rows = []
    for result in results:
        if result.method not in wanted:
            continue
        rows.append(
            Row(
                data=data,
                method=result.method,
                seed=seed,
                k=result.k,
                n_types=k,
                n_clusters=np.unique(result.labels).size,
                **score(truth, result.labels.astype(str)),
                fit_cpu_s=round(result.fit.cpu, 2),
                fit_wall_s=round(result.fit.wall, 2),
                cluster_cpu_s=round(result.cluster.cpu, 2),
                cluster_wall_s=round(result.cluster.wall, 2),
                versions=versions(),
            )
        )
    return rows


def read(path: Path) -> pd.DataFrame:
    """All rows; where one was measured twice the newest."""
    if not path.exists():
        return pd.DataFrame(columns=[field.name for field in fields(Row)])
    return pd.read_csv(path).drop_duplicates(["data", "method", "seed"], keep="last")


def append(path: Path, rows: list[Row]) -> None:
    """One write under a lock, so that runs side by side neither lose nor mix lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", newline="") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        text = io.StringIO()
        writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
        if os.fstat(file.fileno()).st_size == 0:
            writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
        file.write(text.getvalue())
        file.flush()


def run(path: Path, datasets: list[str], methods: set[str], seeds: list[int], again: bool) -> None:
    warm_up()
    loaded: dict[str, AnnData | None] = {}
    for family, (_, names) in FAMILIES.items():
        for seed in seeds:  # all data sets with one seed first: a stopped run is then a table with fewer seeds
            for data in datasets:
                known = read(path)
                done = set(known.method[(known.data == data) & (known.seed == seed)])
                wanted = methods & set(names) - (set() if again else done)
                if not wanted:
                    continue
                if data not in loaded:
                    loaded[data] = load(data)
                if loaded[data] is None:
                    continue
                rows = measure(loaded[data], data, family, seed, wanted)
                append(path, rows)
                for row in rows:
                    seconds = row.fit_cpu_s + row.cluster_cpu_s
                    print(f"{data:22s} {row.method:20s} seed {seed}  ARI {row.ari:.3f}  {seconds:7.1f} s", flush=True)


# ---- command line ----------------------------------------------------------------------------------------------------


def seed_list(text: str) -> list[int]:
    """'0-4' or '0,2,5' or a mixture."""
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds.extend(range(int(first), int(last or first) + 1))
    return seeds


def matching(patterns: str, names: tuple[str, ...]) -> list[str]:
    found = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns.split(","))]
    if not found:
        raise SystemExit(f"nothing matches {patterns!r}; there are: {', '.join(names)}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="*", help="names or patterns, separated by commas")
    parser.add_argument("--methods", default="*", help="names or patterns, separated by commas")
    parser.add_argument("--seeds", type=seed_list, default="0-4", help="for example 0-4 or 0,3")
    parser.add_argument("--out", type=Path, default=CSV, help="the CSV to extend")
    parser.add_argument("--page", type=Path, default=PAGE, help="the Markdown page to write")
    parser.add_argument("--again", action="store_true", help="measure rows that are there already once more")
    parser.add_argument("--table", action="store_true", help="only rewrite the page")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    if not arguments.table:
        datasets = matching(arguments.data, (*DATASETS, "zheng_sorted_500"))
        if arguments.data == "*":
            datasets.remove("zheng_sorted_500")  # too easy to tell methods apart
        run(arguments.out, datasets, set(matching(arguments.methods, METHODS)), arguments.seeds, arguments.again)
    rows = read(arguments.out)
    write_page(arguments.page, rows)
    if arguments.out == CSV and arguments.page == PAGE:
        write_summary(README, rows)


if __name__ == "__main__":
    main()
