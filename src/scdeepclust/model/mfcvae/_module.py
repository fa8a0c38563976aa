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
  (``_crossed_groups.py``), or from a column of ``obs`` (``guides``). If nothing is crossed, the facet
  stays closed and the model is a plain mixture model.
* While a facet enters, and later, a penalty on the dependence of facets (HSIC) makes the others give up what it says.
* The main clusters are then started in denoised expression averaged over the components of the other facets: a
  difference between conditions is no difference between types.
* Mixtures start from labelled codes, variances and weights included, when the network is trained; the published start
  (means of an untrained network, variance 0.01) collapses on data sets of the size of ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any, cast

import torch
from scvi.module.base import LossOutput
from torch import Tensor, nn

from scdeepclust._keys import CELL_INDEX
from scdeepclust.model._base import LOG_VAR_MAX, LOG_VAR_MIN, ClusteringModule
from scdeepclust.nn import (
    Counts,
    Covariates,
    GaussianMixture,
    full_precision,
    standard_normal_kl,
)

from ._independence import dependence
from ._ladder import LadderBody, LadderEncoder

# Nats per dimension that an entering facet may use at no cost.
FREE_BITS = 0.25

# Combinations of components of other facets that expected expression is averaged over, at most.
MAX_COMBINATIONS = 8

