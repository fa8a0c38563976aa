from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

if TYPE_CHECKING:
    from anndata import AnnData

# Cells drawn at a time. Memory stays at a few dense blocks of this height, whatever the number of cells.
_BLOCK_CELLS = 512

_GENE_SD = 1.5  # of the log expression of genes: a few genes take most of the reads, most are rarely seen
_COUNTS_PER_GENE = 0.15  # default library size, per gene: leaves about 90 % zeros
_LIBRARY_SD = 0.35  # of the log library size of cells
_BATCH_LIBRARY_SD = 0.2  # of the log library size of batches
_LARGEST_TO_SMALLEST = 5.0  # default ratio of cluster sizes
_STAY = 0.4  # time course: probability that a cell keeps its state until the next time point


def simulate_counts(
    n_cells: int = 1000,
    n_genes: int = 1000,
    *,
    n_clusters: int = 5,
    cluster_proportions: Sequence[float] | None = None,
    n_batches: int = 1,
    n_facet_groups: int = 0,
    n_time_points: int = 0,
    n_markers: int = 20,
    marker_log_fold_change: float = 2.0,
    batch_effect: float = 0.3,
    depth: float | None = None,
    inverse_dispersion: float = 2.0,
    seed: int = 0,
) -> AnnData:
    r"""Negative binomial counts whose clusters, markers and batches are known.

    With cluster :math:`k`, facet :math:`f`, batch :math:`b` and library size :math:`l` of cell :math:`i`,

    .. math::
        x_{ig} \sim \mathrm{NB}\bigl(l_i\, \mathrm{softmax}_g(a_g + \Delta_{gk} + \Phi_{gf} + \beta_{gb}),\ \theta\bigr)

    where :math:`\Delta` and :math:`\Phi` are zero except for disjoint sets of marker genes, and the variance is
    mean + mean² / :math:`\theta`. About 90 % of the entries are zero with the default depth. Cells are drawn in
    blocks, so that peak memory is little more than the result, and a cell without any count is drawn again.

    Parameters
    ----------
    n_cells
        Number of cells.
    n_genes
        Number of genes.
    n_clusters
        Number of cell types.
    cluster_proportions
        Expected share of each cluster; rescaled to sum to one. Default: geometric, the first cluster five times
        as large as the last. Not with a time course, which has its own.
    n_batches
        Batches differ in sequencing depth and, gene by gene, by `batch_effect`. Independent of the clusters.
    n_facet_groups
        Groups of a second clustering of the same cells, of equal size and independent of the first,
        with markers of its own. 0: none.
    n_time_points
        At least 2: a time course. Cells follow a branching chain of states: cluster 0 turns into 1, which
        turns into 2 or 3, 2 into 4, 3 into 5 and so on; each state adds its markers to those of its parent.
        One cell of each trajectory is seen at each time; leave `obs["trajectory"]` unread for an experiment that
        destroys its cells. 0: no time.
    n_markers
        Marker genes of each cluster and of each facet group, no gene serving twice.
    marker_log_fold_change
        Mean natural-log fold change of a marker; the single ones are between half and one and a half times this.
    batch_effect
        Standard deviation over genes of the natural-log fold change between a batch and the average.
    depth
        Median expected library size, in counts a cell. Default: 0.15 times `n_genes`.
    inverse_dispersion
        :math:`\theta`, the same for all genes.
    seed
        The same seed and arguments give the same counts.

    Returns
    -------
    AnnData with

    - `X` and `layers["counts"]`: counts, CSR float32, independent copies,
    - `obs`: `cell_type`, `batch`, and as asked for `facet`, `time` (0, 1, ...), `trajectory`,
    - `var["marker_of"]`: the cluster or facet group a gene is a marker of, or `"none"`,
    - `varm["true_log_fold_changes"]`: genes x clusters, :math:`\Delta`; `varm["true_facet_log_fold_changes"]`,
    - `uns["simulation"]`: the parameters; for a time course also `transition_matrix`, clusters x clusters
      (row: from, column: to) between successive time points.

    Raises
    ------
    ValueError
        If a number is out of range, or there are fewer genes than markers.

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.simulate_counts(300, 200, n_clusters=3, n_batches=2, n_markers=10)
    >>> adata.shape
    (300, 200)
    >>> int((adata.var["marker_of"] == "type_1").sum())
    10
    """
    from anndata import AnnData

    arguments = {name: value for name, value in locals().items() if name != "AnnData" and value is not None}
    depth = _COUNTS_PER_GENE * n_genes if depth is None else depth
    _check_arguments(n_cells, n_genes, n_clusters, n_batches, n_facet_groups, n_time_points, n_markers)
    _check_positive(depth=depth, inverse_dispersion=inverse_dispersion)
    proportions = _proportions(cluster_proportions, n_clusters, n_time_points)
    transitions = _branching_chain(n_clusters)
    rng = np.random.default_rng(seed)

    codes = _draw_cells(rng, n_cells, n_batches, n_facet_groups, n_time_points, proportions, transitions)
    effects, marker_of = _draw_markers(rng, n_genes, n_clusters + n_facet_groups, n_markers, marker_log_fold_change)
    cluster_effects, facet_effects = effects[:, :n_clusters], effects[:, n_clusters:]
    if n_time_points:
        cluster_effects = _inherit(cluster_effects, transitions)
    batch_effects = rng.normal(0.0, batch_effect if n_batches > 1 else 0.0, (n_genes, n_batches))
    log_base = rng.normal(0.0, _GENE_SD, (n_genes, 1))
    library = depth * rng.lognormal(0.0, _LIBRARY_SD, n_cells)
    library *= rng.lognormal(0.0, _BATCH_LIBRARY_SD if n_batches > 1 else 0.0, n_batches)[codes["batch"]]

    terms = [(log_base + cluster_effects, codes["cell_type"]), (batch_effects, codes["batch"])]
    if n_facet_groups:
        terms.append((facet_effects, codes["facet"]))
    counts = _draw_counts(rng, terms, library, inverse_dispersion)

    names = {"cell_type": _names("type", n_clusters), "facet": _names("facet", n_facet_groups)}
    names["batch"] = _names("batch", n_batches)
    obs = {k: pd.Categorical.from_codes(v, names[k]) if k in names else v for k, v in codes.items()}
    owners = [*names["cell_type"], *names["facet"], "none"]
    genes = _names("gene", n_genes)
    adata = AnnData(
        counts,
        obs=pd.DataFrame(obs, index=_names("cell", n_cells)),
        var=pd.DataFrame({"marker_of": pd.Categorical.from_codes(marker_of, owners)}, index=genes),
        varm={"true_log_fold_changes": pd.DataFrame(cluster_effects, genes, names["cell_type"])},
        uns={"simulation": arguments | {"depth": depth}},
        layers={"counts": counts.copy()},
    )
    if n_facet_groups:
        adata.varm["true_facet_log_fold_changes"] = pd.DataFrame(facet_effects, genes, names["facet"])
    if n_time_points:
        adata.uns["simulation"]["transition_matrix"] = pd.DataFrame(transitions, *[names["cell_type"]] * 2)
    return adata


