"""IDC, the model; its equations, and what differs from the paper and why, are in ``_module.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from anndata import AnnData

from scdeepclust.model._base import ClusteringModel, check_choice, check_n_clusters, shared_docs
from scdeepclust.nn import Dispersion, GeneLikelihood
from scdeepclust.train import Initialiser, Phase, epochs_for_steps, pretraining_epochs, undone_on_failure

from ._getters import GateGetters
from ._module import IDCModule

# Steps of both phases that train the autoencoder, two fifths of them without gates.
N_STEPS = 1200


@shared_docs
class IDC(GateGetters, ClusteringModel):
    """Interpretable deep clustering: which genes made the cluster of each cell :cite:p:`Svirsky24`.

    Parameters
    ----------
    %(adata)s
    %(n_clusters)s
    target_sparsity
        Wanted number of open genes a cell (on average), or their share of all genes if below 1. The training finds
        the price of a gate that leads there. By default a twentieth of the genes, but at least 50.
    clusterer
        ``"mcr2"`` starts from the labels of ``init`` and lowers their coding rate; ``"kmeans"`` and ``"leiden"`` take
        the clusters of the latent codes of the gated cells as they are (``init`` is not used then).
    init
        Start of the clusters, found in expression that is denoised from the open genes and from all genes:
        ``"merge"`` (micro-clusters merged by size and distance), ``"kmeans"``, ``"gmm"``, ``"leiden"``, or one label
        per cell.
    %(likelihood)s
    %(networks)s
    input_noise
        Standard deviation of the noise added behind the gates in training.
    diversity_weight
        Weight, per cell and gene, of the coding rate of the gates, which makes cells open different genes.
    rate_weight
        Weight of the coding rate of the clusters, relative to the cross-entropy with the start labels.
    encode_covariates
        Whether batch and covariates enter the encoder too, besides the decoder. The gates never see them.
    %(n_init)s
    %(alpha)s

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.pbmc68k_reduced()
    >>> sdc.model.IDC.setup_anndata(adata)
    >>> model = sdc.model.IDC(adata, n_clusters=8, target_sparsity=0.1)
    >>> model.train(pretrain_epochs=40, max_epochs=2, enable_progress_bar=False)
    >>> model.write_back(adata)
    >>> adata.layers["idc_gates"].shape
    (700, 765)
    >>> adata.varm["idc_global_gates"].shape
    (765, 8)
    """

    _module_cls = IDCModule

    def __init__(
        self,
        adata: AnnData | None = None,
        n_clusters: int | None = None,
        *,
        target_sparsity: float | None = None,
        clusterer: Literal["mcr2", "kmeans", "leiden"] = "mcr2",
        init: Initialiser | Sequence = "merge",
        gene_likelihood: GeneLikelihood = "nb",
        dispersion: Dispersion = "gene",
        n_latent: int = 16,
        n_hidden: int = 128,
        n_layers: int = 2,
        dropout_rate: float = 0.2,
        input_noise: float = 2.0,
        diversity_weight: float = 1e-3,
        rate_weight: float = 1.0,
        encode_covariates: bool = True,
        n_init: int = 3,
        alpha: float = 0.05,
        seed: int | None = None,
        extra_payload_autotune: bool = False,
        registry: dict | None = None,
    ):
        check_choice("clusterer", clusterer, ("mcr2", "kmeans", "leiden"))
        if target_sparsity is not None and not target_sparsity > 0:
            raise ValueError(
                "`target_sparsity` must be a number of genes, or a share of them below 1, and positive; "
                f"found {target_sparsity!r}."
            )
        module_kwargs = {
            "gene_likelihood": gene_likelihood,
            "dispersion": dispersion,
            "n_latent": n_latent,
            "n_hidden": n_hidden,
            "n_layers": n_layers,
            "dropout_rate": dropout_rate,
            "input_noise": input_noise,
            "target_sparsity": target_sparsity,
            "diversity_weight": diversity_weight,
            "rate_weight": rate_weight if clusterer == "mcr2" else 0.0,
            "encode_covariates": encode_covariates,
        }
        init = init if clusterer == "mcr2" else clusterer
        super().__init__(adata, n_clusters, module_kwargs, registry, init=init, n_init=n_init, alpha=alpha, seed=seed)
        self._clusterer = clusterer
        self.init_params_ = self._get_init_params(locals())

    # -- fit ----------------------------------------------------------------------------------------------------------

    @property
    def _has_clusters(self) -> bool:
        return bool(self.module.z_scale > 0)

    def _phases(self, pretrain_epochs, max_epochs, n_train, batch_size) -> list[Phase]:
        if self._keeps_reference_clusters:
            return self._query_phases(max_epochs, n_train, batch_size)
        if pretrain_epochs is None:
            # a model that has clusters goes on from them
            pretrain_epochs = 0 if self._continues else pretraining_epochs(N_STEPS, n_train, batch_size, 240)
        if max_epochs is None:
            max_epochs = epochs_for_steps(300, n_train, batch_size, 60)
        ungated = pretrain_epochs * 2 // 5
        begin = self._freeze if self._continues and not pretrain_epochs else self._start_clusters
        warmup = {"kl_warmup": 0.6}  # the number of open genes falls over this share of a phase
        has_fallen = begin == self._freeze and any(name == "cluster" and n for name, n in self.phases_)
        return [
            Phase("pretrain", ungated, begin=self._without_gates),
            Phase("gates", pretrain_epochs - ungated, begin=self._with_gates, plan_kwargs=warmup),
            Phase("cluster", max_epochs, begin=begin, plan_kwargs=({} if has_fallen else warmup) | {"lr": 1e-2}),
        ]

    def _learn(self, *parts: str) -> None:
        """Let the next phase train these parts of the module and keep the others as they are."""
        self.module.uses_gates = "gating" in parts or "encoder" not in parts
        self.module.is_frozen = "encoder" not in parts
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(name.split(".")[0] in parts)

    def _without_gates(self, train_indices: np.ndarray) -> None:
        self._learn("encoder", "z_head", "decoder")

    def _with_gates(self, train_indices: np.ndarray) -> None:
        self._learn("encoder", "z_head", "decoder", "gating")

    def _freeze(self, train_indices: np.ndarray) -> None:
        self._learn("global_gates", "scorer_weight", "scorer_bias")

    def _start_clusters(self, train_indices: np.ndarray) -> None:
        self.module.uses_gates = True
        cells = np.sort(train_indices)
        labels = torch.as_tensor(self._start_labels(cells), device=self.device)
        z = torch.as_tensor(self._latent(indices=cells), device=self.device)
        with torch.enable_grad():
            self.module.start_clusters(z, labels)
        self._freeze(train_indices)

    def _end_training(self, train_indices: np.ndarray) -> None:
        self.module.is_frozen = False
        if not self._keeps_reference_clusters:
            for parameter in self.module.parameters():
                parameter.requires_grad_(True)
        super()._end_training(train_indices)

    # -- other numbers of clusters ------------------------------------------------------------------------------------

    def recluster(self, n_clusters: int | None, max_epochs: int | None = None, **train_kwargs) -> None:
        """Take another number of clusters: only the clustering head and the global gates are trained anew.

        Parameters
        ----------
        n_clusters
            Number of clusters; None takes the number of communities that Leiden finds.
        max_epochs, **train_kwargs
            As in :meth:`train`.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If the number is below 2 or above the number of cells. Whatever goes wrong, the model is as it was before.
        """
        self._check_if_trained(warn=False)
        check_n_clusters(n_clusters, self.adata.n_obs)
        with undone_on_failure(self):
            self.finds_n_clusters_ = n_clusters is None
            self.module.forget_clusters(n_clusters or 0)
            self.train(max_epochs, pretrain_epochs=0, **train_kwargs)
