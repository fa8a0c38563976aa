from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scdeepclust.tl._arguments import checked, with_data
from scdeepclust.tl._unused_counts import MAX_CELLS

if TYPE_CHECKING:
    from anndata import AnnData

    from scdeepclust.model._base import ClusteringModel

# Bins of confidence in which cells are counted.
N_BINS = 10


@dataclass(frozen=True)
class ConfidenceCheck:
    """What became of the cells of a model in an independent repeat.

    Parameters
    ----------
    confidence
        Confidence of each cell in its cluster, (n,).
    repeated
        Whether the repeat put it into the same cluster, (n,), bool.

    Examples
    --------
    >>> import numpy as np, scdeepclust as sdc
    >>> check = sdc.tl.ConfidenceCheck(np.array([0.9, 0.8, 0.1, 0.2]), np.array([True, True, False, False]))
    >>> round(check.calibration_error, 2), check.auroc, check.repeats
    (0.15, 1.0, 0.5)
    """

    confidence: np.ndarray
    repeated: np.ndarray

    @property
    def repeats(self) -> float:
        """Share of the cells that repeat."""
        return float(self.repeated.mean())

    @property
    def bins(self) -> pd.DataFrame:
        """Cells by their confidence: ``confidence`` (mean), ``repeats`` (share) and ``n_cells`` of each tenth."""
        number = np.minimum((self.confidence * N_BINS).astype(int), N_BINS - 1)
        table = pd.DataFrame({"confidence": self.confidence, "repeats": self.repeated.astype(float)})
        grouped = table.groupby(number)
        return grouped.mean().assign(n_cells=grouped.size()).rename_axis("bin")

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: how far confidence and share of repeats are apart, mean over cells by tenths."""
        bins = self.bins
        return float(np.average((bins["confidence"] - bins["repeats"]).abs(), weights=bins["n_cells"]))

    @property
    def auroc(self) -> float:
        """How well confidence tells cells that repeat from others: .5 like a coin, 1 perfectly; NaN without others."""
        from sklearn.metrics import roc_auc_score

        if self.repeated.all() or not self.repeated.any():
            return np.nan
        return float(roc_auc_score(self.repeated, self.confidence))


@checked
def check_confidence(model: ClusteringModel, *, seed: int = 0) -> ConfidenceCheck:
    """Measure on the data of a model whether its confidence holds.

    Each molecule goes to one of two halves at random, as if the cells had been sequenced twice. The model is fitted to
    each half, with another seed; the confidence that the first fit has in its clusters is compared with what became of
    the cells in the second one, whose clusters are matched to those of the first one to one.

    Parameters
    ----------
    model
        A trained model with its data. It stays as it is.
    seed
        Seed of the halves and of the fits.

    Returns
    -------
    :class:`ConfidenceCheck`: ``calibration_error``, ``auroc``, ``repeats`` and ``bins``, which
    :func:`scdeepclust.pl.reliability` draws.

    Raises
    ------
    RuntimeError
        If the model is not trained.
    ValueError
        If it has no data.

    Notes
    -----
    It takes about three times as long as the fit, of at most 20,000 cells. Half of the counts says less than all of
    them: what is checked is the way confidence is found, on cells half as deep as those of the model.

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.simulate_counts(300, 200, n_clusters=3, marker_log_fold_change=3, depth=300)
    >>> sdc.model.SCDeepCluster.setup_anndata(adata)
    >>> model = sdc.model.SCDeepCluster(adata, n_clusters=3)
    >>> model.train(pretrain_epochs=30, max_epochs=2, enable_progress_bar=False)
    >>> check = sdc.tl.check_confidence(model)
    >>> check.repeats > 0.9
    True
    """
    from scdeepclust.train import matched

    n_obs = with_data(model).n_obs
    rng = np.random.default_rng(seed)
    cells = np.sort(rng.choice(n_obs, MAX_CELLS, replace=False)) if n_obs > MAX_CELLS else np.arange(n_obs)
    halves = model._halved_counts(cells, seed)
    some = np.logical_and(*(half.sum(axis=1).A1 > 0 for half in halves))
    first, second = (half[some] for half in halves)
    with model._refit(first, cells[some], seed) as refit:
        labels, confidence = refit.predict().astype(int), refit.get_confidence()
    with model._refit(second, cells[some], seed + 1) as refit:
        others = refit.predict().astype(int)
    return ConfidenceCheck(confidence, matched(labels, others)[others] == labels)


@checked
def prediction_sets(model: ClusteringModel, adata: AnnData | None = None, *, alpha: float = 0.1) -> pd.DataFrame:
    """For each cell the clusters that a repeat could put it into.

    Parameters
    ----------
    model
        A trained model.
    adata
        Cells; by default those of the model.
    alpha
        Share of the cells whose repeat may be outside of their set, above 0 and below 1.

    Returns
    -------
    Indexed by ``obs_names``, one column of bool a cluster: whether it is in the set of the cell. The cluster of the
    cell itself always is.

    Raises
    ------
    RuntimeError
        If the model is not trained.
    ValueError
        If ``alpha`` is out of range, or the model was loaded without data and never asked for its confidence.

    Notes
    -----
    Split conformal prediction. The repeat is the fit to half of the counts that ``get_confidence`` has made, with its
    clusters matched to those of the model; the sets are as large as it takes for at least 1 - ``alpha`` of a third of
    the cells, drawn at random, to have their repeat inside. Other cells of the same kind are then covered as often.
    This is a statement about what one repeat says, on average over cells. It does not say that a cluster is a cell
    type, nor that the cells of each cluster are covered as often, nor that another repeat, which may cut the cells in
    another way, is covered as well. Where clusters of the repeat have no partner no set can cover them.

    References
    ----------
    Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", Springer 2005.

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.simulate_counts(300, 200, n_clusters=3, marker_log_fold_change=3, depth=300)
    >>> sdc.model.SCDeepCluster.setup_anndata(adata)
    >>> model = sdc.model.SCDeepCluster(adata, n_clusters=3)
    >>> model.train(pretrain_epochs=30, max_epochs=2, enable_progress_bar=False)
    >>> sets = sdc.tl.prediction_sets(model, alpha=0.05)
    >>> sets.shape
    (300, 3)
    """
    from scdeepclust.model._base import check_alpha

    check_alpha(alpha)
    model._check_if_trained(warn=False)
    restarts = model._restarts()
    cells = model._validate_anndata(adata)
    evidence = model._evidence(restarts, cells)[0]
    sets = conformal_sets(evidence.likely(restarts["intercepts"][0]), restarts["needed"], alpha)
    sets[np.arange(len(sets)), evidence.labels] = True
    return pd.DataFrame(sets, index=cells.obs_names, columns=[str(k) for k in range(model.n_clusters)])


def conformal_sets(likely: np.ndarray, needed: np.ndarray, alpha: float) -> np.ndarray:
    """Sets of clusters (n, K), bool, as large as calibrating cells ask for.

    Parameters
    ----------
    likely
        How likely a repeat puts a cell into each cluster (n, K).
    needed
        How unlikely the cluster of their repeat was called for calibrating cells, ascending (m,).
    alpha
        Share that may be missed.
    """
    rank = int(np.ceil((len(needed) + 1) * (1 - alpha)))  # leaves room for one cell more
    bound = needed[rank - 1] if rank <= len(needed) else 1.0
    return likely >= 1 - bound