def _names(prefix: str, n: int) -> list[str]:
    return [f"{prefix}_{i}" for i in range(n)]


def _proportions(given: Sequence[float] | None, n_clusters: int, n_time_points: int) -> np.ndarray:
    if given is None:
        shares = _LARGEST_TO_SMALLEST ** -np.linspace(0.0, 1.0, n_clusters)
        return shares / shares.sum()
    if n_time_points:
        raise ValueError("cluster_proportions is given and n_time_points too: a time course sets the sizes itself")
    shares = np.asarray(given, dtype=np.float64)
    if shares.shape != (n_clusters,) or not np.all(np.isfinite(shares)) or np.any(shares <= 0):
        raise ValueError(f"cluster_proportions must be {n_clusters} positive numbers, one a cluster; got {given!r}")
    return shares / shares.sum()


def _branching_chain(n_clusters: int) -> np.ndarray:
    """Transition matrix of the chain 0 -> 1 -> {2, 3}, 2 -> 4, 3 -> 5, ...; the last states keep their cells."""
    parent = [None, 0, 1, *range(1, n_clusters)][:n_clusters]
    transitions = np.eye(n_clusters)
    for state in range(n_clusters):
        children = [child for child, p in enumerate(parent) if p == state]
        if children:
            transitions[state, state] = _STAY
            transitions[state, children] = (1.0 - _STAY) / len(children)
    return transitions


def _inherit(effects: np.ndarray, transitions: np.ndarray) -> np.ndarray:
    """Add to each state the fold changes of the states it came from."""
    total = effects.copy()
    for state in range(1, effects.shape[1]):  # a parent always has the smaller number
        parent = int(np.flatnonzero(transitions[:state, state])[0])
        total[:, state] += total[:, parent]
    return total


