"""MFCVAE: several clusterings of the same cells, each a facet of one latent space.

Falck et al., "Multi-facet clustering variational autoencoders", NeurIPS 34 (2021), with the count decoder of
single-cell models. With facets j = 0, ..., J - 1, for a cell with counts y in batch b,

    c_j ~ Categorical(pi_j),   z_j ~ N(mu_{j,c_j}, sigma_j^2),   y ~ NB(library * softmax(ladder(z_0, ..., z_{J-1}, b)))

Every facet has its own mixture, hence its own clusters; facets leave the encoder and enter the decoder at different
depths. For Gaussian q(z_j | y) the component posterior that maximises the bound has a closed form,

    r_jk  proportional to  pi_jk exp E_q log N(z_j; mu_jk, sigma_j^2),

and with it the divergence from the prior is  E_q log q(z_j) - log sum_k pi_jk exp E_q log N(z_j; mu_jk, sigma_j^2),
without any sampling.

What differs from the paper, and why:

* Facet 0 is the main one: the deepest, trained first (the paper numbers the deepest last).
* Depth alone does not make facets differ: the first facet trained takes all there is. Here a further facet starts
  from groups that are *crossed* with the main clusters in denoised expression, found again within each of them
  (:func:`scdeepclust.train.crossed_groups`), or from a column of ``obs`` (``guides``). If nothing is crossed, the facet
  stays closed and the model is a plain mixture model.
* While a facet enters, and later, a penalty on the dependence of facets (HSIC) makes the others give up what it says.
* The main clusters are then started in denoised expression averaged over the components of the other facets: a
  difference between conditions is no difference between types.
* Mixtures start from labelled codes, variances and weights included, when the network is trained; the published start
  (means of an untrained network, variance 0.01) collapses on data sets of the size of ours.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import partial
from itertools import combinations, product
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi.module.base import LossOutput
from torch import Tensor, nn

from scdeepclust._keys import CELL_INDEX
from scdeepclust.nn import (
    Counts,
    Covariates,
    Dispersion,
    GaussianMixture,
    GeneLikelihood,
    LadderBody,
    LadderEncoder,
    dependence,
    standard_normal_kl,
)
from scdeepclust.train import (
    FadeIn,
    Initialiser,
    Phase,
    crossed_groups,
    epochs_for_steps,
    n_communities,
    shared_information,
)

from ._base_model import _seed
from ._base_module import TARGET_TOTAL, ClusteringModule
from ._mfcvae_getters import MFCVAEGetters

# Bounds of the posterior log-variance: exp() can neither overflow nor make a density infinite.
LOG_VAR_MIN, LOG_VAR_MAX = -8.0, 4.0

# Share of its phase over which a facet fades into the decoder; its prior sets in more slowly.
FADE_SHARE, PRIOR_SHARE = 0.4, 0.8

# Nats per dimension that an entering facet may use at no cost.
FREE_BITS = 0.25

# Facets that share more information than this (of the smaller entropy) repeat each other.
REPEATED = 0.3


class MFCVAEModule(ClusteringModule):
    """The equations of MFCVAE.

    Parameters
    ----------
    n_input
        Number of genes.
    n_clusters
        Number of clusters of the main facet; 0 if it is set later by :meth:`start_facet`.
    n_facet_clusters
        Number of clusters of each further facet, likewise.
    n_latent
        Size of the main facet.
    n_facet_latent
        Size of each further facet.
    independence
        Weight of the dependence of facets, relative to a reconstruction per entry of the count matrix.
    guide_weight
        Weight of the start groups of a facet while it enters, in nats per nat of cross-entropy.
    **kwargs
        As in :class:`ClusteringModule`.
    """

    mixtures: Any  # J GaussianMixture
    heads: Any  # J nn.Linear

    def __init__(
        self,
        n_input: int,
        *,
        n_clusters: int,
        n_facet_clusters: Sequence[int] = (0,),
        n_latent: int = 16,
        n_facet_latent: int = 4,
        independence: float = 0.1,
        guide_weight: float = 10.0,
        **kwargs,
    ):
        sizes = [n_latent] + [n_facet_latent] * len(n_facet_clusters)
        super().__init__(n_input, n_latent=sum(sizes), **kwargs)
        self.latent_sizes = sizes
        self.independence = independence
        self.guide_weight = guide_weight
        shape: dict[str, Any] = {
            "n_batch": self.n_batch,
            "n_cats_per_cov": kwargs.get("n_cats_per_cov", ()),
            "n_continuous": self.n_continuous_cov,
            "n_hidden": self.n_hidden,
            "dropout_rate": kwargs.get("dropout_rate", 0.2),
        }
        self.decoder.body = LadderBody(sizes, **shape)
        if not self.encode_covariates:
            shape |= {"n_batch": 0, "n_cats_per_cov": (), "n_continuous": 0}
        self.encoder = LadderEncoder(n_input, len(sizes), n_layers=kwargs.get("n_layers", 2), **shape)
        self.heads = nn.ModuleList(nn.Linear(self.n_hidden, 2 * size) for size in sizes)
        self.mixtures = nn.ModuleList(
            GaussianMixture(n, size) for n, size in zip([n_clusters, *n_facet_clusters], sizes, strict=True)
        )
        # start group of each cell (n,), -1 where there is none, by facet; kept while the fit needs them
        self.guides: dict[int, Tensor] = {}

    @property
    def n_facets(self) -> int:
        """Number of facets J."""
        return len(self.latent_sizes)

    @property
    def n_clusters(self) -> int:
        """Number of clusters of the main facet."""
        return self.mixtures[0].n_components

    # -- q(z_j | y), q(c_j | y) ---------------------------------------------------------------------------------------

    def inference(
        self, counts: Counts, covariates: Covariates, size_factor: Tensor | None = None, n_samples: int = 1
    ) -> dict:
        """Posterior of the joint code z, with one draw (B, D) or n_samples of them (M, B, D)."""
        log_library = self.log_library(counts, size_factor)
        u = self.network_input(counts, log_library)  # (B, G)
        # noise ends where clusters begin: a rare type whose noisy cells look like a large one would be lost to it
        u = u if self.mixtures[0].initialised else self.with_noise(u)
        features = self.encode(u, covariates)  # J of (B, H)
        moments = [head(h).chunk(2, dim=-1) for head, h in zip(self.heads, features, strict=True)]
        mean = torch.cat([m for m, _ in moments], dim=-1)  # (B, D)
        log_var = torch.cat([v for _, v in moments], dim=-1).clamp(LOG_VAR_MIN, LOG_VAR_MAX)
        shape = (n_samples, *mean.shape) if n_samples > 1 else mean.shape
        z = mean + (log_var / 2).exp() * torch.randn(shape, device=mean.device)
        outputs = {"z": z, "z_mean": mean, "z_log_var": log_var, "features": features}
        return outputs | {"counts": counts, "log_library": log_library}

    def posterior(self, inference_outputs: dict, j: int) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of facet j, each (B, D_j)."""
        mean, log_var = inference_outputs["z_mean"], inference_outputs["z_log_var"]
        return mean.split(self.latent_sizes, dim=-1)[j], log_var.split(self.latent_sizes, dim=-1)[j]

    def log_responsibilities(self, inference_outputs: dict, j: int) -> Tensor:
        """Log of the component posterior r_j, (B, K_j): the maximiser of the bound."""
        mean, log_var = self.posterior(inference_outputs, j)
        return torch.log_softmax(self.mixtures[j].mean_log_joint(mean, log_var.exp()), dim=-1)

    def log_assignments(self, inference_outputs: dict, covariates: Covariates) -> Tensor:
        """Log of the component posterior of the main facet, (B, K)."""
        return self.log_responsibilities(inference_outputs, 0)

    # -- evidence lower bound -----------------------------------------------------------------------------------------

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict,
        generative_outputs: dict,
        phase: str = "mixture",
        kl_weight: float = 1.0,
    ) -> LossOutput:
        """Negative evidence lower bound per cell; with the start groups of an entering facet, and the penalty."""
        counts, log_library = inference_outputs["counts"], inference_outputs["log_library"]
        reconstruction = -self.log_likelihood(counts, generative_outputs["heads"], log_library)  # (B,)
        kl = {f"kl_facet{j}": self.divergence(inference_outputs, j) for j in range(self.n_facets)}
        loss = reconstruction.mean()
        for j, value in enumerate(kl.values()):
            entering = phase == f"facet{j}"
            value = value.mean().clamp_min(FREE_BITS * self.latent_sizes[j]) if entering else value.mean()
            loss = loss + (kl_weight if entering or phase == "pretrain" else 1.0) * value
        extra = {name: value.mean() for name, value in kl.items()}
        if phase not in ("pretrain", "query"):
            extra["dependence"] = self.facet_dependence(inference_outputs)
            guidance = self.guidance(inference_outputs, tensors[CELL_INDEX])
            loss = loss + self.independence * self.n_input * extra["dependence"] + self.guide_weight * guidance
        return LossOutput(loss=loss, reconstruction_loss=reconstruction, kl_local=kl, extra_metrics=extra)

    def divergence(self, inference_outputs: dict, j: int) -> Tensor:
        """Divergence of facet j from its prior, (B,): the mixture, or N(0, I) before the mixture is started."""
        mean, log_var = self.posterior(inference_outputs, j)
        if not self.mixtures[j].initialised:
            return standard_normal_kl(mean, log_var)
        negative_entropy = -0.5 * (log_var + math.log(2 * math.pi) + 1).sum(dim=-1)
        return negative_entropy - torch.logsumexp(self.mixtures[j].mean_log_joint(mean, log_var.exp()), dim=-1)

    def facet_dependence(self, inference_outputs: dict) -> Tensor:
        """Sum over pairs of open facets of their dependence, 0 to 1 each."""
        codes = [self.posterior(inference_outputs, j)[0] for j in self.open_facets()]
        pairs = [dependence(a, b) for i, a in enumerate(codes) for b in codes[:i]]
        return torch.stack(pairs).sum() if pairs else codes[0].new_zeros(())

    def guidance(self, inference_outputs: dict, cells: Tensor) -> Tensor:
        """Cross-entropy of the start groups of guided facets, mean over the cells that have one."""
        total = inference_outputs["z_mean"].new_zeros(())
        for j, groups in self.guides.items():
            group = groups[cells.to(groups.device)].to(total.device)
            log_r = self.log_responsibilities(inference_outputs, j)
            total = total - (log_r.gather(1, group.clamp_min(0).unsqueeze(1)).squeeze(1) * (group >= 0)).mean()
        return total

    # -- facets -------------------------------------------------------------------------------------------------------

    def open_facets(self) -> list[int]:
        """Facets that take part: the main one, and those that have been let into the decoder."""
        return [0, *(j for j in range(1, self.n_facets) if self.mixtures[j].initialised and self.is_open(j))]

    def is_open(self, j: int) -> bool:
        """Whether a facet has more than one cluster."""
        return self.mixtures[j].n_components > 1

    def set_fade(self, j: int, value: float) -> None:
        """Share of facet j in the decoder; a closed facet has none."""
        body = cast(LadderBody, self.decoder.body)
        body.fade[j] = value if self.is_open(j) else 0.0

    def denoised_expression(self, z: Tensor, covariates: Covariates) -> Tensor:
        """Square root of the expected share of each gene, (B, G), averaged over batches and over the other facets."""
        codes = list(z.split(self.latent_sizes, dim=-1))
        others = self.open_facets()[1:]
        total = torch.zeros(len(z), self.n_input, device=z.device)
        for combination in product(*(range(self.mixtures[j].n_components) for j in others)):
            weight = torch.ones((), device=z.device)
            for j, k in zip(others, combination, strict=True):
                codes[j] = self.mixtures[j].means[k].expand_as(codes[j])
                weight = weight * self.mixtures[j].log_weights[k].exp()
            share = super().denoised_expression(torch.cat(codes, dim=-1), covariates).square()
            total += weight * share
        return total.sqrt()

    @torch.no_grad()
    def open_facet(self, j: int, features: Tensor, groups: Tensor) -> None:
        """Let facet j say which group a cell is of, as well as a linear map of its features (n, H) can.

        ``groups`` is (n,), -1 where unknown.
        """
        known = groups >= 0
        x, center = features[known], features[known].mean(dim=0)
        target = nn.functional.one_hot(groups[known]).to(x.dtype)
        x = x - center
        ridge = 1e-2 * x.square().mean() * len(x) * torch.eye(x.shape[1], device=x.device)
        weights = torch.linalg.solve(x.T @ x + ridge, x.T @ (target - target.mean(dim=0)))  # (H, K)
        # orthogonal directions, the one that varies most first; K groups have K - 1
        _, _, v = torch.linalg.svd(x @ weights, full_matrices=False)
        weights = (weights @ v.T)[:, : min(self.latent_sizes[j], target.shape[1] - 1)]
        weights = weights / (x @ weights).std(dim=0)
        size, n = self.latent_sizes[j], weights.shape[1]
        head = self.heads[j]
        head.weight.zero_()
        head.bias.zero_()
        head.weight[:n] = weights.T
        head.bias[:n] = -center @ weights
        head.bias[size:] = math.log(0.1)
        self.start_facet(j, head(features[known])[:, :size], torch.full((len(x), size), 0.1), groups[known])

    def start_facet(self, j: int, z_mean: Tensor, z_var: Tensor, labels: Tensor) -> None:
        """Place one component of facet j on each label: posterior means and variances are (n, D_j), labels (n,)."""
        self.mixtures[j] = GaussianMixture(int(labels.max()) + 1, self.latent_sizes[j]).to(z_mean.device)
        self.mixtures[j].initialise(z_mean, z_var.to(z_mean.device), labels)

    def close_facet(self, j: int) -> None:
        """Leave facet j out: one component, the standard normal, and no share in the decoder."""
        size = self.latent_sizes[j]
        self.mixtures[j] = GaussianMixture(1, size).to(self.gene_mean.device)
        self.mixtures[j].means.data.zero_()
        self.mixtures[j].initialised.fill_(True)
        self.set_fade(j, 0.0)

    def forget_facets(self) -> None:
        """Start anew: no clusters, and all facets but the main one out of the decoder."""
        for j, mixture in enumerate(self.mixtures):
            mixture.initialised.fill_(False)
            if j:
                self.set_fade(j, 0.0)

    def reorder_clusters(self, order: Tensor, j: int = 0) -> None:
        """Renumber the clusters of facet j: new cluster k is old cluster ``order[k]``."""
        self.mixtures[j].select(order)


