"""The figures of the front page and of the model pages, from one fit of each model to real counts.

    python benchmarks/figures.py          # fits what is not in the cache, draws everything
    python benchmarks/figures.py --again  # fits anew

The labelled data sets are read from the folder in SCDEEPCLUST_DATA.
"""

from __future__ import annotations

from _real_fits import FITS, fitted  # first: it sets the number of threads

# isort: split
import argparse

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from _charts import BLUE, GREY, STYLE, WIDTH
from _report import HERE
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import scdeepclust as sdc
from scdeepclust.pl._embedding import draw_categories, draw_confidence
from scdeepclust.pl._style import category_colors, figure_of

DOCS = HERE.parent / "docs"
STATIC, GUIDE = DOCS / "_static", DOCS / "user_guide" / "figures"

# What a model does in each phase of its training, by the name of the phase.
PHASES = {
    "scdeepcluster": {
        "pretrain": "give the counts back\nfrom a noisy version",
        "cluster": "centres and network\ntrained together",
    },
    "gmvae": {
        "pretrain": "give the counts back\nfrom a noisy version",
        "vae": "one Gaussian ball\nas prior, noisy input",
        "mixture": "components on clusters,\nall trained together",
    },
    "idc": {
        "pretrain": "autoencoder\nwithout gates",
        "gates": "open genes fall\nto the wanted number",
        "cluster": "head and global gates\non the gated cells",
    },
    "mfcvae": {
        "pretrain": "facet 0 alone,\nnoisy input",
        "facet1, ...": "crossed groups enter,\none facet at a time",
        "mixture": "all facets together,\nwithout noise",
    },
    "somvae": {
        "pretrain": "give the counts back\nfrom a noisy version",
        "map": "map laid, regions found,\nall trained together",
    },
}


def small(figure: Figure, path, dpi: int = 110) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, bbox_inches="tight", pil_kwargs={"optimize": True}, metadata={"Software": None})
    plt.close(figure)


def bare(ax: Axes, title: str) -> None:
    ax.set_title("")  # that of the plot, which stands in the middle
    ax.set_title(title, fontsize=9, loc="left", fontweight="bold")
    ax.set(xticks=[], yticks=[], xlabel="", ylabel="")
    ax.spines[:].set_visible(False)
    if (legend := ax.get_legend()) is not None:
        legend.remove()


def counts(ax: Axes, adata: AnnData, n_cells: int = 160, n_genes: int = 120) -> None:
    """Raw counts of some cells (rows) and of the genes with most counts (columns), in the order of the file."""
    rng = np.random.default_rng(0)
    raw = adata.layers["counts"]
    genes = np.argsort(-np.asarray(raw.sum(axis=0)).ravel())[:n_genes]
    some = raw[np.sort(rng.choice(adata.n_obs, n_cells, replace=False))][:, rng.permutation(genes)].toarray()
    ax.imshow(np.log1p(some), cmap="Greys", aspect="auto", interpolation="nearest")


def gene_heatmap(ax: Axes, adata: AnnData, n_genes: int = 3) -> None:
    """Gate times standardised expression of the first genes of each cluster (`tl.rank_gates`)."""
    table = sdc.tl.rank_gates(adata, n_genes=n_genes)
    column = "gene" if "gene" in table else "names"
    genes = list(dict.fromkeys(table[column]))
    gates = adata[:, genes].layers["idc_gates"]
    labels = adata.obs["idc"]
    mean = np.array(
        [np.asarray(gates[(labels == name).to_numpy()].mean(axis=0)).ravel() for name in labels.cat.categories]
    )
    ax.imshow(mean.T, cmap="Blues", aspect="auto", interpolation="nearest", vmin=0, vmax=1)
    ax.set_yticks(
        range(len(genes)), [gene.partition("_ENSG")[0] for gene in genes], fontsize=5.5 if len(genes) > 14 else 6.5
    )
    ax.set_xticks(range(mean.shape[0]), labels.cat.categories, fontsize=6)
    ax.tick_params(length=0, pad=1)
    ax.spines[:].set_visible(False)


def overview() -> None:
    """Counts to labels, confidence, genes, facets and a map, all of the same cells."""
    cells, genes = fitted("overview_gmvae"), fitted("overview_idc")
    facets, states = fitted("mfcvae"), fitted("overview_somvae")
    figure, axes = plt.subplots(2, 3, figsize=(WIDTH, 4.9), layout="constrained")
    counts(axes[0, 0], cells)
    bare(axes[0, 0], "Counts: cells x genes")
    draw_categories(cells, "gmvae", "X_umap", axes[0, 1])
    bare(axes[0, 1], "Labels (GMVAE)")
    draw_confidence(cells, "gmvae", "X_umap", axes[0, 2])
    bare(axes[0, 2], "Confidence: orange is doubt")
    gene_heatmap(axes[1, 0], genes)
    axes[1, 0].set_title("Genes: open gates (IDC)", fontsize=9, loc="left", fontweight="bold")
    draw_categories(facets, "mfcvae_facet1", "X_umap", axes[1, 1])
    bare(axes[1, 1], "A second facet (MFCVAE)")
    draw_map(axes[1, 2], states)
    bare(axes[1, 2], "Map of states (SOMVAE)")
    small(figure, STATIC / "overview.png", dpi=150)


