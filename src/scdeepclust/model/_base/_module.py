"""What the five modules share: from raw counts to network input, decoding, and the count likelihood."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from scvi.distributions import Normal as ScviNormal
from scvi.module.base import BaseModuleClass
from torch import Tensor, nn

from scdeepclust.nn import (
    BetaBinomialCounts,
    CountDecoder,
    CountHeads,
    Counts,
    CovariateMLP,
    Covariates,
    Dispersion,
    GeneLikelihood,
    beta_binomial_log_likelihood,
    counts_from_csr,
    counts_from_dense,
    gaussian_log_likelihood,
    nb_log_likelihood,
    normal_like,
    poisson_log_likelihood,
    zinb_log_likelihood,
)

# A gene seen in one of n cells has a standardised value of sqrt(n) there; without a bound it would own the encoder.
INPUT_BOUND = 10.0

# Bounds of the log-variance of a posterior: exp() can neither overflow nor make a density infinite.
LOG_VAR_MIN, LOG_VAR_MAX = -8.0, 4.0

# Batches that expected expression is averaged over, at most.
MAX_BATCHES = 8

# Counts are scaled to this total before log1p, the convention of the field.
TARGET_TOTAL = 1e4

# Share of all counts that a decoder starts with for a gene that hardly occurs.
LEAST_SHARE = 1e-7


class ClusteringModule(BaseModuleClass):
    """Counts in, everything else internal.

    Size factors, log1p and standardisation happen here, with statistics of the training data kept as buffers, so that
    new cells get exactly the treatment of the old ones.

    Parameters
    ----------
    n_input
        Number of genes.
    n_batch
        Number of batches.
    n_cats_per_cov
        Number of categories of each further categorical covariate.
    n_continuous_cov
        Number of continuous covariates.
    n_latent
        Size of the latent space.
    n_hidden
        Width of the hidden layers.
    n_layers
        Number of hidden layers of the encoder; the decoder has one.
    dropout_rate
        Dropout in the networks.
    input_noise
        Standard deviation of the noise added to the standardised input in training.
    encode_covariates
        Whether the encoder sees batch and covariates too, as the decoder does.
    gene_likelihood
        Likelihood of the counts.
    dispersion
        Sharing of the dispersion.
    """

    # Whether the decoder starts at the average profile, so that no steps are spent on what all cells share while the
    # prior is about to empty the latent space. Without a prior nothing is gained: SCDeepCluster loses .03 with K open.
    starts_at_profile = False

    def __init__(
        self,
        n_input: int,
        *,
        n_batch: int = 1,
        n_cats_per_cov: Sequence[int] = (),
        n_continuous_cov: int = 0,
        n_latent: int = 16,
        n_hidden: int = 128,
        n_layers: int = 2,
        dropout_rate: float = 0.2,
        input_noise: float = 2.0,
        encode_covariates: bool = True,
        gene_likelihood: GeneLikelihood = "nb",
        dispersion: Dispersion = "gene",
    ):
        super().__init__()
        self.n_input = n_input
        self.n_batch = n_batch
        self.n_categorical_cov = len(n_cats_per_cov)
        self.n_continuous_cov = n_continuous_cov
        self.n_latent = n_latent
        self.n_hidden = n_hidden
        self.input_noise = input_noise
        self.encode_covariates = encode_covariates
        self.gene_likelihood = gene_likelihood
        self.decoder = CountDecoder(
            n_latent,
            n_input,
            gene_likelihood=gene_likelihood,
            dispersion=dispersion,
            n_batch=n_batch,
            n_cats_per_cov=n_cats_per_cov,
            n_continuous=n_continuous_cov,
            n_hidden=n_hidden,
            dropout_rate=dropout_rate,
        )
        self.encoder: nn.Module = CovariateMLP(
            n_input,
            n_batch=n_batch if encode_covariates else 0,
            n_cats_per_cov=n_cats_per_cov if encode_covariates else (),
            n_continuous=n_continuous_cov if encode_covariates else 0,
            n_hidden=n_hidden,
            n_layers=n_layers,
            dropout_rate=dropout_rate,
        )
        self.register_buffer("gene_mean", torch.zeros(n_input))
        self.register_buffer("gene_sd", torch.ones(n_input))
        self.register_buffer("median_total", torch.zeros(()))  # 0: statistics are not known yet
        self.register_buffer("batch_frequencies", torch.zeros(n_batch))
        self.register_buffer("median_size_factor", torch.ones(()))
        self.register_buffer("n_trials", torch.ones(()))  # of the "beta_binomial" likelihood: the largest value

    # -- data -> network input ----------------------------------------------------------------------------------------

    @property
    def knows_data(self) -> bool:
        """Whether the statistics of the training data have been set."""
        return bool(self.median_total > 0)

    def set_data_statistics(
        self,
        gene_mean: np.ndarray,
        gene_sd: np.ndarray,
        median_total: float,
        batch_frequencies: np.ndarray,
        n_trials: float = 1.0,
        median_size_factor: float = 1.0,
    ) -> None:
        """Keep the statistics of the training data: mean and sd of the input of each gene, median total, batches."""
        self.median_size_factor.fill_(float(median_size_factor))
        self.gene_mean.copy_(torch.as_tensor(gene_mean))
        self.gene_sd.copy_(torch.as_tensor(gene_sd))
        self.median_total.fill_(float(median_total))
        self.batch_frequencies.copy_(torch.as_tensor(batch_frequencies))
        self.n_trials.fill_(float(n_trials))
        if self.starts_at_profile:
            self._start_decoder()

    @torch.no_grad()
    def _start_decoder(self) -> None:
        """Let the scores of the decoder be those of the average log-normalised profile."""
        if self.gene_likelihood == "normal":
            scores = self.gene_mean
        elif self.gene_likelihood == "beta_binomial":
            scores = torch.logit(self.gene_mean, eps=LEAST_SHARE)
        else:
            scores = torch.log(torch.expm1(self.gene_mean) / TARGET_TOTAL + LEAST_SHARE)
        self.decoder.scores.bias.copy_(scores)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        # models saved before size factors were put on a scale took them as they are
        state_dict.setdefault(f"{prefix}median_size_factor", torch.ones(()))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _get_inference_input(self, tensors: dict[str, Tensor], **kwargs) -> dict:
        return {
            "counts": _counts(tensors[REGISTRY_KEYS.X_KEY]),
            "covariates": self.covariates(tensors),
            "size_factor": tensors.get(REGISTRY_KEYS.SIZE_FACTOR_KEY),
        }

    def covariates(self, tensors: dict[str, Tensor]) -> Covariates:
        """Covariates of a minibatch."""
        categorical = tensors.get(REGISTRY_KEYS.CAT_COVS_KEY)
        return Covariates(
            batch=tensors[REGISTRY_KEYS.BATCH_KEY].long(),
            categorical=() if categorical is None else tuple(categorical.long().split(1, dim=1)),
            continuous=tensors.get(REGISTRY_KEYS.CONT_COVS_KEY),
        )

    def log_assignments_of_all(self, inference_outputs: dict, covariates: Covariates) -> list[Tensor]:
        """Log of the assignment probabilities (B, K) of each clustering that the model has."""
        return [self.log_assignments(inference_outputs, covariates)]

    def log_library(self, counts: Counts, size_factor: Tensor | None) -> Tensor:
        """Log of the expected total count of each cell, (B,): observed, or from its size factor.

        The cell with the median size factor gets the median total: total counts and factors about 1 say the same.
        """
        if size_factor is None:
            return counts.totals().clamp_min(1).log()  # half the counts of a shallow cell may be none
        return (size_factor.squeeze(-1) * (self.median_total / self.median_size_factor)).log()

    def network_input(self, counts: Counts, log_library: Tensor) -> Tensor:
        """Standardised log1p of size-normalised counts, (B, G), bounded to +-10; proportions for "beta_binomial"."""
        if self.gene_likelihood == "beta_binomial":
            u = (counts.to_dense() / self.n_trials - self.gene_mean) / self.gene_sd
            return u.clamp_(-INPUT_BOUND, INPUT_BOUND)
        scale = TARGET_TOTAL * (-log_library).exp()  # (B,)
        # only non-zero counts need log1p; a zero count has the same value in every cell
        u = (-self.gene_mean / self.gene_sd).repeat(counts.n_cells, 1)
        logged = torch.log1p(counts.value * scale.index_select(0, counts.row))
        increase = logged / self.gene_sd.index_select(0, counts.col)
        u.view(-1).scatter_add_(0, counts.positions(), increase)
        return u.clamp_(-INPUT_BOUND, INPUT_BOUND)

    def encode(self, u: Tensor, covariates: Covariates) -> Tensor:
        """Features (B, n_hidden) of standardised input (B, G)."""
        return self.encoder(u, covariates if self.encode_covariates else None)

    def with_noise(self, u: Tensor) -> Tensor:
        """The input as the encoder sees it: with noise in training, as it is otherwise."""
        return torch.add(u, normal_like(u), alpha=self.input_noise) if self.training else u

    def forward(
        self,
        tensors: dict[str, Tensor],
        get_inference_input_kwargs: dict | None = None,
        get_generative_input_kwargs: dict | None = None,
        inference_kwargs: dict | None = None,
        generative_kwargs: dict | None = None,
        loss_kwargs: dict | None = None,
        compute_loss: bool = True,
    ):
        """Inference, generation and loss of one minibatch, as in scvi-tools.

        The minibatch is moved to the device here: the parent class lets Lightning walk through every argument, which
        takes as long as a small layer.
        """
        tensors = {name: value.to(self.gene_mean.device) for name, value in tensors.items()}
        inference_input = self._get_inference_input(tensors, **(get_inference_input_kwargs or {}))
        inferred = self.inference(**inference_input, **(inference_kwargs or {}))
        generative_input = self._get_generative_input(tensors, inferred, **(get_generative_input_kwargs or {}))
        generated = self.generative(**generative_input, **(generative_kwargs or {}))
        if not compute_loss:
            return inferred, generated
        return inferred, generated, self.loss(tensors, inferred, generated, **(loss_kwargs or {}))

    # -- latent -> counts ---------------------------------------------------------------------------------------------

    def _get_generative_input(self, tensors: dict[str, Tensor], inference_outputs: dict, **kwargs) -> dict:
        return {
            "z": inference_outputs["z"],
            "log_library": inference_outputs["log_library"],
            "covariates": self.covariates(tensors),
        }

    def generative(
        self, z: Tensor, log_library: Tensor, covariates: Covariates, transform_batch: int | None = None
    ) -> dict:
        """Decode: heads of the likelihood, and (outside of training, where it would cost time) the distribution."""
        if transform_batch is not None:
            covariates = covariates._replace(batch=torch.full_like(covariates.batch, transform_batch))
        heads = self.decoder(z, covariates)
        return {"heads": heads, "px": None if self.training else self.distribution(heads, log_library)}

    def typical_batches(self) -> list[tuple[int, float]]:
        """Code and weight of the batches that expression is averaged over: all, or the largest of more than 8.

        A cell is decoded once for each, and fifty batches do not give another average than the eight largest of them.
        """
        weights = self.batch_frequencies.tolist()
        used = [batch for batch, weight in enumerate(weights) if weight > 0]
        if len(used) > MAX_BATCHES:
            used = sorted(sorted(used, key=lambda batch: -weights[batch])[:MAX_BATCHES])
            total = sum(weights[batch] for batch in used)
            weights = [weight / total for weight in weights]
        return [(batch, weights[batch]) for batch in used]

    def denoised_expression(
        self, z: Tensor, covariates: Covariates, batches: Sequence[tuple[int, float]] | None = None
    ) -> Tensor:
        """Square root of the expected share of each gene, (B, G), averaged over the batches a cell could be of.

        Euclidean distances here are Hellinger distances between the profiles of cells. ``batches`` are
        :meth:`typical_batches`, for a caller with many minibatches: to ask for them waits for a GPU.
        """
        total = torch.zeros(len(z), self.n_input, device=z.device)
        for batch, weight in self.typical_batches() if batches is None else batches:
            codes = torch.full_like(covariates.batch, batch)
            total += weight * self._share(self.decoder(z, covariates._replace(batch=codes)).scores)
        return total.sqrt()

    def _share(self, scores: Tensor) -> Tensor:
        if self.gene_likelihood == "normal":  # scores are log-normalised expression
            return nn.functional.normalize(torch.expm1(scores.clamp_min(0)), p=1, dim=-1)
        if self.gene_likelihood == "beta_binomial":  # not a share of a total, but a probability
            return torch.sigmoid(scores)
        return torch.softmax(scores, dim=-1)

    def log_likelihood(self, counts: Counts, heads: CountHeads, log_library: Tensor) -> Tensor:
        """Log-likelihood of each cell, summed over genes, (B,)."""
        if self.gene_likelihood == "nb":
            return nb_log_likelihood(counts, heads.scores, log_library, heads.log_theta)
        if self.gene_likelihood == "zinb":
            return zinb_log_likelihood(counts, heads.scores, log_library, heads.log_theta, heads.dropout_logits)
        if self.gene_likelihood == "poisson":
            return poisson_log_likelihood(counts, heads.scores, log_library)
        if self.gene_likelihood == "beta_binomial":
            within = counts._replace(value=counts.value.clamp_max(self.n_trials))  # new cells may have larger values
            return beta_binomial_log_likelihood(within, heads.scores, self.n_trials, heads.log_theta)
        return gaussian_log_likelihood(self.log_normalised(counts, log_library), heads.scores, heads.log_theta)

    def log_normalised(self, counts: Counts, log_library: Tensor) -> Tensor:
        """log1p of counts scaled to 10,000 a cell, (B, G): the target of the ``"normal"`` likelihood."""
        scale = TARGET_TOTAL * (-log_library).exp()
        y = torch.zeros(counts.n_cells, counts.n_genes, device=counts.value.device)
        y[counts.row, counts.col] = torch.log1p(counts.value * scale[counts.row])
        return y

    def distribution(self, heads: CountHeads, log_library: Tensor):
        """The likelihood as a distribution of scvi-tools, for sampling and for normalised expression."""
        if self.gene_likelihood == "beta_binomial":
            return BetaBinomialCounts(heads, self.n_trials)
        share = torch.softmax(heads.scores, dim=-1)
        mu = log_library.exp().unsqueeze(-1) * share
        if heads.log_theta is None:
            return Poisson(rate=mu, scale=share)
        if self.gene_likelihood == "normal":
            sd = (heads.log_theta / 2).exp().expand_as(heads.scores)
            return ScviNormal(heads.scores, sd, normal_mu=heads.scores)
        theta = heads.log_theta.exp()
        if self.gene_likelihood == "nb":
            return NegativeBinomial(mu=mu, theta=theta, scale=share)
        return ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=heads.dropout_logits, scale=share)

    @torch.inference_mode()
    def sample(self, tensors: dict[str, Tensor], n_samples: int = 1, generative_kwargs: dict | None = None) -> Tensor:
        """Counts drawn from the posterior predictive, (B, G) or (B, G, n_samples)."""
        _, outputs = self.forward(
            tensors, inference_kwargs={"n_samples": n_samples}, generative_kwargs=generative_kwargs, compute_loss=False
        )
        draws = outputs["px"].sample()
        return draws.permute(1, 2, 0).cpu() if n_samples > 1 else draws.cpu()


class AutoencoderModule(ClusteringModule):
    """A module whose latent code is a point, not a distribution.

    Parameters
    ----------
    n_input
        Number of genes.
    **kwargs
        As in :class:`ClusteringModule`.
    """

    def __init__(self, n_input: int, **kwargs):
        super().__init__(n_input, **kwargs)
        self.z_head = nn.Linear(self.n_hidden, self.n_latent)

    def inference(
        self, counts: Counts, covariates: Covariates, size_factor: Tensor | None = None, n_samples: int = 1
    ) -> dict:
        """Latent code of each cell: of noisy input in training, of the input itself otherwise."""
        log_library = self.log_library(counts, size_factor)
        u = self.network_input(counts, log_library)  # (B, G)
        z = self.z_head(self.encode(self.with_noise(u), covariates))  # (B, D)
        samples = z.expand(n_samples, -1, -1) if n_samples > 1 else z
        return {"z": samples, "z_mean": z, "u": u, "counts": counts, "log_library": log_library}

    def encode_without_noise(self, u: Tensor, covariates: Covariates) -> Tensor:
        """Latent codes (B, D) as at prediction: cells are assigned without noise and dropout also while training."""
        training = self.encoder.training
        self.encoder.eval()
        z = self.z_head(self.encode(u, covariates))
        self.encoder.train(training)
        return z


def _counts(x: Counts | Tensor) -> Counts:
    """Counts of a minibatch, also of a loader that is not ours."""
    if isinstance(x, Counts):
        return x
    return counts_from_csr(x) if x.layout == torch.sparse_csr else counts_from_dense(x)
