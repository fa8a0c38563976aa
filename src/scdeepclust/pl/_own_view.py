"""What only one system can show, found by what its `write_back` left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from scdeepclust._keys import ResultKeys

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

    from scdeepclust.pl._style import Panels


class View(NamedTuple):
    """A drawing that is still to be made, with its name and what to see in it."""

    name: str
    draw: Callable[[], Axes | Panels]
    alt: str
    caption: str


def own_views(adata: AnnData, key: str, known: Sequence[str] = ()) -> Iterator[View]:
    """Gates, facets, or the map with its transitions; `known` are columns of `obs` to draw beside them."""
    from scdeepclust.pl import _facets, _gates, _som

    keys, about = ResultKeys(key), adata.uns.get(key, {})
    if keys.gates in adata.layers and keys.global_gates in adata.varm:
        yield View(
            "gates",
            lambda: _gates.gates(adata, key, n_genes=3),
            "Dot plot of the genes whose gates are open in each cluster",
            "Genes that each cluster was read from: size is the share of cells with the gate open, red means more "
            "expressed than in the average cell, blue less",
        )
    if keys.facet(0).labels in adata.obs:
        yield View(
            "facets",
            lambda: _facets.facets(adata, key, covariates=known, n_genes=2),
            "Mutual information of facets with each other and with columns of obs, and the genes of each facet",
            "Facets: several clusterings of the same cells, what they follow and their genes",
        )
    if "map" in about:
        color = ["clusters", "hits", "u_matrix", *known]
        yield View(
            "map",
            lambda: _som.som(adata, key, color=color),
            "The map of states, coloured by " + ", ".join(color),
            "Map of states: neighbours on it are alike; bright ridges of the U-matrix are borders",
        )
        if "transition_counts" in about:
            yield View(
                "transitions",
                lambda: _som.transitions(adata, key),
                "The map of states with an arrow from each node to where its cells go",
                "Where cells go over time",
            )
