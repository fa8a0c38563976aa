"""GMVAE, the model; its equations, and what differs from the paper and why, are in ``_module.py``."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from scipy.special import entr
from scvi.model import SCVI
from scvi.model.base import VAEMixin

from scdeepclust.model._base import ClusteringModel, check_choice, shared_docs
from scdeepclust.nn import Dispersion, GeneLikelihood
from scdeepclust.train import Initialiser, Phase, epochs_for_steps, pretraining_epochs

from ._divergence import PriorEstimator
from ._from_scvi import ScviGMVAEModule, scvi_architecture
from ._getters import MixtureGetters
from ._module import GMVAEModule

# A posterior whose entropy is this share of the largest possible is flat: the components have merged.
FLAT_POSTERIOR = 0.7

# Steps without a prior, and with that of one Gaussian, before the clusters start. With half of them start labels are
# worse on average, on sets that had a part in choices and on sets that had none. Few cells end earlier, by passes over
# the data, for more passes lose there.
N_STEPS, N_PRIOR_STEPS = 1000, 2000
MOST_EPOCHS, MOST_PRIOR_EPOCHS = 67, 133

# With fewer components than this in use (the exponential of the entropy of their sizes), one has taken all cells.
ONE_COMPONENT = 1.1


@shared_docs
class GMVAE(MixtureGetters, VAEMixin, ClusteringModel):
    """Gaussian-mixture variational autoencoder of counts; its components are the clusters :cite:p:`Dilokthanakul16`.

    Parameters
    ----------
    %(adata)s
    %(n_clusters)s
    %(init)s
    %(likelihood)s
    %(networks)s
    n_w
        Dimensions of a continuous variable that moves the components; 0 for a plain mixture of Gaussians.
    prior_estimator
        ``"exact"``, or ``"analytic_kl"`` as published, which is too large.
    shared_variance
        One variance for all components instead of one each.
    learn_weights
        Learn the weights of the components, which start at the sizes of the start clusters, instead of keeping them
        equal.
    n_samples
        Monte-Carlo samples of the latent variables in training. Time grows in proportion.
    free_bits
        Nats below which the divergence of a cell's component posterior from the weights costs nothing. Values up to
        log(n_clusters) allow sharper and sharper assignments at no cost.
    anchor
        How far start labels are trusted: in training they count as measurements of the component that are right with
        this share and arbitrary otherwise; from 0 (not at all, as published) to below 1. Predictions make no use of
        them.
    input_noise
        Standard deviation of the noise added to the standardised input before the clusters start.
    %(encode_covariates)s
    %(n_init)s
    %(alpha)s
    scvi_kwargs
        Arguments of the scVI model whose networks this one has; set by :meth:`from_scvi_model`.
    %(registry)s

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.pbmc68k_reduced()
    >>> sdc.model.GMVAE.setup_anndata(adata)
    >>> model = sdc.model.GMVAE(adata, n_clusters=8)
    >>> model.train(pretrain_epochs=2, max_epochs=1, enable_progress_bar=False)
    >>> model.predict(soft=True).shape
    (700, 8)
    >>> model.write_back(adata)
    >>> adata.obsm["X_gmvae"].shape
    (700, 16)
    """

    _module_cls: type[GMVAEModule] = GMVAEModule

    def __init__(
        self,
        adata: AnnData | None = None,
        n_clusters: int | None = None,
        *,
        init: Initialiser | Sequence = "merge",
        gene_likelihood: GeneLikelihood = "nb",
        dispersion: Dispersion = "gene",
        n_latent: int = 16,
        n_hidden: int = 128,
        n_layers: int = 2,
        dropout_rate: float = 0.2,
        n_w: int = 0,
        prior_estimator: PriorEstimator = "exact",
        shared_variance: bool = True,
        learn_weights: bool = True,
        n_samples: int = 1,
        free_bits: float = 0.0,
        anchor: float = 0.9,
        input_noise: float = 2.0,
        encode_covariates: bool = False,
        n_init: int = 3,
        alpha: float = 0.05,
        scvi_kwargs: dict[str, Any] | None = None,
        seed: int | None = None,
        extra_payload_autotune: bool = False,
        registry: dict | None = None,
    ):
        check_choice("prior_estimator", prior_estimator, ("exact", "analytic_kl"))
        if not 0 <= anchor < 1:
            raise ValueError(f"`anchor` must be at least 0 and less than 1, found {anchor}.")
        module_kwargs: dict[str, Any] = {
            "gene_likelihood": gene_likelihood,
            "dispersion": dispersion,
            "n_latent": n_latent,
            "n_hidden": n_hidden,
            "n_layers": n_layers,
            "dropout_rate": dropout_rate,
            "n_w": n_w,
            "prior_estimator": prior_estimator,
            "shared_variance": shared_variance,
            "learn_weights": learn_weights,
            "n_samples": n_samples,
            "free_bits": free_bits,
            "anchor": anchor,
            "input_noise": input_noise,
            "encode_covariates": encode_covariates,
        }
        if scvi_kwargs is not None:
            self._module_cls = ScviGMVAEModule
            module_kwargs["scvi_kwargs"] = scvi_kwargs
        super().__init__(adata, n_clusters, module_kwargs, registry, init=init, n_init=n_init, alpha=alpha, seed=seed)
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def from_scvi_model(
        cls,
        scvi_model: SCVI,
        n_clusters: int | None = None,
        *,
        init: Initialiser | Sequence = "merge",
        n_w: int = 0,
        prior_estimator: PriorEstimator = "exact",
        shared_variance: bool = True,
        learn_weights: bool = True,
        anchor: float = 0.9,
        n_init: int = 3,
        alpha: float = 0.05,
        seed: int | None = None,
    ) -> GMVAE:
        """Clusters on top of a trained scVI model: its networks are taken over as they are, the mixture is fitted.

        Parameters
        ----------
        scvi_model
            A trained :class:`scvi.model.SCVI` with its data. It stays as it is.
        n_clusters, init, n_w, prior_estimator, shared_variance, learn_weights, anchor, n_init, alpha, seed
            As in the class.

        Returns
        -------
        A model of the same data. Call ``train`` before its getters; there is only one phase, of ``max_epochs``.

        Raises
        ------
        ValueError
            If the scVI model is not trained, has no counts, or has options that cannot be taken over (a learnt library
            size, a size factor, ``dispersion="gene-label"``, batch embeddings, a log-normal latent space or a normal
            likelihood).

        Examples
        --------
        >>> import scvi
        >>> import scdeepclust as sdc
        >>> adata = sdc.datasets.pbmc68k_reduced()
        >>> scvi.model.SCVI.setup_anndata(adata)
        >>> scvi_model = scvi.model.SCVI(adata)
        >>> scvi_model.train(max_epochs=2, enable_progress_bar=False)
        >>> model = sdc.model.GMVAE.from_scvi_model(scvi_model, n_clusters=8)
        >>> model.train(max_epochs=2, enable_progress_bar=False)
        >>> model.predict(soft=True).shape
        (700, 8)
        """
        scvi_kwargs = scvi_architecture(scvi_model)
        arguments = set(inspect.signature(cls.setup_anndata).parameters)
        setup = {name: value for name, value in scvi_model.registry_["setup_args"].items() if name in arguments}
        cls.setup_anndata(scvi_model.adata, **setup, source_registry=scvi_model.registry_)
        module = scvi_model.module
        model = cls(
            scvi_model.adata,
            n_clusters,
            init=init,
            gene_likelihood=module.gene_likelihood,
            dispersion=module.dispersion,
            n_latent=module.n_latent,
            n_hidden=module.n_hidden,
            n_layers=module.n_layers,
            n_w=n_w,
            prior_estimator=prior_estimator,
            shared_variance=shared_variance,
            learn_weights=learn_weights,
            anchor=anchor,
            input_noise=0.0,
            encode_covariates=module.encode_covariates,
            n_init=n_init,
            alpha=alpha,
            seed=seed,
            scvi_kwargs=scvi_kwargs,
        )
        model.module.copy_weights(module)
        return model

    # -- fit ----------------------------------------------------------------------------------------------------------

    @property
    def _has_clusters(self) -> bool:
        return bool(self.module.mixture.initialised)

    def _phases(self, pretrain_epochs, max_epochs, n_train, batch_size) -> list[Phase]:
        if self._keeps_reference_clusters:
            return self._query_phases(max_epochs, n_train, batch_size)
        if isinstance(self.module, ScviGMVAEModule):
            if pretrain_epochs:
                raise ValueError(f"`pretrain_epochs` must be 0 for networks of an scVI model; found {pretrain_epochs}.")
            pretrain_epochs = 0
            self.module.freeze_networks()
        if pretrain_epochs is not None:
            without_prior = pretrain_epochs // 3
            with_prior = pretrain_epochs - without_prior
        elif self._continues:  # a model that has clusters goes on from them
            without_prior = with_prior = 0
        else:
            without_prior = pretraining_epochs(N_STEPS, n_train, batch_size, MOST_EPOCHS)
            with_prior = epochs_for_steps(N_PRIOR_STEPS, n_train, batch_size, MOST_PRIOR_EPOCHS)
        if max_epochs is None:
            max_epochs = epochs_for_steps(300, n_train, batch_size, 60)
        starts = self._continue_clusters if self._continues and not with_prior else self._start_clusters
        return [
            Phase("pretrain", without_prior, begin=self._forget_clusters, plan_kwargs={"max_kl_weight": 0.0}),
            Phase("vae", with_prior, begin=self._forget_clusters, plan_kwargs={"kl_warmup": 0.3}),
            Phase("mixture", max_epochs, begin=starts, plan_kwargs={"lr": 5e-4}),
        ]

    def _hand_down(self, refit: GMVAE) -> None:
        if isinstance(self.module, ScviGMVAEModule):  # networks of scVI stay what they are
            for part in ("encoder", "z_head", "decoder"):
                getattr(refit.module, part).load_state_dict(getattr(self.module, part).state_dict())

    def _forget_clusters(self, train_indices: np.ndarray) -> None:
        self.module.mixture.set_initialised(False)

    def _start_clusters(self, train_indices: np.ndarray) -> None:
        cells = np.sort(train_indices)
        labels = self._start_labels(cells)
        moments = [(q["z_mean"], q["z_log_var"].exp()) for q in map(self._encode, self._minibatches(indices=cells))]
        z_mean, z_var = map(torch.cat, zip(*moments, strict=True))
        self.module.start_clusters(z_mean, z_var, torch.as_tensor(labels, device=self.device))
        self.module.start_labels = self._keep_start("labels", cells, labels)

    def _continue_clusters(self, train_indices: np.ndarray) -> None:
        self.module.start_labels = self._kept_start("labels")

    def _end_training(self, train_indices: np.ndarray) -> None:
        self.module.start_labels = None
        super()._end_training(train_indices)
        n_active = self.n_active_ or 0
        if self.finds_n_clusters_ and n_active < self.n_clusters:
            # clusters are numbered by size, so that the empty ones are the last
            self.module.reorder_clusters(torch.arange(n_active, device=self.device))
            self._renumber_start("labels", np.arange(n_active))
            self._keep_n_clusters(n_active)

    def _warn_if_degenerate(self, probabilities: np.ndarray) -> None:
        """Say so when components merged or one of them took all cells: seen from the entropies of the posterior."""
        cell_entropy = float(entr(probabilities).sum(axis=1).mean())
        total_entropy = float(entr(probabilities.mean(axis=0)).sum())
        if cell_entropy > FLAT_POSTERIOR * np.log(self.n_clusters):
            warnings.warn(
                f"The components have merged: a cell is shared by {np.exp(cell_entropy):.1f} of {self.n_clusters} "
                "components on average (posterior entropy). Train longer before the clusters start "
                "(`pretrain_epochs`), ask for fewer clusters, or set `free_bits` towards log(n_clusters).",
                stacklevel=2,
            )
        elif self.n_clusters > 1 and np.exp(total_entropy) < ONE_COMPONENT:
            warnings.warn(
                f"One component holds nearly all cells: the {self.n_clusters} components are used as if there were "
                f"{np.exp(total_entropy):.2f} of equal size. Check the start (`initial_labels_`), use "
                "`prior_estimator='exact'`, or keep the weights equal with `learn_weights=False`.",
                stacklevel=2,
            )
        elif not self.finds_n_clusters_:
            super()._warn_if_degenerate(probabilities)