def draw_map(ax: Axes, adata: AnnData) -> None:
    """Nodes of the map, coloured by cluster, as large as their share of cells."""
    table = adata.uns["somvae"]["map"]
    categories = list(adata.obs["somvae"].cat.categories)
    colors = dict(zip(categories, category_colors(adata, "somvae", len(categories)), strict=True))
    hits = table["hits"].to_numpy()
    ax.scatter(table["column"], -table["row"], s=8 + 60 * hits / hits.max(), marker="s",
               c=[colors[str(name)] for name in table["cluster"]], linewidths=0)  # fmt: skip
    ax.set_aspect("equal")


def cards() -> None:
    """A thumbnail of each model."""
    for name in ("scdeepcluster", "gmvae", "idc", "mfcvae", "somvae"):
        adata = fitted(name)
        figure, ax = plt.subplots(figsize=(2.2, 1.8), layout="constrained")
        if name == "idc":
            gene_heatmap(ax, adata, n_genes=1)
        elif name == "somvae":
            draw_map(ax, adata)
            bare(ax, "")
        else:
            column = {"mfcvae": "mfcvae_facet1", "gmvae": "batch"}.get(name, name)
            draw_categories(adata, column, "X_umap", ax)
            bare(ax, "")
        small(figure, STATIC / f"card_{name}.png", dpi=130)


def model_pages() -> None:
    """What the plots of the package say of one fit of each model."""
    adata = fitted("scdeepcluster")
    small(
        figure_of(sdc.pl.overview(adata, "scdeepcluster", label_key="cell_type")), GUIDE / "model_scdeepcluster.png", 75
    )
    adata = fitted("gmvae")
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for ax, column, title in zip(
        axes, ("gmvae", "batch", "cell_type"), ("clusters", "batch", "known types"), strict=True
    ):
        draw_categories(adata, column, "X_umap", ax)
        ax.set_title(title)
    small(figure, GUIDE / "model_gmvae.png", 75)
    small(figure_of(sdc.pl.gates(fitted("idc"), n_genes=3)), GUIDE / "model_idc.png", 75)
    facets = sdc.pl.facets(fitted("mfcvae"), covariates=["cell_type", "stim"])
    small(figure_of(facets), GUIDE / "model_mfcvae.png", 75)
    small(figure_of(sdc.pl.som(fitted("somvae"), color=["clusters", "u_matrix"])), GUIDE / "model_somvae.png", 75)


def phases() -> None:
    """The phases of each model, as boxes from left to right."""
    with plt.rc_context(STYLE):
        for key, steps in PHASES.items():
            figure = Figure(figsize=(WIDTH, 1.15))
            ax = figure.add_axes((0, 0, 1, 1))
            ax.set(xlim=(0, 10), ylim=(0, 1.55))
            ax.axis("off")
            boxes = [("", "counts"), *steps.items(), ("", "labels,\nconfidence")]
            widths = [1.1, *[(10 - 2.6 - 0.35 * (len(boxes) - 1)) / len(steps)] * len(steps), 1.4]
            left = 0.05
            for i, ((name, text), width) in enumerate(zip(boxes, widths, strict=True)):
                color = BLUE if name else GREY
                ax.add_patch(plt.Rectangle((left, 0.12), width, 1.3, facecolor=color, alpha=0.12, edgecolor="none"))
                middle = left + width / 2
                ax.text(middle, 0.55 if name else 0.77, text, ha="center", va="center", fontsize=8, color="#222222")
                ax.text(middle, 1.18, name, ha="center", va="center", fontsize=9, fontweight="bold", color=color)
                left += width
                if i < len(boxes) - 1:
                    ax.annotate(
                        "",
                        (left + 0.32, 0.77),
                        (left + 0.02, 0.77),
                        arrowprops={"arrowstyle": "->", "color": "#555555"},
                    )
                    left += 0.34
            GUIDE.mkdir(parents=True, exist_ok=True)
            figure.savefig(GUIDE / f"phases_{key}.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", action="store_true", help="fit anew")
    if parser.parse_args().again:
        for name in FITS:
            fitted(name, again=True)
    for draw in (phases, overview, cards, model_pages):
        draw()


if __name__ == "__main__":
    main()
