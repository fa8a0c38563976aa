"""Whether evidence is what it says: genes of null splits, K on cell lines, novelty, time of a tree -> CSV and a page.

    python benchmarks/evidence.py                      # everything that is missing
    python benchmarks/evidence.py --parts genes        # a part of it
    python benchmarks/evidence.py --table              # only write the page

Parts: `genes`, p-values of `tl.rank_genes` on single populations that were cut in two, and its power beside a test on
the counts that made the clusters; `lines`, number of clusters in the five parts of the sc_mixology study; `novelty`, a
cell type left out of the reference, and cells of known types; `tree`, time of `tl.cluster_tree`.
"""

from __future__ import annotations

from _methods import Timer, batch_key, fit_model, load, one_thread  # first: it sets the number of threads

# isort: split
import numpy as np
import pandas as pd
from _charts import BLUE, GREY, ORANGE, Lead, bars, panels, titled
from _report import Report, markdown
from anndata import AnnData
from one_population import simulated

REPORT = Report(__file__, ("part", "what", "seed"))

PARTS = ("genes", "lines", "novelty", "tree")
N_NULL = 100
LEFT_OUT = {  # the six largest types of each
    "pbmc3k_full": 6,
    "baron_mouse": 6,
    "mouse_bladder_2100": 6,
}


def note(part: str, what: str, seed: int, **values: float) -> None:
    row = {"part": part, "what": what, "seed": seed} | {name: round(float(v), 4) for name, v in values.items()}
    REPORT.append(pd.DataFrame([row]))
    print(row, flush=True)


def clusters_by_hand(adata: AnnData) -> np.ndarray:
    """Two clusters of one population, from the same counts: k-means in principal components."""
    from _methods import components
    from sklearn.cluster import KMeans

    return KMeans(2, n_init=5, random_state=0).fit_predict(components(adata, 0)[:, :10])


def genes() -> None:
    import scanpy as sc
    from scipy.stats import kstest

    import scdeepclust as sdc

    for seed in range(N_NULL):
        if REPORT.has(part="genes", what="one population", seed=seed):
            continue
        adata, _ = simulated("one", 1000 + seed, max_factors=0)  # along a factor genes do differ
        adata = adata[adata.obs["batch"] == "0"][:600].copy()  # nor between batches
        if adata.n_obs < 80:
            continue
        labels = clusters_by_hand(adata)
        if min(np.bincount(labels, minlength=2)) < 20:
            continue
        model, _ = fit_model(
            "SCDeepCluster", adata, 2, seed, init=labels, train={"pretrain_epochs": 60, "max_epochs": 2}
        )
        model.write_back(confidence="posterior")
        if model.adata.obs["scdeepcluster"].nunique() < 2:
            continue
        table = sdc.tl.rank_genes(model)
        p = table.loc[table.group == "0", "pvals"].to_numpy()
        sc.tl.rank_genes_groups(model.adata, "scdeepcluster", method="t-test", use_raw=False, key_added="circular")
        circular = model.adata.uns["circular"]["pvals"]["0"]
        # a mean of two p-values, doubled, is conservative: what matters is that it is not too small
        note(
            "genes",
            "one population",
            seed,
            ks=kstest(p, "uniform", alternative="greater").pvalue,
            below_05=(p < 0.05).mean(),
            found=(table["pvals_adj"] < 0.05).sum(),
            circular_below_05=(circular < 0.05).mean(),
        )
    for seed in range(10):
        if REPORT.has(part="genes", what="power", seed=seed):
            continue
        adata = sdc.datasets.simulate_counts(
            1000, 1000, n_clusters=4, marker_log_fold_change=1.0, depth=2000, seed=seed
        )
        adata.layers["counts"] = adata.X.copy()
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
        model, _ = fit_model("SCDeepCluster", adata, 4, seed)
        model.write_back(confidence="posterior")
        table = sdc.tl.rank_genes(model)
        sc.tl.rank_genes_groups(model.adata, "scdeepcluster", method="t-test", use_raw=False, key_added="circular")
        circular = sc.get.rank_genes_groups_df(model.adata, None, key="circular")
        type_of = pd.crosstab(model.adata.obs["scdeepcluster"], adata.obs["cell_type"]).idxmax(axis=1)
        power = {}
        for name, found in (("power", table), ("circular_power", circular)):
            up = found[(found["pvals_adj"] < 0.05) & (found["scores"] > 0)]
            truth = adata.var["marker_of"].reindex(up["names"]).astype(str).to_numpy()
            hits = truth == up["group"].map(type_of).astype(str).to_numpy()
            power[name] = up["names"][hits].nunique() / adata.var["marker_of"].isin(type_of).sum()
        note("genes", "power", seed, **power)


def lines() -> None:
    from sklearn.metrics import adjusted_rand_score

    adata = load("sc_mixology_cellines")
    for batch in () if adata is None else sorted(adata.obs["batch"].unique()):
        part = adata[adata.obs["batch"] == batch].copy()
        for name in ("GMVAE", "SCDeepCluster"):
            for seed in range(2):
                if REPORT.has(part="lines", what=f"{batch}, {name}", seed=seed):
                    continue
                labels = fit_model(name, part, None, seed)[0].predict()
                truth = part.obs["cell_type"]
                note("lines", f"{batch}, {name}", seed, cells=part.n_obs, k=truth.nunique(),
                     n_clusters=len(np.unique(labels)), ari=adjusted_rand_score(truth, labels))  # fmt: skip