# Weight of the start groups of a further facet while it enters, in nats per nat of cross-entropy.
GUIDE_WEIGHT = 10.0


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
    anchor
        Weight of the start labels of the main facet in its mixture phase, in nats per nat of cross-entropy.
    **kwargs
        As in :class:`ClusteringModule`.
    """

    starts_at_profile = True

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
        anchor: float = 0.0,
        **kwargs,
    ):
        sizes = [n_latent] + [n_facet_latent] * len(n_facet_clusters)
        super().__init__(n_input, n_latent=sum(sizes), **kwargs)
        self.latent_sizes = sizes
        self.independence = independence
        self.anchor = anchor
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
        u = u if self.mixtures[0].is_initialised else self.with_noise(u)
        features = self.encode(u, covariates)  # J of (B, H)
        moments = [head(h).chunk(2, dim=-1) for head, h in zip(self.heads, features, strict=True)]
        mean = torch.cat([m for m, _ in moments], dim=-1)  # (B, D)
        log_var = torch.cat([v for _, v in moments], dim=-1).clamp(LOG_VAR_MIN, LOG_VAR_MAX)
        shape = (n_samples, *mean.shape) if n_samples > 1 else mean.shape
        z = _draw(mean, log_var, torch.randn(shape, device=mean.device))
        outputs = {"z": z, "z_mean": mean, "z_log_var": log_var, "features": features}
        return outputs | {"counts": counts, "log_library": log_library}

    def posterior(self, inference_outputs: dict, j: int) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of facet j, each (B, D_j)."""
        mean, log_var = inference_outputs["z_mean"], inference_outputs["z_log_var"]
        return mean.split(self.latent_sizes, dim=-1)[j], log_var.split(self.latent_sizes, dim=-1)[j]

    @full_precision
    def log_responsibilities(self, inference_outputs: dict, j: int) -> Tensor:
        """Log of the component posterior r_j, (B, K_j): the maximiser of the bound."""
        mean, log_var = self.posterior(inference_outputs, j)
        return torch.log_softmax(self.mixtures[j].mean_log_joint(mean, log_var.exp()), dim=-1)

    def log_assignments(self, inference_outputs: dict, covariates: Covariates) -> Tensor:
        """Log of the component posterior of the main facet, (B, K)."""
        return self.log_responsibilities(inference_outputs, 0)

    def log_assignments_of_all(self, inference_outputs: dict, covariates: Covariates) -> list[Tensor]:
        """Log of the component posterior of each facet, (B, K_j)."""
        return [self.log_responsibilities(inference_outputs, j) for j in range(self.n_facets)]

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
            loss = loss + self.independence * self.n_input * extra["dependence"] + guidance
        return LossOutput(loss=loss, reconstruction_loss=reconstruction, kl_local=kl, extra_metrics=extra)

    @full_precision
    def divergence(self, inference_outputs: dict, j: int) -> Tensor:
        """Divergence of facet j from its prior, (B,): the mixture, or N(0, I) before the mixture is started."""
        mean, log_var = self.posterior(inference_outputs, j)
        if not self.mixtures[j].is_initialised:
            return standard_normal_kl(mean, log_var)
        negative_entropy = -0.5 * (log_var + math.log(2 * math.pi) + 1).sum(dim=-1)
        return negative_entropy - torch.logsumexp(self.mixtures[j].mean_log_joint(mean, log_var.exp()), dim=-1)

    def facet_dependence(self, inference_outputs: dict) -> Tensor:
        """Sum over pairs of open facets of their dependence, 0 to 1 each."""
        codes = [self.posterior(inference_outputs, j)[0] for j in self.open_facets()]
        pairs = [dependence(a, b) for i, a in enumerate(codes) for b in codes[:i]]
        return torch.stack(pairs).sum() if pairs else codes[0].new_zeros(())

    def guidance(self, inference_outputs: dict, cells: Tensor) -> Tensor:
        """Cross-entropy of the start groups of guided facets times their weights, mean over the cells."""
        total = inference_outputs["z_mean"].new_zeros(())
        for j, groups in self.guides.items():
            groups = self.guides[j] = groups.to(cells.device)
            group = groups[cells]
            log_r = self.log_responsibilities(inference_outputs, j)
            log_own = log_r.gather(1, group.clamp_min(0).unsqueeze(1)).squeeze(1) * (group >= 0)
            total = total - (GUIDE_WEIGHT if j else self.anchor) * log_own.mean()
        return total

    # -- facets -------------------------------------------------------------------------------------------------------

    def open_facets(self) -> list[int]:
        """Facets that take part: the main one, and those that have been let into the decoder."""
        return [0, *(j for j in range(1, self.n_facets) if self.mixtures[j].is_initialised and self.is_open(j))]

    def is_open(self, j: int) -> bool:
        """Whether a facet has more than one cluster."""
        return self.mixtures[j].n_components > 1

    def set_fade(self, j: int, value: float) -> None:
        """Share of facet j in the decoder; a closed facet has none."""
        body = cast(LadderBody, self.decoder.body)
        body.fade[j] = value if self.is_open(j) else 0.0

    def denoised_expression(
        self, z: Tensor, covariates: Covariates, batches: Sequence[tuple[int, float]] | None = None
    ) -> Tensor:
        """Square root of the expected share of each gene, (B, G), averaged over batches and over the other facets."""
        codes = list(z.split(self.latent_sizes, dim=-1))
        others = self.open_facets()[1:]
        total = torch.zeros(len(z), self.n_input, device=z.device)
        for combination, weight in self._typical_combinations(others):
            for j, k in zip(others, combination, strict=True):
                codes[j] = self.mixtures[j].means[k].expand_as(codes[j])
            share = super().denoised_expression(torch.cat(codes, dim=-1), covariates, batches).square()
            total += weight * share
        return total.sqrt()

    def _typical_combinations(self, facets: Sequence[int]) -> list[tuple[tuple[int, ...], Tensor]]:
        """Components of these facets with their joint weights: all, or the likeliest of more than can be decoded."""
        found = []
        for combination in product(*(range(self.mixtures[j].n_components) for j in facets)):
            weight = torch.ones((), device=self.gene_mean.device)
            for j, k in zip(facets, combination, strict=True):
                weight = weight * self.mixtures[j].log_weights[k].exp()
            found.append((combination, weight))
        if len(found) <= MAX_COMBINATIONS:
            return found
        found = sorted(found, key=lambda pair: -float(pair[1]))[:MAX_COMBINATIONS]
        total = sum(weight for _, weight in found)
        return [(combination, weight / total) for combination, weight in found]

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
        self.mixtures[j].set_initialised(True)
        self.set_fade(j, 0.0)

    def forget_facets(self) -> None:
        """Start anew: no clusters, and all facets but the main one out of the decoder."""
        for j, mixture in enumerate(self.mixtures):
            mixture.set_initialised(False)
            if j:
                self.set_fade(j, 0.0)

    def reorder_clusters(self, order: Tensor, j: int = 0) -> None:
        """Renumber the clusters of facet j: new cluster k is old cluster ``order[k]``."""
        self.mixtures[j].select(order)


@full_precision
def _draw(mean: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
    """Draw from a Gaussian that belongs to a draw of standard normal noise."""
    return mean + (log_var / 2).exp() * noise
