"""MFCVAE, the model; its equations, and what differs from the paper and why, are in ``_module.py``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scdeepclust.model._base import TARGET_TOTAL, ClusteringModel, check_held_out, shared_docs
from scdeepclust.nn import Dispersion, GeneLikelihood
from scdeepclust.train import (
    Initialiser,
    Phase,
    epochs_for_steps,
    n_communities,
    pretraining_epochs,
)

from ._crossed_groups import GROUP_NUMBERS, crossed_groups, shared_information
from ._fade_in import FadeIn
from ._getters import FacetGetters
from ._module import MFCVAEModule

# Share of the first phase over which the prior of the main facet rises. Where types differ by little, one that is there
# from a fifth of the phase on empties the facet before the networks have found them.
RISE_SHARE = 0.6

# Share of its phase over which a facet fades into the decoder; its prior sets in more slowly.
FADE_SHARE, PRIOR_SHARE = 0.4, 0.8

# Facets that share more information than this (of the smaller entropy) repeat each other.
REPEATED = 0.3


@shared_docs
class MFCVAE(FacetGetters, ClusteringModel):
    """Multi-facet clustering: several clusterings of the same cells :cite:p:`Falck21`.

    Parameters
    ----------
    %(adata)s
    n_clusters
        Number of clusters of the main facet. None finds the number, which may be 1, as in the other models.
    n_facets
        Number of facets J. 1 is a plain mixture model.
    n_facet_clusters
        Number of clusters of each further facet (one number for all, or a list with None where it is to be found).
        None takes the number from 2 to 4 that explains the data best, and 1, a closed facet, if nothing in the data is
        crossed with the facets before.
    guides
        Columns of ``obs`` that further facets follow: one name for facet 1, or a list with None for facets that are to
        be found. Cells without a value are left to the facet.
    init
        Start of the main clusters: ``"merge"`` (micro-clusters merged by size and distance), ``"kmeans"``, ``"gmm"``,
        ``"leiden"``, or one label per cell.
    %(likelihood)s
    n_latent, n_facet_latent
        Size of the main facet, and of each further one.
    n_hidden, n_layers, dropout_rate
        Sizes of the networks.
    input_noise
        Standard deviation of the noise added to the standardised input before the clusters start.
    independence
        Weight of the dependence of facets (normalised HSIC, 0 to 1), relative to a reconstruction per entry of the
        count matrix. 0 lets facets repeat each other. A step takes time in proportion to the square of the batch size.
    anchor
        Weight with which cells keep to their start labels in the main facet while the mixture is trained, in nats per
        nat of cross-entropy. At 0 the mixture moves them freely: straight borders between Gaussians. Clusters that are
        curved in the latent space, such as communities of a neighbour graph, need some (10).
    %(encode_covariates)s
    %(n_init)s
    %(alpha)s

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.simulate_counts(400, 300, n_clusters=3, n_facet_groups=2, depth=200)
    >>> sdc.model.MFCVAE.setup_anndata(adata)
    >>> model = sdc.model.MFCVAE(adata, n_clusters=3, n_facet_clusters=2)
    >>> model.train(pretrain_epochs=6, max_epochs=2, enable_progress_bar=False)
    >>> list(model.get_facets())
    ['facet0', 'facet1']
    >>> model.write_back(adata)
    >>> adata.obsm["X_mfcvae_facet1"].shape
    (400, 4)
    """

    _module_cls = MFCVAEModule

    def __init__(
        self,
        adata: AnnData | None = None,
        n_clusters: int | None = None,
        *,
        n_facets: int = 2,
        n_facet_clusters: int | Sequence[int | None] | None = None,
        guides: str | Sequence[str | None] | None = None,
        init: Initialiser | Sequence = "merge",
        gene_likelihood: GeneLikelihood = "nb",
        dispersion: Dispersion = "gene",
        n_latent: int = 16,
        n_facet_latent: int = 4,
        n_hidden: int = 128,
        n_layers: int = 2,
        dropout_rate: float = 0.2,
        input_noise: float = 2.0,
        independence: float = 0.1,
        anchor: float = 0.0,
        encode_covariates: bool = False,
        n_init: int = 3,
        alpha: float = 0.05,
        seed: int | None = None,
        extra_payload_autotune: bool = False,
        registry: dict | None = None,
    ):
        facet_clusters = _one_per_facet("n_facet_clusters", n_facet_clusters, n_facets, 0)
        module_kwargs = {
            "n_facet_clusters": facet_clusters,
            "gene_likelihood": gene_likelihood,
            "dispersion": dispersion,
            "n_latent": n_latent,
            "n_facet_latent": n_facet_latent,
            "n_hidden": n_hidden,
            "n_layers": n_layers,
            "dropout_rate": dropout_rate,
            "input_noise": input_noise,
            "independence": independence,
            "anchor": anchor,
            "encode_covariates": encode_covariates,
        }
        super().__init__(adata, n_clusters, module_kwargs, registry, init=init, n_init=n_init, alpha=alpha, seed=seed)
        self._guides = _one_per_facet("guides", guides, n_facets, None)
        if adata is not None and registry is None:
            for column in filter(None, self._guides):
                _check_guide(adata, column)
        self._finds_facet_clusters = [n == 0 for n in facet_clusters]
        self.crossing_: dict[int, float] = {}
        self.init_params_ = self._get_init_params(locals())

    # -- fit ----------------------------------------------------------------------------------------------------------

    @property
    def _has_clusters(self) -> bool:
        return bool(self.module.mixtures[0].initialised)

    def _phases(self, pretrain_epochs, max_epochs, n_train, batch_size) -> list[Phase]:
        if self._keeps_reference_clusters:
            return self._query_phases(max_epochs, n_train, batch_size)
        others = range(1, self.module.n_facets)
        if pretrain_epochs is None:
            # a model that has clusters goes on from them
            steps = 1000 + 500 * len(others)
            pretrain_epochs = 0 if self._continues else pretraining_epochs(steps, n_train, batch_size, 200)
        if max_epochs is None:
            max_epochs = epochs_for_steps(300, n_train, batch_size, 60)
        entry = pretrain_epochs // (2 + len(others))  # the main facet has twice the time of another one
        starts = self._continue_clusters if self._continues and not pretrain_epochs else self._start_clusters
        return [
            Phase(
                "pretrain",
                pretrain_epochs - entry * len(others),
                begin=lambda _: self.module.forget_facets(),
                plan_kwargs={"kl_warmup": RISE_SHARE},
            ),
            *(
                Phase(
                    f"facet{j}",
                    entry,
                    begin=partial(self._enter_facet, j),
                    plan_kwargs={"kl_warmup": PRIOR_SHARE},
                    callbacks=[FadeIn(partial(self.module.set_fade, j), FADE_SHARE)],
                )
                for j in others
            ),
            Phase("mixture", max_epochs, begin=starts, plan_kwargs={"lr": 5e-4}),
        ]

    def _begin_training(self) -> None:
        if not self._keeps_reference_clusters and not self.module.knows_data:
            for column in filter(None, self._guides):
                _check_guide(self.adata, column)  # that of a datamodule has not been looked at
                check_held_out("guides", self.adata.obs[column], self.train_indices)
            self._check_number_of_cells()
        super()._begin_training()

    def _check_number_of_cells(self) -> None:
        """Crossed groups are compared with as many ordinary clusters, which need cells."""
        numbers = [mixture.n_components for mixture in self.module.mixtures[1:]]
        groups = [n or max(GROUP_NUMBERS) for n, guide in zip(numbers, self._guides, strict=True) if guide is None]
        needed = (self.n_clusters or 2) + max(groups, default=0) - 1
        if groups and len(self.train_indices) < needed:
            raise ValueError(
                f"`n_facets`: to look for facets beside {self.n_clusters or 'the'} clusters takes {needed} cells at "
                f"least; there are {len(self.train_indices)}. Ask for one facet, fewer clusters, or name `guides`."
            )

    def _enter_facet(self, j: int, train_indices: np.ndarray) -> None:
        """Find the groups facet j starts from and let it in; without any it stays closed."""
        cells = np.sort(train_indices)
        groups = self._start_groups(j, cells)
        if groups is None:
            self.module.close_facet(j)
            self.starts_ = {name: codes for name, codes in self.starts_.items() if name != _start_of(j)}
        else:
            features = torch.cat([self._encode(tensors)["features"][j] for tensors in self._minibatches(indices=cells)])
            codes = torch.as_tensor(groups, device=self.device)
            # features were made in inference mode, and what is computed from them goes into parameters
            self.module.open_facet(j, features.clone(), codes)
            self._guide(j, cells, codes)
        self._keep_n_facet_clusters()

    def _arguments_of_refit(self, cells: np.ndarray) -> dict[str, Any]:
        arguments = super()._arguments_of_refit(cells)
        # a facet that stayed closed may be found
        numbers = [n if n > 1 else None for n in arguments["n_facet_clusters"] or ()]
        return arguments | {"n_facet_clusters": numbers or None}

    def _guide(self, j: int, cells: np.ndarray, groups: torch.Tensor) -> None:
        """Let facet j keep to its start groups, one for each of these cells, until training ends."""
        self.module.guides[j] = self._keep_start(_start_of(j), cells, groups.cpu().numpy())

    def _start_groups(self, j: int, cells: np.ndarray) -> np.ndarray | None:
        """Groups (n,) of facet j: of its column in ``obs``, or crossed with the facets before it, or None."""
        if (column := self._guides[j - 1]) is not None:
            return pd.factorize(self.adata.obs[column], sort=True)[0][cells]
        points = self._denoised_points(cells, _log_expression)
        n_groups = None if self._finds_facet_clusters[j - 1] else self.module.mixtures[j].n_components
        n_clusters = self.n_clusters or max(2, n_communities(points, seed=self._start_seed))
        found = crossed_groups(points, n_clusters, n_groups, seed=self._start_seed)
        self.crossing_[j] = found.ratio
        if found.ratio >= 1 and n_groups is None:
            return None
        return np.unique(found.labels, return_inverse=True)[1]

    def _keep_n_facet_clusters(self) -> None:
        """Loading builds the module from the arguments of the constructor: they get the numbers that were found."""
        self.init_params_["non_kwargs"]["n_facet_clusters"] = [m.n_components for m in self.module.mixtures[1:]]

    def _start_clusters(self, train_indices: np.ndarray) -> None:
        for j in range(1, self.module.n_facets):
            if not self.module.mixtures[j].is_initialised:  # its phase was skipped
                self._enter_facet(j, train_indices)
            self.module.set_fade(j, 1.0)  # whichever epoch of its phase was kept
        cells = np.sort(train_indices)
        labels = self._start_labels(cells)
        moments = [self.module.posterior(self._encode(t), 0) for t in self._minibatches(indices=cells)]
        z_mean, z_log_var = map(torch.cat, zip(*moments, strict=True))
        self.module.start_facet(0, z_mean, z_log_var.exp(), torch.as_tensor(labels, device=self.device))
        if self.module.anchor:
            self._guide(0, cells, torch.as_tensor(labels))

    def _continue_clusters(self, train_indices: np.ndarray) -> None:
        guides = {j: self._kept_start(_start_of(j)) for j in range(self.module.n_facets) if j or self.module.anchor}
        self.module.guides = {j: groups for j, groups in guides.items() if groups is not None}

    def _end_training(self, train_indices: np.ndarray) -> None:
        self.module.guides = {}
        if not self._keeps_reference_clusters:
            for j in range(1, self.module.n_facets):
                sizes = np.bincount(
                    self._facet_probabilities(j).argmax(axis=1), minlength=self.module.mixtures[j].n_components
                )
                order = np.argsort(-sizes, kind="stable")
                self.module.reorder_clusters(torch.as_tensor(order, device=self.device), j)
                self._renumber_start(_start_of(j), order)
        super()._end_training(train_indices)

    def _warn_if_degenerate(self, probabilities: np.ndarray) -> None:
        super()._warn_if_degenerate(probabilities)
        labels = [probabilities.argmax(axis=1)]
        for j in range(1, self.module.n_facets):
            labels.append(self._facet_probabilities(j).argmax(axis=1))
            n_used, n_given = len(np.unique(labels[j])), self.module.mixtures[j].n_components
            ratio = self.crossing_.get(j, 0.0)  # 1 or more: ordinary clusters explain the cells as well
            if n_used == 1:
                why = f"ratio {ratio:.2f}" if ratio else "all cells are in one cluster"
                why = f"Facet {j} says nothing ({'its clusters have merged' if n_given > 1 else why})"
            elif ratio >= 1:
                why = f"Facet {j} has {n_given} clusters, as was asked for, but they say next to nothing"
                why += f" (ratio {ratio:.2f}, where less than 1 is a finding)"
            else:
                continue
            warnings.warn(f"{why}: {self._advice_without_crossing(j)}", stacklevel=2)
        for i, j in combinations(range(len(labels)), 2):
            table = pd.crosstab(labels[i], labels[j]).to_numpy()
            if min(table.shape) > 1 and (shared := shared_information(table)) > REPEATED:
                warnings.warn(
                    f"Facets {i} and {j} repeat each other: one tells {shared:.0%} of the other. Raise `independence`, "
                    "or ask for fewer facets.",
                    stacklevel=2,
                )

    def _advice_without_crossing(self, j: int) -> str:
        advice = "no second clustering was found that is crossed with the facets before. "
        if self.n_clusters > 2:
            advice += f"The {self.n_clusters} main clusters may have taken it in: try fewer, such as n_clusters="
            advice += f"{max(2, self.n_clusters // 2)}. "
        return (
            advice + f"If you know what it should follow, name that column of `obs` in `guides`; else set n_facets={j}."
        )


def _start_of(j: int) -> str:
    """Name under which the start groups of facet j are kept; those of the main facet are renumbered with it."""
    return f"facet{j}" if j else "labels"


def _log_expression(share_root: np.ndarray) -> np.ndarray:
    """log1p of expected counts per 10,000, where the effect of a condition is about the same in every cell type."""
    return np.log1p(TARGET_TOTAL * np.square(share_root))


def _check_guide(adata: AnnData, column: str) -> None:
    if column not in adata.obs:
        raise ValueError(f"`guides`: there is no column {column!r} in `adata.obs`; found {list(adata.obs)}.")
    if (n := adata.obs[column].nunique()) < 2:
        raise ValueError(f"`guides`: column {column!r} of `adata.obs` has {n} different values; a facet needs two.")


def _one_per_facet(argument: str, value: Any, n_facets: int, missing: Any) -> list:
    """One value for each facet but the main one."""
    if isinstance(n_facets, bool) or not isinstance(n_facets, int) or n_facets < 1:
        raise ValueError(f"`n_facets` must be a whole number of at least 1; found {n_facets!r}.")
    if isinstance(value, str):
        values: list[Any] = [value, *[None] * (n_facets - 2)]
    elif value is None or isinstance(value, int):
        values = [value] * (n_facets - 1)
    else:
        values = list(value)
    if len(values) != n_facets - 1:
        raise ValueError(
            f"`{argument}` has {len(values)} entries for {n_facets - 1} facets besides the main one; give one for each."
        )
    return [missing if v is None else v for v in values]