def novelty() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    for data, n_types in LEFT_OUT.items():
        adata = load(data)
        kinds = adata.obs["cell_type"].astype(str)
        for kind in kinds.value_counts().index[:n_types]:
            if REPORT.has(part="novelty", what=f"{data}: {kind}", seed=0):
                continue
            known = rng.permutation(np.flatnonzero(kinds != kind))
            test, fit = np.split(known, [len(known) // 4])
            reference = adata[np.sort(fit)].copy()
            model, _ = fit_model("SCDeepCluster", reference, kinds.nunique() - 1, 0)
            of_known = model.get_novelty(_as_setup(adata[test], reference))
            of_new = model.get_novelty(_as_setup(adata[kinds == kind], reference))
            truth = np.repeat([0, 1], [len(of_known), len(of_new)])
            note("novelty", f"{data}: {kind}", 0, cells=len(of_new),
                 auroc=roc_auc_score(truth, np.concatenate([of_known, of_new])), found=(of_new > 0.95).mean(),
                 false_05=(of_known > 0.95).mean(), false_10=(of_known > 0.9).mean())  # fmt: skip


def _as_setup(adata: AnnData, reference: AnnData) -> AnnData:
    """A copy, of batches that the reference has."""
    if (key := batch_key(reference)) is not None:
        adata = adata[adata.obs[key].isin(reference.obs[key].unique())]
    return adata.copy()


def tree() -> None:
    import scdeepclust as sdc

    if REPORT.has(part="tree", what="20,000 cells, 20 clusters", seed=0):
        return
    adata = sdc.datasets.simulate_counts(20_000, 2000, n_clusters=20, depth=1000, seed=0)
    adata.layers["counts"] = adata.X
    model, _ = fit_model("SCDeepCluster", adata, 20, 0, train={"pretrain_epochs": 6, "max_epochs": 1})
    one_thread()
    with Timer() as timer:
        found = sdc.tl.cluster_tree(model)
    note("tree", "20,000 cells, 20 clusters", 0, cpu_s=timer.cpu, wall_s=timer.wall, splits=len(found.splits))


def table(rows: pd.DataFrame) -> str:
    shown = rows.dropna(axis=1, how="all")
    cells = [[f"{v:g}" if isinstance(v, float) else str(v) for v in row] for row in shown.itertuples(index=False)]
    return markdown([list(shown), *cells])


def lead(rows: pd.DataFrame) -> Lead:
    """What halves of the counts do for p-values, and which types are noticed when they are new."""
    genes, lines, new = (rows[rows.part == part] for part in ("genes", "lines", "novelty"))
    null, power = (genes[genes.what == what] for what in ("one population", "power"))
    figure, (left, right) = panels(2, height=0.17 * len(new) + 1.0, widths=(2, 3))
    shares = pd.DataFrame(
        {
            "tl.rank_genes": [null.below_05.mean(), power.power.mean()],
            "the same counts": [null.circular_below_05.mean(), power.circular_power.mean()],
        },
        index=["p < .05, nothing\nto be found", "markers found"],
    )
    bars(left, shares, (BLUE, GREY), "share (grey: on the same counts)", form="{:.3f}")
    titled(left, "Genes of clusters")
    found = new.set_index("what")[["auroc"]].sort_values("auroc", ascending=False)
    bars(right, found, (ORANGE,), "AUROC of novelty (.5: not noticed)")
    right.axvline(0.5, color="#999999", linewidth=0.8)
    right.tick_params(axis="y", labelsize=7)
    titled(right, "A type left out of the fit")
    ari = lines.ari
    text = f"""\
Where there is nothing to be found, `tl.rank_genes` calls {null.below_05.mean():.1%} of the p-values below .05 and the
usual test on the same
counts {null.circular_below_05.mean():.1%}. With the number of clusters open, mixtures of cell lines come out exactly
in {(ari == 1).sum()} of {len(ari)} fits (least
ARI {ari.min():.2f}). **What is lost:** half of the counts cost power ({power.power.mean():.2f} of the markers are
found instead of {power.circular_power.mean():.2f}), and
of {len(new)} types that were left out of the fit {(new.auroc < 0.7).sum()} are hardly noticed (AUROC below .7)."""
    return Lead(figure, "Shares of genes called, and how well a new type is noticed", text)


def write_page(rows: pd.DataFrame) -> None:
    if rows.empty:
        print("no rows yet, no page written")
        return
    parts, numbers = [], rows.drop(columns=["part", "versions"])
    null, power = (numbers[(rows.part == "genes") & (rows.what == what)] for what in ("one population", "power"))
    if len(null):
        parts += [
            "## Genes",
            f"{len(null)} single populations of independent genes, cut in two. `tl.rank_genes` calls "
            f"{null.below_05.mean():.3f} of the p-values below .05 (at most {null.below_05.max():.3f} in one),\n"
            "the test on the counts that made the clusters "
            f"{null.circular_below_05.mean():.3f}. P-values are smaller than uniform\n(one-sided Kolmogorov-Smirnov, "
            f"p < .01) in {(null.ks < 0.01).sum()} of them, and {(null.found > 0).sum()}\nhave a gene at a false "
            "discovery rate of .05.",
        ]
    if len(power):
        parts.append(
            f"Of the markers of four simulated types it finds {power.power.mean():.3f} at that rate, the circular test "
            f"{power.circular_power.mean():.3f}."
        )
    titles = {"lines": "Cell lines, number of clusters open", "novelty": "A type left out", "tree": "Time of a tree"}
    for part, title in titles.items():
        if len(chosen := numbers[rows.part == part]):
            parts += [f"## {title}", table(chosen)]
    REPORT.write("Evidence", lead(rows), "Each part is described in the script.", *parts, rows=rows)


def main() -> None:
    arguments = REPORT.parse(REPORT.parser(__doc__, parts=PARTS))
    for part in () if arguments.table else arguments.parts:
        globals()[part]()
    write_page(REPORT.read())


if __name__ == "__main__":
    main()
