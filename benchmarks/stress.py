"""Where labels fail: simulated counts over depth x effect x types x batches x cells -> one CSV, one page.

All combinations of two depths, effects, numbers of types and of batches at 2,000 cells, and the hardest and the
clearest of them at other numbers of cells.

    python benchmarks/stress.py                        # everything that is missing
    python benchmarks/stress.py --methods 'gmvae'      # a part of it
    python benchmarks/stress.py --table                # only rewrite the page
"""

from __future__ import annotations

from _methods import FAMILIES, N_TOP_GENES, warm_up  # first: it sets the number of threads

# isort: split
from itertools import product

import numpy as np
import pandas as pd
from _agreement import MARGIN
from _charts import BLUE, Lead, bars, panels, titled
from _quality_tables import OURS, name_of
from _report import Report, markdown
from anndata import AnnData
from quality import score

import scdeepclust as sdc

REPORT = Report(
    __file__, ("depth", "effect", "types", "batches", "cells", "method", "seed"), seeds="0", packages=("scanpy",)
)

METHODS = (
    *("pca+kmeans", "harmony+kmeans", "pca+leiden", "harmony+leiden", "scvi+leiden"),
    *("scdeepcluster", "gmvae", "idc", "mfcvae", "somvae", "scdeepcluster+auto", "gmvae+auto"),
)
GIVEN = ("pca+kmeans", "harmony+kmeans", "scdeepcluster", "gmvae", "idc", "mfcvae", "somvae")

DEPTHS, EFFECTS, TYPES, BATCHES, CELLS = (310.0, 1500.0), (1.0, 2.0), (5, 20), (1, 4), 2000
GRID = [
    *((*case, CELLS) for case in product(DEPTHS, EFFECTS, TYPES, BATCHES)),
    (310.0, 2.0, 20, 4, 20_000),  # shallow, with many types: noise of the input alone has made models collapse here
    (310.0, 2.0, 5, 4, 300),
    (1500.0, 2.0, 20, 4, 20_000),
    (1500.0, 2.0, 5, 4, 300),
]


def cells_of(depth: float, effect: float, types: int, batches: int, cells: int, seed: int) -> AnnData:
    """As `_methods.load` gives them: counts in a layer, log-normalised values in `X`."""
    import scanpy as sc

    adata = sdc.datasets.simulate_counts(
        cells,
        N_TOP_GENES,
        n_clusters=types,
        n_batches=batches,
        depth=depth,
        marker_log_fold_change=effect,
        seed=seed,
    )
    adata.layers["counts"] = adata.X.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata


def run(methods: list[str], seeds: list[int], again: bool) -> None:
    warm_up()
    for seed, case in product(seeds, GRID):
        place = dict(zip(("depth", "effect", "types", "batches", "cells"), case, strict=True)) | {"seed": seed}
        missing = {m for m in methods if again or not REPORT.has(**place, method=m)}
        if not missing:
            continue
        adata = cells_of(*case, seed)
        truth = adata.obs["cell_type"].astype(str).to_numpy()
        for family, names in FAMILIES.values():
            if not missing & set(names):
                continue
            rows = [
                place
                | {
                    "method": result.method,
                    "n_clusters": np.unique(result.labels).size,
                    "ari": score(truth, result.labels)["ari"],
                    "cpu_s": round(result.fit.cpu + result.cluster.cpu, 1),
                }
                for result in family(adata, np.unique(truth).size, seed, missing)
                if result.method in missing
            ]
            if rows:
                REPORT.append(pd.DataFrame(rows))
            for row in rows:
                print(*case, row["method"], row["ari"], f"{row['cpu_s']} s", flush=True)


def wide_of(rows: pd.DataFrame, methods: list[str]) -> pd.DataFrame:
    """Data (rows) x methods; Harmony is PCA where there are no batches."""
    keys = ["depth", "effect", "types", "batches", "cells"]
    wide = rows.pivot_table(index=keys, columns="method", values="ari")
    wide = wide.reindex(columns=[m for m in methods if m in wide])
    for name in ("kmeans", "leiden"):
        if {f"harmony+{name}", f"pca+{name}"} <= set(wide):
            wide[f"harmony+{name}"] = wide[f"harmony+{name}"].fillna(wide[f"pca+{name}"])
    return wide


def table(wide: pd.DataFrame) -> str:
    lines = [["counts a cell", "log fold change", "types", "batches", "cells", *map(name_of, wide)]]
    for place, row in wide.iterrows():
        depth, effect, types, batches, cells = place
        values = ["-" if np.isnan(x) else f"**{x:.3f}**" if x == row.max() else f"{x:.3f}" for x in row]
        lines.append([f"{depth:.0f}", f"{effect:g}", f"{types:.0f}", f"{batches:.0f}", f"{cells:,.0f}", *values])
    means = wide.dropna(axis=1).mean()
    lines.append(["*mean*", "", "", "", "", *(f"{means[m]:.3f}" if m in means else "-" for m in wide)])
    return markdown(lines)


def lead(tables: list[pd.DataFrame]) -> Lead:
    """Mean of each method, told the number of clusters and not."""
    figure, axes = panels(2, height=2.6)
    for ax, wide, title in zip(axes, tables, ("K given", "K found"), strict=True):
        means = wide.dropna(axis=1).mean().to_frame("ARI")
        means.index = [name_of(method) for method in means.index]
        bars(ax, means, (BLUE,), "mean adjusted Rand index")
        titled(ax, title)
    given = tables[0].dropna(axis=1)
    baselines = given[[method for method in given if method not in OURS]]
    said = []
    for model in (method for method in given if method in OURS):
        gap = given[model] - baselines.max(axis=1)
        said.append(
            f"`{name_of(model)}` {given[model].mean():.2f}, below the better baseline by more than {MARGIN} on "
            f"{(gap < -MARGIN).sum()} (at worst {gap.min():+.2f})"
        )
    text = (
        f"Mean on {len(given)} simulated data sets, number of clusters given: {'; '.join(said)}; "
        f"{name_of(str(baselines.mean().idxmax()))} {baselines.mean().max():.2f}. Where types differ by little and "
        "cells are shallow, no method finds anything."
    )
    return Lead(figure, "Bars of the mean adjusted Rand index of each method, number of clusters given and found", text)


def write_page(rows: pd.DataFrame) -> None:
    if rows.empty:
        print("no rows yet, no page written")
        return
    tables = [wide_of(rows, [m for m in METHODS if (m in GIVEN) == told]) for told in (True, False)]
    seeds = ", ".join(map(str, sorted(rows.seed.unique())))
    REPORT.write(
        "Where labels fail",
        lead(tables),
        f"""\
Adjusted Rand index on simulated counts, {N_TOP_GENES:,} genes of which 20 a type are markers. *Log fold change* is the
mean of a marker in natural logarithms, *counts a cell* the median. What a method was told does not compare with what
it had to find, so there are two tables. Everything is at its default, seed {seeds}.""",
        "## Number of clusters given",
        table(tables[0]),
        "## Number of clusters found",
        table(tables[1]),
        rows=rows,
    )


def main() -> None:
    parser = REPORT.parser(__doc__, methods=METHODS)
    parser.set_defaults(methods="pca*,harmony*,scdeepcluster*,gmvae*")
    arguments = REPORT.parse(parser)
    if not arguments.table:
        run(arguments.methods, arguments.seeds, arguments.again)
    write_page(REPORT.read())


if __name__ == "__main__":
    main()
