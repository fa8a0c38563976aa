"""IDC: interpretable deep clustering. Every cell says which genes its cluster was read from.

Svirsky and Lindenbaum, "Interpretable deep clustering for tabular data", ICML (2024). A gating network looks at a cell
and opens a gate for a few genes; an autoencoder has to give back all counts from the open genes alone; a clustering
head reads the cluster from the latent code of the open genes; and global gates say which genes each cluster needs.

What differs from the paper, and why:

* Counts with a negative binomial likelihood, batches in the decoder. A closed gate shows the *average* of the gene
  (unknown) instead of zero (not expressed).
* Noise is added *behind* the gates, so that it covers open and closed genes alike. A gate then helps only through the
  expression behind it. Without the noise, which gates are open is itself a message to the encoder, and any gene
  serves as well as a marker. It stands in for the paper's masked and noisy reconstructions, too.
* The wanted number of open genes is the parameter (``target_sparsity``); the training keeps to it exactly and finds the
  price of a gate that this takes. The published price leaves anything from none to all genes open, depending on data.
* One standard deviation for the noise of the gates and for the count of open ones (the paper has 0.25 and 1), and means
  without bounds, so that a gate can close for good.
* The head starts from clusters of the denoised expression and is kept close to them while it reduces the coding rate:
  alone, that rate prefers to split large cell types. Softmax with temperature 1; the latent codes are computed once.
  These clusters are looked for in what is denoised from the open genes and, beside it, in what is denoised from all
  genes: the first is what the head can tell apart, the second does not depend on which genes happen to be open.
* Global gates are judged by a classifier that looks at every cell through the gates of *every* cluster. The paper shows
  it the gates of the right one, so that it reads the answer from the gates. They have the same budget as the gates of a
  cell (as published, their penalty is too weak to close any).
* LayerNorm instead of BatchNorm, whose averages would mix gated and ungated cells.
"""

from __future__ import annotations

from typing import Any

import torch
from scvi.module.base import LossOutput
from torch import Tensor, nn

from scdeepclust.model._base import AutoencoderModule
from scdeepclust.nn import Counts, Covariates

from ._coding_rate import coding_rate, compressed_rate
from ._gates import GateBudget, GatingNetwork, draw_gates

# Share of open gates that their learning starts from.
ALMOST_ALL = 0.9

# Open genes by default: this share, but at least so many.
SHARE_OPEN, LEAST_OPEN = 0.05, 50

# Standard deviation of the noise of the gates.
SIGMA = 0.5

# Cells from which the clustering head learns, and its steps: the head is small, so that more would not change it.
MAX_HEAD_CELLS, HEAD_STEPS = 20_000, 300


