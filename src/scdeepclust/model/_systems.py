"""One record a system. README, docs, command line and benchmarks are written from it, or tested against it.

Nothing is imported here, so that a command-line ``--help`` can list the systems at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Written:
    """One thing that ``write_back`` puts into AnnData.

    Parameters
    ----------
    slot
        Part of the AnnData object.
    name
        Name there; ``{key}`` is the key of the results.
    what
        What it is.
    """

    slot: str
    name: str
    what: str


@dataclass(frozen=True)
class System:
    """One clustering system.

    Parameters
    ----------
    name
        Name of its class.
    citation
        Entry of its paper in ``docs/references.bib``.
    paper
        Its paper in words.
    idea
        What it is.
    purpose
        When to take it.
    gives
        What a user gets from it.
    writes
        What it writes beside :data:`COMMON`.
    """

    name: str
    citation: str
    paper: str
    idea: str
    purpose: str
    gives: str
    writes: tuple[Written, ...] = ()

    @property
    def key(self) -> str:
        """Name of its folder, of its results in AnnData, and on the command line."""
        return self.name.lower()


COMMON = (
    Written("obs", "{key}", 'cluster of each cell, `"0"` is the largest'),
    Written("obs", "{key}_confidence", "probability that an independent repeat gives the same cluster"),
    Written("obsm", "X_{key}", "latent embedding"),
    Written("obsm", "{key}_probabilities", "assignment probabilities, cells x clusters"),
    Written("uns", "{key}", "parameters, seed, versions and scalars of the fit"),
)

# Beside COMMON, for cells that were not of the fit.
OF_NEW_CELLS = (Written("obs", "{key}_novelty", "share of the cells of the fit that fit their cluster better"),)

SYSTEMS = (
    System(
        name="SCDeepCluster",
        citation="Tian19",
        paper="Tian et al., Nature Machine Intelligence 2019",
        idea="denoising autoencoder of counts with deep embedded clustering",
        purpose="you want one good clustering, fast",
        gives="one clustering, sharp labels, the simplest objective",
    ),
    System(
        name="GMVAE",
        citation="Dilokthanakul16",
        paper="Dilokthanakul et al., arXiv:1611.02648, 2016",
        idea="variational autoencoder whose mixture prior is the clusters, conditioned on batches",
        purpose="you need probabilities, an integrated embedding, or a model to sample from",
        gives="clusters as components of the prior: probabilities, batches taken out, a model to sample from",
    ),
    System(
        name="IDC",
        citation="Svirsky24",
        paper="Svirsky and Lindenbaum, ICML 2024",
        idea="clusters read from a few genes of each cell",
        purpose="you want to know which genes made each cell's cluster",
        gives="clusters that name the genes they were read from, cell by cell",
        writes=(
            Written("layers", "{key}_gates", "gate of each gene in each cell, sparse"),
            Written("obs", "{key}_n_genes", "number of genes whose gate is open in a cell"),
            Written("varm", "{key}_global_gates", "gate of each gene for each cluster"),
        ),
    ),
    System(
        name="MFCVAE",
        citation="Falck21",
        paper="Falck et al., NeurIPS 2021",
        idea="several clusterings of the same cells",
        purpose="cells differ by type *and* by state or stimulation",
        gives="several clusterings of the same cells, such as type and treatment, each with its genes",
        writes=(
            Written("obs", "{key}_facet0", "clusters of a facet; `facet0` repeats the main clusters"),
            Written("obs", "{key}_facet0_confidence", "the same for the facet"),
            Written("obsm", "X_{key}_facet0", "embedding of the facet"),
            Written("obsm", "{key}_facet0_probabilities", "assignment probabilities of the facet"),
            Written("varm", "{key}_facet0_loadings", "log-fold changes of the clusters of the facet"),
        ),
    ),
    System(
        name="SOMVAE",
        citation="Fortuin19",
        paper="Fortuin et al., ICLR 2019",
        idea="a map of states with transitions over time",
        purpose="cells form a continuum, or a time course",
        gives="a map of states: regions are clusters, planes show genes, arrows where cells go over time",
        writes=(
            Written("obs", "{key}_node", "node of the map"),
            Written("obs", "{key}_row", "row of the node"),
            Written("obs", "{key}_column", "column of the node"),
            Written("obs", "{key}_distance", "latent distance to the node"),
            Written("obsm", "X_{key}_map", "place on the map, between the nodes"),
            Written("varm", "{key}_profiles", "expected share of each gene at each node"),
        ),
    ),
)


def written_by(model: object, key: str) -> list[tuple[str, re.Pattern]]:
    """Slots and names of all that a model of this class writes under a key, for any number of facets."""
    system = next((system for system in SYSTEMS if system.name == model), None)
    if system is None:
        return []
    patterns = []
    for written in (*COMMON, *OF_NEW_CELLS, *system.writes):
        stem, _, end = written.name.partition("{key}")
        number = re.escape(end).replace("facet0", r"facet\d+")
        patterns.append((written.slot, re.compile(re.escape(stem) + re.escape(key) + number)))
    return patterns
