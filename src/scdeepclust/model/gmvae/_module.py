"""GMVAE: a variational autoencoder of counts whose prior is a Gaussian mixture; its components are the clusters.

Dilokthanakul et al., "Deep unsupervised clustering with Gaussian mixture variational autoencoders",
arXiv:1611.02648 (2016), with the batch-conditioned count decoder of single-cell models. For a cell with counts y in
batch b,

    k ~ Categorical(pi),   w ~ N(0, I),   z ~ N(mu_k(w), sigma_k(w)^2),   y ~ NB(library * softmax(decoder(z, b)))

with q(z | y) and q(w | y) from one encoder, and the component of a cell from Bayes' rule, p(k | z, w). Without w
(``n_w=0``) the prior is a plain mixture of Gaussians.

What differs from the published method and its single-cell version, and why:

* The prior term is exact. Given the component posterior r = p(k | z, w),

      sum_k r_k (log q(z) - log p(z | k, w)) + KL(r || pi) = log q(z) - log sum_k pi_k p(z | k, w).

  The published estimator replaces log q(z) - log p(z | k, w) by its mean over z while r is still taken at one draw of
  z. The two depend on the same z, so the result is larger than the true term
  (``prior_estimator="analytic_kl"`` reproduces it).
* A component depends on w only through an offset that starts at zero, so that w cannot take over the clusters.
* First an ordinary autoencoder is trained, with noise on its input, for a third of the time without any prior: where
  types differ by little, the prior would else empty the latent space before the networks have found them. Then
  components are placed on clusters of the denoised expression; then everything is trained together, without the noise,
  so that probabilities are those of the cells as they are. From a random start all components tend to merge.
* In that last phase the label s that a cell started with counts as a measurement of its component, which is right with
  a share a of 0.9 (``anchor``) and arbitrary otherwise: p(s | k) = (1 - a) / K + a [s = k]. Components would else move
  to where latent codes are dense, which says less of cell types than the denoised expression does. Predictions use
  the counts alone.
* The library size is observed instead of learnt by z: from raw counts, z mostly encodes sequencing depth.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from scvi.module.base import LossOutput, auto_move_data
from torch import Tensor, nn
from torch.distributions import Normal
from torch.utils.checkpoint import checkpoint

from scdeepclust._keys import CELL_INDEX
from scdeepclust.model._base import LOG_VAR_MAX, LOG_VAR_MIN, ClusteringModule
from scdeepclust.nn import (
    Counts,
    Covariates,
    GaussianMixture,
    clamp_component_log_var,
    diag_gaussian_log_prob,
    full_precision,
    standard_normal_kl,
)

from ._divergence import PriorEstimator, mixture_divergence
from ._style import StyleOffsets

# Largest training batch (samples x cells x genes) that is decoded at once: 128 MiB, of which a step holds about five.
MAX_DECODED = 2**25

# Draws of the latent variables over which the assignment of a cell is averaged at prediction.
N_DRAWS = 10


class GMVAEModule(ClusteringModule):
    """The equations of GMVAE.

    Parameters
    ----------
    n_input
        Number of genes.
    n_clusters
        Number of components K; 0 if it is set later by :meth:`start_clusters`.
    n_w
        Dimensions of w; 0 for a plain mixture prior.
    prior_estimator
        ``"exact"``, or ``"analytic_kl"`` as published.
    shared_variance
        One variance for all components instead of one each.
    learn_weights
        Learn the weights of the components instead of keeping them uniform.
    n_samples
        Monte-Carlo samples of z and w in training.
    free_bits
        The divergence of the component posterior from the weights costs nothing below this many nats.
    anchor
        How far start labels are trusted in training, from 0 to below 1.
    **kwargs
        As in :class:`ClusteringModule`.
    """

    starts_at_profile = True

    def __init__(
        self,
        n_input: int,
        *,
        n_clusters: int,
        n_w: int = 0,
        prior_estimator: PriorEstimator = "exact",
        shared_variance: bool = True,
        learn_weights: bool = True,
        n_samples: int = 1,
        free_bits: float = 0.0,
        anchor: float = 0.9,
        **kwargs,
    ):
        super().__init__(n_input, **kwargs)
        self.n_w = n_w
        self.prior_estimator = prior_estimator
        self.shared_variance = shared_variance
        self.learn_weights = learn_weights
        self.n_samples = n_samples
        self.free_bits = free_bits
        self.anchor = anchor
        # start label of each cell (n,), -1 where there is none, while the phase that was started from them runs
        self.start_labels: Tensor | None = None
        self.z_head = nn.Linear(self.n_hidden, 2 * self.n_latent)
        if n_w:
            self.w_head = nn.Linear(self.n_hidden, 2 * n_w)
        self._set_components(n_clusters)
        # the same draws for every cell: the assignment of a cell does not depend on chance or on its minibatch
        draws = torch.randn(N_DRAWS // 2, self.n_latent + n_w, generator=torch.Generator().manual_seed(0))
        self.register_buffer("draws", torch.cat([draws, -draws]), persistent=False)

    def _set_components(self, n_clusters: int) -> None:
        self.n_clusters = n_clusters
        self.mixture = GaussianMixture(
            n_clusters, self.n_latent, shared_variance=self.shared_variance, learn_weights=self.learn_weights
        )
        self.style = StyleOffsets(self.n_w, n_clusters, self.n_latent) if self.n_w else None

    # -- q(z | y), q(w | y), p(k | z, w) ------------------------------------------------------------------------------

    def inference(
        self, counts: Counts, covariates: Covariates, size_factor: Tensor | None = None, n_samples: int | None = None
    ) -> dict:
        """Posterior of z and w, with draws (B, D), or (M, B, D) for M > 1 samples."""
        log_library = self.log_library(counts, size_factor)
        u = self.network_input(counts, log_library)  # (B, G)
        # noise ends where clusters begin: probabilities would be those of noisy cells, and too low
        u = u if self.mixture.is_initialised else self.with_noise(u)
        h = self.encode(u, covariates)  # (B, H)
        n_samples = n_samples or (self.n_samples if self.training else 1)
        outputs: dict[str, Any] = {"counts": counts, "log_library": log_library}
        for name in ("z", "w") if self.n_w else ("z",):
            mean, log_var = getattr(self, f"{name}_head")(h).chunk(2, dim=-1)
            log_var = log_var.clamp(LOG_VAR_MIN, LOG_VAR_MAX)
            shape = (n_samples, *mean.shape) if n_samples > 1 else mean.shape
            outputs |= {f"{name}_mean": mean, f"{name}_log_var": log_var}
            outputs[name] = _at(outputs, name, torch.randn(shape, device=mean.device))
        return outputs

    def components(self, w: Tensor | None) -> tuple[Tensor, Tensor]:
        """Means and log-variances of the components: (K, D), or (..., K, D) for w of shape (..., n_w)."""
        means, log_var = self.mixture.means, self.mixture.log_var
        if self.style is not None:
            mean_offset, log_var_offset = self.style(w)
            means, log_var = means + mean_offset, log_var + log_var_offset
        return means, clamp_component_log_var(log_var)

    def draw_latent(self, k: Tensor) -> Tensor:
        """Draws of z (n, D) from the prior, given the component of each, (n,)."""
        w = torch.randn(len(k), self.n_w, device=k.device) if self.n_w else None
        cells = torch.arange(len(k), device=k.device)
        mean, log_var = (p.expand(len(k), self.n_clusters, -1)[cells, k] for p in self.components(w))
        return mean + (log_var / 2).exp() * torch.randn_like(mean)

    def log_assignments(self, inference_outputs: dict, covariates: Covariates) -> Tensor:
        """Log of p(k | y), (B, K): p(k | z, w) averaged over the posterior of z and w."""
        log_r = []
        for draw in self.draws:
            z_noise, w_noise = draw.split([self.n_latent, self.n_w])
            z = _at(inference_outputs, "z", z_noise)
            w = _at(inference_outputs, "w", w_noise) if self.n_w else None
            log_joint = diag_gaussian_log_prob(z, *self.components(w)) + self.mixture.log_weights
            log_r.append(torch.log_softmax(log_joint, dim=-1))
        return torch.logsumexp(torch.stack(log_r), dim=0) - math.log(len(log_r))

    # -- evidence lower bound -----------------------------------------------------------------------------------------

    def generative(
        self, z: Tensor, log_library: Tensor, covariates: Covariates, transform_batch: int | None = None
    ) -> dict:
        """Decode; samples too many to be decoded at once are left to :meth:`loss`."""
        if self.training and z.dim() == 3 and len(z) * z.shape[1] * self.n_input > MAX_DECODED:
            return {"heads": None, "px": None}
        return super().generative(z, log_library, covariates, transform_batch)

    def log_likelihood_by_sample(self, q: dict, covariates: Covariates) -> Tensor:
        """Log-likelihood of each cell at each sample, (M, B), one sample after the other.

        The backward pass decodes each sample once more instead of keeping what it needs: memory of one sample, for a
        third more time.
        """

        def decoded(z: Tensor) -> Tensor:
            return self.log_likelihood(q["counts"], self.decoder(z, covariates), q["log_library"])

        return torch.stack([checkpoint(decoded, z, use_reentrant=False) for z in q["z"]])

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict,
        generative_outputs: dict,
        phase: str = "mixture",
        kl_weight: float = 1.0,
    ) -> LossOutput:
        """Negative evidence lower bound per cell; before phase ``"mixture"`` with the prior N(0, I) in its place."""
        counts, log_library, heads = (
            inference_outputs["counts"],
            inference_outputs["log_library"],
            generative_outputs["heads"],
        )
        if heads is None:
            log_p = self.log_likelihood_by_sample(inference_outputs, self.covariates(tensors))
        else:
            log_p = self.log_likelihood(counts, heads, log_library)  # (B,) or (M, B)
        reconstruction = -log_p.view(-1, counts.n_cells).mean(dim=0)
        if phase != "mixture":
            kl = {"kl_latent": standard_normal_kl(inference_outputs["z_mean"], inference_outputs["z_log_var"])}
            entropies: dict[str, Tensor] = {}
        else:
            kl, entropies = self.prior_terms(inference_outputs, self.start_evidence(tensors))
        loss = reconstruction + kl_weight * sum(kl.values())
        pieces = {name: value.mean() for name, value in kl.items()} if len(kl) > 1 else {}
        return LossOutput(
            loss=loss.mean(), reconstruction_loss=reconstruction, kl_local=kl, extra_metrics=pieces | entropies
        )

    def start_evidence(self, tensors: dict[str, Tensor]) -> Tensor | float:
        """Log p(s | k) of the label s that each cell started with, (B, K); 0 where there is none."""
        if self.start_labels is None or not self.anchor:
            return 0.0
        cells = tensors[CELL_INDEX]
        self.start_labels = self.start_labels.to(cells.device)
        labels = self.start_labels[cells]
        is_start = labels.unsqueeze(1) == torch.arange(self.n_clusters, device=cells.device)  # (B, K)
        log_p = ((1 - self.anchor) / self.n_clusters + self.anchor * is_start).log()
        return log_p * (labels >= 0).unsqueeze(1)

    def prior_terms(
        self, q: dict[str, Tensor], evidence: Tensor | float = 0.0
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Divergences from the prior, each (B,), and two entropies of the component posterior, scalars.

        ``kl_component`` is KL(r || pi), ``kl_latent`` the mean over r of log q(z) - log p(z | k, w), ``kl_w`` that of
        w. Evidence (B, K) on the component of a cell enters r, and ``kl_component`` loses its mean over r. The
        entropies are those of the mean cell and of the mean posterior of the minibatch: good clusters have a small
        first and a large second.
        """
        means, log_var = self.components(q.get("w"))
        prior = mixture_divergence(
            q["z"],
            q["z_mean"],
            q["z_log_var"],
            means=means,
            log_var=log_var,
            log_weights=self.mixture.log_weights + evidence,
            estimator=self.prior_estimator,
            free_bits=self.free_bits,
        )
        terms = {"kl_latent": prior.kl_latent, "kl_component": prior.kl_component}
        if self.n_w:
            terms["kl_w"] = standard_normal_kl(q["w_mean"], q["w_log_var"])
        r = prior.log_r.detach().exp()
        cell_entropy = torch.special.entr(r).sum(dim=-1).mean()
        total_entropy = torch.special.entr(r.flatten(end_dim=-2).mean(dim=0)).sum()
        return terms, {"cell_entropy": cell_entropy, "total_entropy": total_entropy}

    @torch.inference_mode()
    @auto_move_data
    def marginal_ll(self, tensors: dict[str, Tensor], n_mc_samples: int, return_mean: bool = False) -> Tensor | float:
        """Importance-sampled log p(y) of each cell, (B,), or its mean."""
        inputs = self._get_inference_input(tensors)
        ratios = []
        for start in range(0, n_mc_samples, N_DRAWS):
            q = self.inference(**inputs, n_samples=min(N_DRAWS, n_mc_samples - start))
            heads = self.generative(**self._get_generative_input(tensors, q))["heads"]
            log_p = self.log_likelihood(q["counts"], heads, q["log_library"])  # (M, B)
            log_joint = diag_gaussian_log_prob(q["z"], *self.components(q.get("w"))) + self.mixture.log_weights
            log_p = log_p + torch.logsumexp(log_joint, dim=-1) - _log_posterior(q, "z")
            if self.n_w:
                log_p = log_p + Normal(0.0, 1.0).log_prob(q["w"]).sum(dim=-1) - _log_posterior(q, "w")
            ratios.append(log_p.view(-1, q["counts"].n_cells))
        values = torch.logsumexp(torch.cat(ratios), dim=0) - math.log(n_mc_samples)
        return values.mean().item() if return_mean else values.cpu()

    # -- clusters -----------------------------------------------------------------------------------------------------

    def start_clusters(self, z_mean: Tensor, z_var: Tensor, labels: Tensor) -> None:
        """Place one component on each label: posterior means and variances are (n, D), labels (n,)."""
        self._set_components(int(labels.max()) + 1)
        self.to(z_mean.device)
        self.mixture.initialise(z_mean, z_var, labels)

    def reorder_clusters(self, order: Tensor) -> None:
        """Renumber the clusters: new cluster j is old cluster ``order[j]``; those not in ``order`` are dropped."""
        self.n_clusters = len(order)
        self.mixture.select(order)
        if self.style is not None:
            self.style.select(order)


@full_precision
def _at(q: dict[str, Any], name: str, noise: Tensor) -> Tensor:
    """Draw of z or w that belongs to a draw of standard normal noise."""
    return q[f"{name}_mean"] + (q[f"{name}_log_var"] / 2).exp() * noise


def _log_posterior(q: dict[str, Tensor], name: str) -> Tensor:
    """Log-density of the draws of z or w under their posterior, (B,) or (M, B)."""
    return Normal(q[f"{name}_mean"], (q[f"{name}_log_var"] / 2).exp()).log_prob(q[name]).sum(dim=-1)