class IDCModule(AutoencoderModule):
    """The equations of IDC.

    Parameters
    ----------
    n_input
        Number of genes.
    n_clusters
        Number of clusters; 0 if it is set later by :meth:`start_clusters`.
    target_sparsity
        Wanted number of open genes, of a cell and of a cluster, or their share of all genes if below 1. None: a
        twentieth of the genes, but at least 50.
    diversity_weight
        Weight of the coding rate of the gates, per cell and gene.
    rate_weight
        Weight of the coding rate of the clusters in the clustering head, relative to its cross-entropy with the start.
    **kwargs
        As in :class:`ClusteringModule`.
    """

    def __init__(
        self,
        n_input: int,
        *,
        n_clusters: int,
        target_sparsity: float | None = None,
        diversity_weight: float = 1e-3,
        rate_weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(n_input, **kwargs)
        if target_sparsity is None:
            target_sparsity = max(LEAST_OPEN, SHARE_OPEN * n_input)
        self.n_open = min(float(n_input), target_sparsity if target_sparsity >= 1 else target_sparsity * n_input)
        self.diversity_weight = diversity_weight
        self.rate_weight = rate_weight
        self.gating = GatingNetwork(n_input, self.n_hidden)
        self.budget = GateBudget(SIGMA)
        self.global_budget = GateBudget(SIGMA)
        self.uses_gates = True  # not in the first phase
        self.is_frozen = False  # in the last phase all but the global gates is as at prediction
        self.n_wanted = self.n_open  # open genes wanted now; falls from nearly all to `n_open` while gates are learnt
        self.register_buffer("z_center", torch.zeros(self.n_latent))
        self.register_buffer("z_scale", torch.zeros(()))  # 0: clusters are not set yet
        self._set_clusters(n_clusters)

    def _set_clusters(self, n_clusters: int) -> None:
        self.n_clusters = n_clusters
        self.cluster_head = nn.Sequential(
            nn.Linear(self.n_latent, self.n_hidden), nn.GELU(), nn.Linear(self.n_hidden, n_clusters)
        )
        self.global_gates = nn.Parameter(torch.full((n_clusters, self.n_input), 0.5))  # means, (K, G)
        self.scorer_weight = nn.Parameter(torch.zeros(n_clusters, self.n_input))
        self.scorer_bias = nn.Parameter(torch.zeros(n_clusters))

    # -- gates, latent code, clusters ---------------------------------------------------------------------------------

    def gated_input(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """Standardised expression behind the gates (B, G), and the means of the gates (B, G). 0 is the average cell."""
        if not self.uses_gates:
            return u, None
        means = self.gating(u)
        # the offset follows while the gating network learns, and is fixed ever after
        means = self.budget(means, self.n_wanted if self.training and means.requires_grad else None)
        return u * draw_gates(means, SIGMA if self.training else None), means

    def inference(
        self, counts: Counts, covariates: Covariates, size_factor: Tensor | None = None, n_samples: int = 1
    ) -> dict:
        """Latent code of each cell, from the genes whose gates are open."""
        log_library = self.log_library(counts, size_factor)
        u = self.network_input(counts, log_library)  # (B, G)
        codes = self.codes(u, covariates)
        z = codes["z_mean"]
        samples = z.expand(n_samples, -1, -1) if n_samples > 1 else z
        return codes | {"z": samples, "u": u, "counts": counts, "log_library": log_library}

    def codes(self, u: Tensor, covariates: Covariates) -> dict[str, Any]:
        """Gate means (B, G), gated input (B, G) and latent code (B, D) of standardised expression (B, G)."""
        pauses_training = self.training and self.is_frozen
        if pauses_training:
            self.eval()
        x, gate_means = self.gated_input(u)
        z = self.z_head(self.encode(self.with_noise(x), covariates))
        if pauses_training:
            self.train()
        return {"gate_means": gate_means, "x": x, "z_mean": z}

    def log_assignments(self, inference_outputs: dict, covariates: Covariates) -> Tensor:
        """Log-probabilities of the clusters, (B, K)."""
        return torch.log_softmax(self.cluster_head(self.standardised(inference_outputs["z_mean"])), dim=-1)

    def standardised(self, z: Tensor) -> Tensor:
        """Latent codes as the clustering head sees them: centred, one unit of variance a dimension on average."""
        return (z - self.z_center) / self.z_scale

    def global_scores(self, x: Tensor) -> Tensor:
        """Log-probabilities (B, K) of the clusters, each of which sees gated input (B, G) through its own gates."""
        means = self.global_budget(self.global_gates, self.n_wanted if self.training else None)  # (K, G)
        gates = draw_gates(means, SIGMA if self.training else None)
        return torch.log_softmax(x @ (self.scorer_weight * gates).T + self.scorer_bias, dim=-1)

    # -- losses -------------------------------------------------------------------------------------------------------

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict,
        generative_outputs: dict,
        phase: str = "cluster",
        kl_weight: float = 1.0,
    ) -> LossOutput:
        """Negative log-likelihood per cell, and the terms of the phase.

        ``kl_weight``, which rises from 0 to 1, moves the wanted number of open genes from all to ``n_open``.
        """
        counts, log_library = inference_outputs["counts"], inference_outputs["log_library"]
        reconstruction = -self.log_likelihood(counts, generative_outputs["heads"], log_library)  # (B,)
        self.n_wanted = (ALMOST_ALL * self.n_input) ** (1 - kl_weight) * self.n_open**kl_weight
        loss, extra = reconstruction.mean(), {}
        if phase == "gates":
            gates = draw_gates(inference_outputs["gate_means"])
            rate = coding_rate(gates, distortion=1.0) / len(gates)  # high if cells open different genes
            loss = loss - self.diversity_weight * self.n_input * rate
            extra = {"gate_rate": rate, "n_open": (gates > 0).sum(dim=-1).float().mean()}
        elif phase == "cluster":
            scores = self.global_scores(inference_outputs["x"])
            labels = self.log_assignments(inference_outputs, self.covariates(tensors)).argmax(dim=-1)
            loss = nn.functional.nll_loss(scores, labels)
            extra = {"global_accuracy": (scores.argmax(dim=-1) == labels).float().mean()}
        return LossOutput(loss=loss, reconstruction_loss=reconstruction, extra_metrics=extra)

    # -- clusters -----------------------------------------------------------------------------------------------------

    def start_clusters(self, z: Tensor, labels: Tensor) -> None:
        """Fit the clustering head to labels (n,) of latent codes (n, D), then lower the coding rate close to them."""
        n_clusters = int(labels.max()) + 1
        self.forget_clusters(n_clusters)
        self.z_center.copy_(z.mean(dim=0))
        self.z_scale.copy_((z - self.z_center).square().mean().sqrt())
        kept = torch.randperm(len(z))[:MAX_HEAD_CELLS].to(z.device)
        h, labels = self.standardised(z)[kept], labels[kept]
        unit = h / self.n_latent**0.5  # mean squared length 1
        total = coding_rate(unit)
        optimizer = torch.optim.Adam(self.cluster_head.parameters(), lr=1e-2)
        for step in range(HEAD_STEPS):
            log_q = torch.log_softmax(self.cluster_head(h), dim=-1)
            loss = nn.functional.nll_loss(log_q, labels)
            if self.rate_weight and step >= HEAD_STEPS // 2:
                loss = loss + self.rate_weight * compressed_rate(unit, log_q.exp()) / total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def forget_clusters(self, n_clusters: int) -> None:
        """Put the clusters back to what they were before they were started."""
        device = self.z_scale.device
        self._set_clusters(n_clusters)
        self.global_budget.offset.zero_()
        self.z_scale.zero_()
        self.to(device)

    @torch.no_grad()
    def reorder_clusters(self, order: Tensor) -> None:
        """Renumber the clusters: new cluster j is old cluster ``order[j]``."""
        output: Any = self.cluster_head[-1]
        for parameter in (output.weight, output.bias, self.global_gates, self.scorer_weight, self.scorer_bias):
            parameter.copy_(parameter[order].clone())
