"""A GMVAE around the networks of a trained scVI model: the networks stay as they are, the mixture is fitted."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from scvi.model import SCVI
from scvi.module import VAE
from scvi.nn import FCLayers
from torch import Tensor, nn

from scdeepclust.nn import CountHeads, Counts, Covariates

from ._module import GMVAEModule

# What the module of an scVI model must be like: {attribute: allowed values}.
SUPPORTED = {
    "gene_likelihood": ("nb", "zinb", "poisson"),
    "dispersion": ("gene", "gene-batch", "gene-cell"),
    "latent_distribution": ("normal",),
    "batch_representation": ("one-hot",),
    "use_observed_lib_size": (True,),
    "use_size_factor_key": (None, False),
}


class ScviGMVAEModule(GMVAEModule):
    """GMVAE whose encoder and decoder are those of an scVI model, frozen.

    Parameters
    ----------
    n_input
        Number of genes.
    scvi_kwargs
        Arguments of :class:`scvi.module.VAE` other than the sizes of the data.
    n_batch, n_cats_per_cov, n_continuous_cov
        Sizes of the covariates.
    **kwargs
        As in :class:`GMVAEModule`.
    """

    starts_at_profile = False  # networks of scVI stay what they are

    encoder: Any
    decoder: Any

    def __init__(
        self,
        n_input: int,
        *,
        scvi_kwargs: dict[str, Any],
        n_batch: int = 1,
        n_cats_per_cov: Sequence[int] = (),
        n_continuous_cov: int = 0,
        **kwargs,
    ):
        sizes: dict[str, Any] = {
            "n_batch": n_batch,
            "n_cats_per_cov": list(n_cats_per_cov),
            "n_continuous_cov": n_continuous_cov,
        }
        super().__init__(n_input, **sizes, **kwargs)
        vae = VAE(n_input, **sizes, **scvi_kwargs)
        self.log_variational = vae.log_variational
        self.encoder = FrozenLayers(vae.z_encoder.encoder)
        self.z_head = nn.Linear(self.n_hidden, 2 * self.n_latent)
        self.decoder = FrozenDecoder(vae)

    def freeze_networks(self) -> None:
        """Let only the mixture learn."""
        for part in (self.encoder, self.z_head, self.decoder):
            part.requires_grad_(False)

    @torch.no_grad()
    def copy_weights(self, vae: VAE) -> None:
        """Take over the weights of a trained scVI module of the same architecture."""
        self.encoder.load_state_dict(FrozenLayers(vae.z_encoder.encoder).state_dict())
        self.decoder.load_state_dict(FrozenDecoder(vae).state_dict())
        heads = vae.z_encoder.mean_encoder, vae.z_encoder.var_encoder
        self.z_head.weight.copy_(torch.cat([head.weight for head in heads]))
        self.z_head.bias.copy_(torch.cat([head.bias for head in heads]))

    def network_input(self, counts: Counts, log_library: Tensor) -> Tensor:
        """Log1p of the counts themselves, as in scVI, (B, G)."""
        x = counts.to_dense()
        return torch.log1p(x) if self.log_variational else x


class FrozenLayers(nn.Module):
    """Layers of scVI with the batch columns last, where query mapping appends those of new batches.

    Always in evaluation mode: neither dropout nor statistics of a minibatch belong to networks that do not learn.
    """

    def __init__(self, layers: FCLayers):
        super().__init__()
        self.layers = deepcopy(layers)
        if self.layers.n_cat_list:
            n_batch, *n_cats = self.layers.n_cat_list
            self.layers.n_cat_list = [*n_cats, n_batch]
            for i, block in enumerate(self.layers.fc_layers):
                if self.layers.inject_into_layer(i):
                    weight = block[0].weight
                    sizes = [weight.shape[1] - n_batch - sum(n_cats), n_batch, sum(n_cats)]
                    x, batch, cats = weight.data.split(sizes, dim=1)
                    weight.data = torch.cat([x, cats, batch], dim=1)

    def train(self, mode: bool = True) -> FrozenLayers:
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, x: Tensor, covariates: Covariates | None) -> Tensor:
        """Features (..., n_hidden) of x (..., n_input)."""
        if covariates is None:
            return self.layers(x)
        if covariates.continuous is not None:  # scVI joins them to the input
            x = torch.cat([x, covariates.continuous.expand(*x.shape[:-1], -1)], dim=-1)
        return self.layers(x, *covariates.categorical, covariates.batch)


class FrozenDecoder(nn.Module):
    """Decoder of an scVI model as :class:`~scdeepclust.nn.CountDecoder` is used here."""

    def __init__(self, vae: VAE):
        super().__init__()
        self.gene_likelihood, self.dispersion = vae.gene_likelihood, vae.dispersion
        self.body = FrozenLayers(vae.decoder.px_decoder)
        self.scores = deepcopy(vae.decoder.px_scale_decoder[0])
        self.dropout_logits = deepcopy(vae.decoder.px_dropout_decoder)
        self.theta_head = deepcopy(vae.decoder.px_r_decoder)
        if vae.dispersion != "gene-cell":
            sets = vae.px_r.detach().view(vae.px_r.shape[0], -1)  # (G, 1 or n_batch)
            self.log_theta = nn.Parameter(sets.T.clone())

    def forward(self, z: Tensor, covariates: Covariates) -> CountHeads:
        """Heads of each cell; z is (..., n_latent)."""
        h = self.body(z, covariates)
        if self.dispersion == "gene-cell":
            log_theta = self.theta_head(h)
        elif self.dispersion == "gene-batch":
            log_theta = self.log_theta[covariates.batch.squeeze(-1)]
        else:
            log_theta = self.log_theta[0]
        return CountHeads(
            scores=self.scores(h),
            log_theta=None if self.gene_likelihood == "poisson" else log_theta,
            dropout_logits=self.dropout_logits(h) if self.gene_likelihood == "zinb" else None,
        )


def scvi_architecture(model: SCVI) -> dict[str, Any]:
    """Arguments from which the networks of an scVI model can be built again.

    Raises
    ------
    ValueError
        If it is no trained scVI model with counts, or has options that a GMVAE cannot take over.
    """
    if not isinstance(model, SCVI) or not isinstance(model.module, VAE):
        raise ValueError(f"`scvi_model` must be a scvi.model.SCVI, found {type(model).__name__}.")
    if not model.is_trained:
        raise ValueError("`scvi_model` is not trained. Run `scvi_model.train()` first.")
    if model.minified_data_type is not None:
        raise ValueError("`scvi_model` has minified data without counts. Load it with the counts it was trained on.")
    init = model.init_params_
    arguments = init["non_kwargs"] | {name: value for group in init["kwargs"].values() for name, value in group.items()}
    for name, allowed in SUPPORTED.items():
        found = getattr(model.module, name)
        if found not in allowed:
            raise ValueError(
                f"`scvi_model` was made with {name}={found!r}; a GMVAE can take over {', '.join(map(repr, allowed))}. "
                "Train a GMVAE from the start instead."
            )
    if arguments.pop("var_activation", None) is not None:
        raise ValueError("`scvi_model` was made with a `var_activation` of its own; a GMVAE needs the default.")
    return arguments