def _draw_cells(
    rng: np.random.Generator,
    n_cells: int,
    n_batches: int,
    n_facet_groups: int,
    n_time_points: int,
    proportions: np.ndarray,
    transitions: np.ndarray,
) -> dict[str, np.ndarray]:
    """Codes of every cell, in the order of the columns of obs."""
    if not n_time_points:
        codes = {"cell_type": rng.choice(len(proportions), n_cells, p=proportions)}
        codes["batch"] = rng.integers(n_batches, size=n_cells)
    else:
        n_trajectories = -(-n_cells // n_time_points)
        states = np.zeros((n_time_points, n_trajectories), dtype=np.int64)
        for t in range(1, n_time_points):
            draw = rng.random((n_trajectories, 1))
            # min: the last cumulative sum may be a rounding error below one
            states[t] = np.minimum((draw > transitions.cumsum(axis=1)[states[t - 1]]).sum(axis=1), len(transitions) - 1)
        cell = rng.permutation(n_cells)  # the order of the rows says nothing about time
        time, trajectory = cell // n_trajectories, cell % n_trajectories
        codes = {"cell_type": states[time, trajectory]}
        codes["batch"] = rng.integers(n_batches, size=n_trajectories)[trajectory]  # a culture is in one batch
        codes |= {"time": time, "trajectory": trajectory}
    if n_facet_groups:
        codes["facet"] = rng.integers(n_facet_groups, size=n_cells)
    return codes


def _draw_markers(
    rng: np.random.Generator, n_genes: int, n_groups: int, n_markers: int, mean_effect: float
) -> tuple[np.ndarray, np.ndarray]:
    """Fold changes [n_genes, n_groups] and, for each gene, the group it marks (`n_groups`: none)."""
    markers = rng.choice(n_genes, (n_groups, n_markers), replace=False)
    owner = np.full(n_genes, n_groups)
    effects = np.zeros((n_genes, n_groups))
    for group, genes in enumerate(markers):
        owner[genes] = group
        effects[genes, group] = mean_effect * rng.uniform(0.5, 1.5, n_markers)
    return effects, owner


def _draw_counts(
    rng: np.random.Generator,
    terms: list[tuple[np.ndarray, np.ndarray]],  # (log effects [n_genes, n_levels], level of each cell)
    library: np.ndarray,
    inverse_dispersion: float,
) -> sparse.csr_matrix:
    tables = [(np.ascontiguousarray(table.T, dtype=np.float32), level) for table, level in terms]
    blocks = []
    for start in range(0, len(library), _BLOCK_CELLS):
        rows = slice(start, start + _BLOCK_CELLS)
        rate = np.exp(sum(table[level[rows]] for table, level in tables))  # (B, G)
        rate *= (library[rows] / rate.sum(axis=1))[:, None].astype(np.float32)
        counts = _draw_negative_binomial(rng, rate, inverse_dispersion)
        while (empty := counts.sum(axis=1) == 0).any():  # no real data set keeps droplets without counts
            counts[empty] = _draw_negative_binomial(rng, rate[empty], inverse_dispersion)
        blocks.append(sparse.csr_matrix(counts, dtype=np.float32))
    return sparse.vstack(blocks, format="csr")


def _draw_negative_binomial(rng: np.random.Generator, mean: np.ndarray, inverse_dispersion: float) -> np.ndarray:
    rate = rng.standard_gamma(inverse_dispersion, size=mean.shape, dtype=np.float32)
    rate *= mean / np.float32(inverse_dispersion)
    return rng.poisson(rate)


def _check_arguments(
    n_cells: int, n_genes: int, n_clusters: int, n_batches: int, n_facet_groups: int, n_time_points: int, n_markers: int
) -> None:
    smallest = {"n_cells": (n_cells, 2), "n_genes": (n_genes, 2), "n_clusters": (n_clusters, 2)}
    smallest |= {"n_batches": (n_batches, 1), "n_markers": (n_markers, 1)}
    for name, (value, least) in smallest.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}; got {value}")
    for name, value in {"n_facet_groups": n_facet_groups, "n_time_points": n_time_points}.items():
        if value < 0 or value == 1:
            raise ValueError(f"{name} must be 0 (none) or at least 2; got {value}")
    needed = (n_clusters + n_facet_groups) * n_markers
    if needed > n_genes:
        raise ValueError(
            f"n_markers={n_markers} for each of {n_clusters + n_facet_groups} groups needs {needed} genes, "
            f"but n_genes={n_genes}: ask for more genes or fewer markers"
        )


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive number; got {value}")
