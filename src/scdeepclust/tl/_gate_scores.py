from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scdeepclust.tl._arguments import checked

if TYPE_CHECKING:
    from scdeepclust.model import IDC

# Cells on which the curves, neighbours and classifiers are computed.
MAX_CELLS = 1000
N_NEIGHBORS = 10
N_TOP = 20  # genes of a cluster that are compared between seeds
SHARE_REMOVED = 0.1  # of the genes that a cell expresses: 20 of 25 would leave no cell, 20 of 1000 all of it
N_STEPS = 15  # steps at which genes are masked for the faithfulness


@checked
def gate_curves(
    model: IDC, n_genes: Sequence[float] = (1, 2, 5, 10, 20, 50), *, max_cells: int = MAX_CELLS, seed: int = 0
) -> pd.DataFrame:
    """What happens to the labels when genes are removed from cells, or when nothing but them is left.

    A removed gene is set to its average before anything else happens: the gates are computed anew. Genes of a cell are
    taken in the order of gate times standardised expression (``gates``), at random among those that the cell expresses
    (``random``), or in the order of the normalised dispersion over all cells (``hvg``).

    Parameters
    ----------
    model
        A trained model.
    n_genes
        Numbers of genes to remove or to leave; below 1, shares of the genes that a cell expresses (at least one gene),
        which compare between cells and data of different depth.
    max_cells
        Cells drawn at random, at most.
    seed
        Seed of the draws.

    Returns
    -------
    Indexed by ``n_genes``: ``deletion_*``, the share of cells whose label changes when so many genes are removed, and
    ``insertion_*``, the share that have their label when only so many genes are left, each for ``gates``, ``random``
    and ``hvg``.

    Raises
    ------
    RuntimeError
        If the model is not trained.
    ValueError
        If ``n_genes`` holds a number that is not positive.

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.simulate_counts(300, 200, n_clusters=3, depth=200)
    >>> sdc.model.IDC.setup_anndata(adata)
    >>> model = sdc.model.IDC(adata, n_clusters=3, target_sparsity=0.1)
    >>> model.train(pretrain_epochs=40, max_epochs=2, enable_progress_bar=False)
    >>> curves = sdc.tl.gate_curves(model, n_genes=[5, 20])
    >>> list(curves.index)
    [5, 20]
    """
    numbers = sorted({n if n < 1 else int(n) for n in n_genes})
    if not numbers or numbers[0] <= 0:
        raise ValueError(f"`n_genes` must hold positive numbers, found {list(n_genes)}.")
    seen = _Seen(model, max_cells, seed)
    rng = np.random.default_rng(seed)
    expressed = seen.u > -seen.mean / seen.sd + 1e-6
    scores = {
        "gates": seen.gates * seen.u,
        "random": np.where(expressed, rng.random(seen.u.shape), -1),
        "hvg": np.broadcast_to(_dispersions(model), seen.u.shape),
    }
    rows = pd.DataFrame(index=pd.Index(numbers, name="n_genes"), dtype=float)
    for name, score in scores.items():
        rank = np.argsort(np.argsort(-score, axis=1, kind="stable"), axis=1)
        for n in numbers:
            n_of_cell = np.maximum(1, np.rint(n * expressed.sum(axis=1))) if n < 1 else np.full(len(rank), n)
            chosen = rank < n_of_cell[:, None]
            rows.loc[n, f"deletion_{name}"] = (seen.labels_of(np.where(chosen, 0, seen.u)) != seen.labels).mean()
            rows.loc[n, f"insertion_{name}"] = (seen.labels_of(np.where(chosen, seen.u, 0)) == seen.labels).mean()
    return rows[sorted(rows.columns)]


