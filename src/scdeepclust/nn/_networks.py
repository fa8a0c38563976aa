"""Encoder and decoder bodies.

Both are thin wrappers of :class:`scvi.nn.FCLayers`. Covariates enter through the first layer only, categorical ones
after continuous ones and **batch last**, because query mapping appends the columns of new batches at the end of a
weight matrix: any other order would shift the columns of later covariates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from scvi.nn import FCLayers
from torch import Tensor, nn

from ._linear import use_fast_linear

GeneLikelihood = Literal["nb", "zinb", "poisson", "normal", "beta_binomial"]
Dispersion = Literal["gene", "gene-batch", "gene-cell"]

# exp(+-7) spans dispersions of 1e-3 to 1e3: beyond that the negative binomial does not change visibly any more,
# but lgamma differences lose digits.
LOG_THETA_BOUND = 7.0


class Covariates(NamedTuple):
    """Covariates of a minibatch, in the order in which they enter a network."""

    batch: Tensor  # (B, 1) codes
    categorical: tuple[Tensor, ...] = ()  # each (B, 1)
    continuous: Tensor | None = None  # (B, n_continuous)


class CovariateMLP(nn.Module):
    """Layers of Linear, LayerNorm, GELU and Dropout, with covariates joined to the input.

    Parameters
    ----------
    n_input
        Number of input features.
    n_batch
        Number of batches; 0 or 1 leaves the batch out.
    n_cats_per_cov
        Number of categories of each further categorical covariate.
    n_continuous
        Number of continuous covariates.
    n_hidden
        Width of each layer, and of the output.
    n_layers
        Number of layers.
    dropout_rate
        Dropout after each activation.

    Examples
    --------
    >>> import torch
    >>> from scdeepclust.nn import CovariateMLP, Covariates
    >>> body = CovariateMLP(20, n_batch=3, n_hidden=8)
    >>> body(torch.randn(4, 20), Covariates(torch.tensor([[0], [2], [1], [0]]))).shape
    torch.Size([4, 8])
    """

    def __init__(
        self,
        n_input: int,
        *,
        n_batch: int = 0,
        n_cats_per_cov: Sequence[int] = (),
        n_continuous: int = 0,
        n_hidden: int = 128,
        n_layers: int = 2,
        dropout_rate: float = 0.1,
    ):
        super().__init__()
        self.layers = FCLayers(
            n_input,
            n_hidden,
            n_cat_list=[*n_cats_per_cov, n_batch],
            n_cont=n_continuous,
            n_layers=n_layers,
            n_hidden=n_hidden,
            dropout_rate=dropout_rate,
            use_batch_norm=False,
            use_layer_norm=True,
            inject_covariates=False,
            activation_fn=nn.GELU,
        )
        use_fast_linear(self)

    def forward(self, x: Tensor, covariates: Covariates | None = None) -> Tensor:
        """Features of each cell, (..., n_hidden)."""
        if covariates is None or not self.layers.n_cov:  # as FCLayers, which would copy the input to join nothing to it
            for layer in (layer for block in self.layers.fc_layers for layer in block if layer is not None):
                x = layer(x)
            return x
        return self.layers(x, *covariates.categorical, covariates.batch, cont=covariates.continuous)


class CountHeads(NamedTuple):
    """What a decoder says about the counts of a minibatch."""

    # (..., G): softmax gives the expected share of each gene; the mean itself for "normal", logits for "beta_binomial"
    scores: Tensor
    log_theta: Tensor | None = None  # log inverse dispersion, broadcastable to scores; log variance for "normal"
    dropout_logits: Tensor | None = None  # (..., G)


class CountDecoder(nn.Module):
    """From latent codes to the parameters of a count likelihood.

    Parameters
    ----------
    n_latent
        Size of the latent space.
    n_output
        Number of genes.
    gene_likelihood
        ``"nb"``, ``"zinb"``, ``"poisson"``, ``"normal"`` on log-normalised data, or ``"beta_binomial"`` for
        values between 0 and the largest of the training data.
    dispersion
        One dispersion per ``"gene"``, per ``"gene-batch"`` or per ``"gene-cell"``.
    n_batch, n_cats_per_cov, n_continuous, n_hidden, n_layers, dropout_rate
        As in :class:`CovariateMLP`.
    """

    def __init__(
        self,
        n_latent: int,
        n_output: int,
        *,
        gene_likelihood: GeneLikelihood = "nb",
        dispersion: Dispersion = "gene",
        n_batch: int = 0,
        n_cats_per_cov: Sequence[int] = (),
        n_continuous: int = 0,
        n_hidden: int = 128,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
    ):
        super().__init__()
        self.gene_likelihood = gene_likelihood
        self.dispersion = dispersion
        self.body: nn.Module = CovariateMLP(
            n_latent,
            n_batch=n_batch,
            n_cats_per_cov=n_cats_per_cov,
            n_continuous=n_continuous,
            n_hidden=n_hidden,
            n_layers=n_layers,
            dropout_rate=dropout_rate,
        )
        self.scores = nn.Linear(n_hidden, n_output)
        if gene_likelihood == "zinb":
            self.dropout_logits = nn.Linear(n_hidden, n_output)
        if gene_likelihood != "poisson":
            if dispersion == "gene-cell":
                self.theta_head = nn.Linear(n_hidden, n_output)
            else:
                n_sets = max(n_batch, 1) if dispersion == "gene-batch" else 1
                self.log_theta = nn.Parameter(torch.zeros(n_sets, n_output))
        use_fast_linear(self)

    def forward(self, z: Tensor, covariates: Covariates | None = None) -> CountHeads:
        """Heads of each cell; z is (..., n_latent)."""
        h = self.body(z, covariates)
        return CountHeads(
            scores=self.scores(h),
            log_theta=self._log_theta(h, covariates),
            dropout_logits=self.dropout_logits(h) if self.gene_likelihood == "zinb" else None,
        )

    def _log_theta(self, h: Tensor, covariates: Covariates | None) -> Tensor | None:
        if self.gene_likelihood == "poisson":
            return None
        if self.dispersion == "gene-cell":
            log_theta = self.theta_head(h)
        elif self.dispersion == "gene-batch" and covariates is not None and self.log_theta.shape[0] > 1:
            log_theta = self.log_theta[covariates.batch.squeeze(-1)]
        else:
            log_theta = self.log_theta[0]
        # a smooth bound: a hard clamp has no gradient outside, so a value that overshoots would never come back
        return LOG_THETA_BOUND * torch.tanh(log_theta / LOG_THETA_BOUND)