class MFCVAE(MFCVAEGetters):
    """Multi-facet clustering: several clusterings of the same cells :cite:p:`Falck21`.

    Parameters
    ----------
    adata
        Data registered by :meth:`setup_anndata`.
    n_clusters
        Number of clusters of the main facet. None takes the number of communities that Leiden finds.
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
    gene_likelihood
        ``"nb"``, ``"zinb"``, ``"poisson"``, or ``"normal"`` on log-normalised data.
    dispersion
        One dispersion per ``"gene"``, ``"gene-batch"``, or ``"gene-cell"``.
    n_latent, n_facet_latent
        Size of the main facet, and of each further one.
    n_hidden, n_layers, dropout_rate
        Sizes of the networks.
    input_noise
        Standard deviation of the noise added to the standardised input before the clusters start.
    independence
        Weight of the dependence of facets (normalised HSIC, 0 to 1), relative to a reconstruction per entry of the
        count matrix. 0 lets facets repeat each other. A step takes time in proportion to the square of the batch size.
    encode_covariates
        Whether batch and covariates enter the encoder too, besides the decoder.
    n_init
        Restarts of each k-means.

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
        encode_covariates: bool = False,
        n_init: int = 3,
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
            "encode_covariates": encode_covariates,
        }
        super().__init__(adata, n_clusters, module_kwargs, registry, init=init, n_init=n_init)
        self._guides = _one_per_facet("guides", guides, n_facets, None)
        if adata is not None and registry is None:
            for column in filter(None, self._guides):
                _check_guide(adata, column)
        self._finds_facet_clusters = [n == 0 for n in facet_clusters]
        self.crossing_: dict[int, float] = {}
        self.init_params_ = self._get_init_params(locals())

    # -- fit ----------------------------------------------------------------------------------------------------------

    def _phases(self, pretrain_epochs, max_epochs, n_train, batch_size) -> list[Phase]:
        if self._keeps_reference_clusters:
            # the columns of new batches learn below the mixtures of the reference, which stay what they are
            epochs = epochs_for_steps(400, n_train, batch_size, 100) if max_epochs is None else max_epochs
            return [Phase("query", epochs)]
        others = range(1, self.module.n_facets)
        has_clusters = bool(self.module.mixtures[0].initialised)
        if pretrain_epochs is None:
            # a model that has clusters goes on from them
            steps = 1000 + 500 * len(others)
            pretrain_epochs = 0 if has_clusters else epochs_for_steps(steps, n_train, batch_size, 200)
        if max_epochs is None:
            max_epochs = epochs_for_steps(300, n_train, batch_size, 60)
        entry = pretrain_epochs // (2 + len(others))  # the main facet has twice the time of another one
        starts = None if has_clusters and not pretrain_epochs else self._start_clusters
        return [
            Phase(
                "pretrain",
                pretrain_epochs - entry * len(others),
                begin=lambda _: self.module.forget_facets(),
                plan_kwargs={"kl_warmup": 0.2},
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

    def _enter_facet(self, j: int, train_indices: np.ndarray) -> None:
        """Find the groups facet j starts from and let it in; without any it stays closed."""
        cells = np.sort(train_indices)
        groups = self._start_groups(j, cells)
        if groups is None:
            self.module.close_facet(j)
        else:
            features = torch.cat([self._encode(tensors)["features"][j] for tensors in self._minibatches(indices=cells)])
            codes = torch.as_tensor(groups, device=self.device)
            # features were made in inference mode, and what is computed from them goes into parameters
            self.module.open_facet(j, features.clone(), codes)
            of_all_cells = torch.full((self.adata.n_obs,), -1)
            self.module.guides[j] = of_all_cells.index_copy_(0, torch.as_tensor(cells), codes.cpu())
        self._keep_n_facet_clusters()

    def _start_groups(self, j: int, cells: np.ndarray) -> np.ndarray | None:
        """Groups (n,) of facet j: of its column in ``obs``, or crossed with the facets before it, or None."""
        if (column := self._guides[j - 1]) is not None:
            return pd.factorize(self.adata.obs[column], sort=True)[0][cells]
        points = self._denoised_points(cells, _log_expression)
        n_groups = None if self._finds_facet_clusters[j - 1] else self.module.mixtures[j].n_components
        n_clusters = self.n_clusters or n_communities(points, seed=_seed())
        found = crossed_groups(points, n_clusters, n_groups, seed=_seed())
        self.crossing_[j] = found.ratio
        if found.ratio >= 1 and n_groups is None:
            return None
        return np.unique(found.labels, return_inverse=True)[1]

    def _keep_n_facet_clusters(self) -> None:
        """Loading builds the module from the arguments of the constructor: they get the numbers that were found."""
        self.init_params_["non_kwargs"]["n_facet_clusters"] = [m.n_components for m in self.module.mixtures[1:]]

    def _start_clusters(self, train_indices: np.ndarray) -> None:
        for j in range(1, self.module.n_facets):
            if not self.module.mixtures[j].initialised:  # its phase was skipped
                self._enter_facet(j, train_indices)
                self.module.set_fade(j, 1.0)
        cells = np.sort(train_indices)
        labels = self._start_labels(cells)
        moments = [self.module.posterior(self._encode(t), 0) for t in self._minibatches(indices=cells)]
        z_mean, z_log_var = map(torch.cat, zip(*moments, strict=True))
        self.module.start_facet(0, z_mean, z_log_var.exp(), torch.as_tensor(labels, device=self.device))

    def _end_training(self, train_indices: np.ndarray) -> None:
        self.module.guides = {}
        if not self._keeps_reference_clusters:
            for j in range(1, self.module.n_facets):
                sizes = np.bincount(
                    self._facet_probabilities(j).argmax(axis=1), minlength=self.module.mixtures[j].n_components
                )
                order = np.argsort(-sizes, kind="stable")
                self.module.reorder_clusters(torch.as_tensor(order, device=self.device), j)
        super()._end_training(train_indices)

    def _warn_if_degenerate(self, probabilities: np.ndarray) -> None:
        super()._warn_if_degenerate(probabilities)
        labels = [probabilities.argmax(axis=1)]
        for j in range(1, self.module.n_facets):
            labels.append(self._facet_probabilities(j).argmax(axis=1))
            n_used, n_given = len(np.unique(labels[j])), self.module.mixtures[j].n_components
            if n_used == 1:
                why = f"ratio {self.crossing_[j]:.2f}" if j in self.crossing_ else "all cells are in one cluster"
                if n_given > 1:
                    why = "its clusters have merged"
                warnings.warn(
                    f"Facet {j} says nothing ({why}): no second clustering was found that is crossed with the facets "
                    f"before. Name a column of `obs` in `guides`, give `n_facet_clusters`, or set n_facets={j}.",
                    stacklevel=2,
                )
        for i, j in combinations(range(len(labels)), 2):
            table = pd.crosstab(labels[i], labels[j]).to_numpy()
            if min(table.shape) > 1 and (shared := shared_information(table)) > REPEATED:
                warnings.warn(
                    f"Facets {i} and {j} repeat each other: one tells {shared:.0%} of the other. Raise `independence`, "
                    "or ask for fewer facets.",
                    stacklevel=2,
                )


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