@checked
def score_gates(model: IDC, others: Sequence[IDC] = (), *, max_cells: int = MAX_CELLS, seed: int = 0) -> pd.Series:
    """Several sides of how good the explanations of a model are. Read them together.

    ========================  =========================================================================================
    ``n_open``                Mean number of open genes a cell. All other scores are easier to reach with more of them.
    ``share_open``            The same as a share of all genes.
    ``diversity``             100 - 100 times the mean Jaccard index of the genes that are open in most cells of two
                              clusters: 100 if no two clusters share a gene, 0 if all look at the same genes.
    ``faithfulness``          Correlation, while genes are masked one after the other (those open in most cells first),
                              of this number of cells with the share of labels that stay. High if important genes
                              carry the labels.
    ``deletion_ratio``        How many times as many labels change when the most important genes of a cell are removed,
                              a tenth of those that it expresses, as when as many random expressed ones are.
    ``uniqueness``            Mean over cells of the least change of gates over the change of expression, among nearest
                              neighbours. High if explanations are fine-grained.
    ``lipschitz``             The same with the largest change. Low if explanations of similar cells are similar.
    ``generalisability``      Accuracy, on cells held out, of a linear classifier of the labels from gated expression.
    ``seed_jaccard``          Median Jaccard index of the 20 first genes of matched clusters, between this model and
                              `others`. Missing without others.
    ========================  =========================================================================================

    Parameters
    ----------
    model
        A trained model.
    others
        Models of the same cells trained with other seeds.
    max_cells
        Cells drawn at random, at most, for all but the first three and the last.
    seed
        Seed of the draws.

    Returns
    -------
    The scores above. ``uniqueness`` and ``lipschitz`` leave out neighbours with equal expression.

    Raises
    ------
    RuntimeError
        If the model is not trained.

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.simulate_counts(300, 200, n_clusters=3, depth=200)
    >>> sdc.model.IDC.setup_anndata(adata)
    >>> model = sdc.model.IDC(adata, n_clusters=3, target_sparsity=0.1)
    >>> model.train(pretrain_epochs=40, max_epochs=2, enable_progress_bar=False)
    >>> scores = sdc.tl.score_gates(model)
    >>> bool(0 <= scores["diversity"] <= 100)
    True
    """
    seen = _Seen(model, max_cells, seed)
    gates = model.get_gates()
    curves = gate_curves(model, [SHARE_REMOVED], max_cells=max_cells, seed=seed)
    smallest, largest = _neighbour_ratios(seen)
    jaccards = [value for other in others for value in _matched_jaccards(model, other)]
    n_random = max(curves["deletion_random"].iloc[0], 1 / len(seen.u))  # none of n cells is less than one
    return pd.Series(
        {
            "n_open": gates.nnz / gates.shape[0],
            "share_open": gates.nnz / gates.shape[0] / gates.shape[1],
            "diversity": _diversity(gates, model.predict()),
            "faithfulness": _faithfulness(seen, gates),
            "deletion_ratio": curves["deletion_gates"].iloc[0] / n_random,
            "uniqueness": smallest,
            "lipschitz": largest,
            "generalisability": _linear_accuracy(seen),
            "seed_jaccard": float(np.median(jaccards)) if jaccards else np.nan,
        }
    )


class _Seen:
    """Some cells as a model sees them, and the labels it would give them after a change of their expression."""

    def __init__(self, model: IDC, max_cells: int, seed: int):
        if not hasattr(model, "get_gates"):
            raise ValueError(f"`model`: gates are those of an IDC model, found {type(model).__name__}.")
        model._check_if_trained(warn=False)
        self.model = model
        n_obs = model.adata.n_obs
        chosen = np.random.default_rng(seed).permutation(n_obs)[:max_cells]
        self.minibatches = list(model._minibatches(indices=np.sort(chosen)))
        self.u = np.concatenate([model._encode(tensors)["u"].cpu().numpy() for tensors in self.minibatches])
        self.gates = model.get_gates(indices=np.sort(chosen)).toarray()
        self.mean = model.module.gene_mean.cpu().numpy()
        self.sd = model.module.gene_sd.cpu().numpy()
        self.labels = self.labels_of(self.u)

    def labels_of(self, u: np.ndarray) -> np.ndarray:
        """Labels (n,) of standardised expression (n, G)."""
        import torch

        module, labels, start = self.model.module.eval(), [], 0
        for tensors in self.minibatches:
            covariates = module.covariates(tensors)
            stop = start + len(covariates.batch)
            with torch.inference_mode():
                block = torch.as_tensor(u[start:stop], dtype=torch.float32, device=self.model.device)
                labels.append(module.log_assignments(module.codes(block, covariates), covariates).argmax(dim=1))
            start = stop
        return torch.cat(labels).cpu().numpy()


def _dispersions(model: IDC) -> np.ndarray:
    """Normalised dispersion of each gene, (G,)."""
    import scanpy as sc
    from anndata import AnnData

    from scdeepclust.train import one_thread

    layer = model.registry_["setup_args"]["layer"]
    logged = AnnData(model.adata.X.copy() if layer is None else model.adata.layers[layer].copy())
    with one_thread():
        sc.pp.normalize_total(logged, target_sum=1e4)
        sc.pp.log1p(logged)
        table = sc.pp.highly_variable_genes(logged, n_top_genes=min(10, logged.n_vars), inplace=False)
    return np.nan_to_num(table["dispersions_norm"].to_numpy(), nan=-np.inf)


def _diversity(gates, labels: np.ndarray) -> float:
    """100 (1 - mean Jaccard index) over pairs of clusters, of the genes open in more than half of their cells."""
    opened = np.stack([np.asarray((gates[labels == k] > 0).mean(axis=0)).ravel() > 0.5 for k in np.unique(labels)])
    both = opened.astype(float) @ opened.T
    either = opened.sum(axis=1)[:, None] + opened.sum(axis=1) - both
    pairs = np.triu_indices(len(opened), k=1)
    jaccard = np.divide(both, either, out=np.ones_like(both), where=either > 0)[pairs]
    return 100 * (1 - float(jaccard.mean())) if len(jaccard) else np.nan


def _faithfulness(seen: _Seen, gates) -> float:
    """Correlation of the importance of the genes masked next with the share of labels left after them."""
    importance = np.asarray((gates > 0).sum(axis=0)).ravel()
    order = np.argsort(-importance, kind="stable")
    order = order[importance[order] > 0]
    kept, weight = [], []
    u = seen.u.copy()
    for genes in np.array_split(order, min(N_STEPS, max(len(order), 1))):
        u[:, genes] = 0
        kept.append((seen.labels_of(u) == seen.labels).mean())
        weight.append(importance[genes].mean())
    if np.std(kept) == 0 or np.std(weight) == 0:
        return np.nan
    return float(np.corrcoef(weight, kept)[0, 1])


def _neighbour_ratios(seen: _Seen) -> tuple[float, float]:
    """Mean over cells of the smallest and the largest |g_i - g_j| / |u_i - u_j| among nearest neighbours j."""
    from sklearn.neighbors import NearestNeighbors

    from scdeepclust.train import one_thread

    with one_thread():
        search = NearestNeighbors(n_neighbors=min(N_NEIGHBORS, len(seen.u) - 1)).fit(seen.u)
        distance, neighbour = search.kneighbors()
    change = np.linalg.norm(seen.gates[:, None] - seen.gates[neighbour], axis=2)
    ratio = np.divide(change, distance, out=np.full_like(distance, np.nan), where=distance > 0)
    ratio = ratio[~np.isnan(ratio).all(axis=1)]
    return float(np.nanmin(ratio, axis=1).mean()), float(np.nanmax(ratio, axis=1).mean())


def _linear_accuracy(seen: _Seen) -> float:
    """Accuracy on the odd cells of a linear classifier trained on the even ones."""
    from sklearn.svm import LinearSVC

    x = seen.gates * seen.u
    if len(np.unique(seen.labels[::2])) < 2:
        return np.nan
    return float(LinearSVC(C=0.01).fit(x[::2], seen.labels[::2]).score(x[1::2], seen.labels[1::2]))


def _matched_jaccards(a: IDC, b: IDC) -> list[float]:
    """Jaccard index of the first genes of each pair of clusters matched by their cells."""
    from scipy.optimize import linear_sum_assignment

    table = pd.crosstab(a.predict(), b.predict())
    tops = [_top_genes(model) for model in (a, b)]
    pairs = zip(*linear_sum_assignment(table.to_numpy(), maximize=True), strict=True)
    sets = [(tops[0][table.index[i]], tops[1][table.columns[j]]) for i, j in pairs]
    return [len(one & two) / len(one | two) for one, two in sets]


def _top_genes(model: IDC) -> dict[str, set[str]]:
    """First genes of each cluster, by mean gate times standardised expression."""
    labels = model.predict()
    sums = dict.fromkeys(np.unique(labels), 0.0)
    start = 0
    for tensors in model._minibatches():
        x = model._encode(tensors)["x"].cpu().numpy()
        for k in sums:
            sums[k] = sums[k] + x[labels[start : start + len(x)] == k].sum(axis=0)
        start += len(x)
    return {k: set(model.gene_names_[np.argsort(-total, kind="stable")[:N_TOP]]) for k, total in sums.items()}
