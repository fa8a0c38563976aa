"""scDeepCluster: a denoising autoencoder of counts, then deep embedded clustering.

Tian et al., "Clustering single-cell RNA-seq data with a model-based deep learning approach", Nature Machine
Intelligence 1:191 (2019). An autoencoder is trained to give counts back from noisy input; cluster centres are set by
k-means; then centres and network are trained together so that each cell's soft assignment q becomes sharper (target
p), while the counts must still be given back.

What differs from the paper, and why:

* The start of the clusters is looked for in *denoised expression* (the profile the decoder expects, averaged over
  batches) instead of the latent space, where noise dimensions weigh as much as signal dimensions; and by merging
  micro-clusters instead of k-means alone, which splits large cell types.
* The bandwidth of the Student-t kernel is the median squared distance of a cell to its own centre, instead of 1, so
  that it fits a latent space of any scale.
* A fifth of each target is the cluster that the cell started in (``anchor=0.2``; the paper has 0). Self-training
  alone confirms whatever the first assignment in the latent space happens to be; the anchor keeps to the start unless
  there is reason to leave it.
* The targets do not divide by the size of a cluster (``balance=0``; the paper has 1): that factor pushes towards
  clusters of equal size, which cell types are not.
* Reconstruction is a sum over genes per cell. The clustering weight is stated relative to a reconstruction *per
  entry*, as in the paper, hence multiplied by the number of genes.
* Adam with a small step instead of Adadelta, whose first steps undo the pretraining; shuffled cells; one seed.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from anndata import AnnData
from scvi.module.base import LossOutput
from torch import Tensor, nn

from scdeepclust._keys import CELL_INDEX
from scdeepclust.model._base import AutoencoderModule, ClusteringModel, check_choice, shared_docs
from scdeepclust.nn import (
    Covariates,
    Dispersion,
    GeneLikelihood,
)
from scdeepclust.train import Initialiser, Phase, RefreshTargets, epochs_for_steps, pretraining_epochs

from ._dec import assignment_kl, column_sums, student_t_log_assignment, target_distribution

# Cells per block where assignments of all training cells are computed.
BLOCK_ROWS = 4096


class SCDeepClusterModule(AutoencoderModule):
    """The equations of scDeepCluster.

    Parameters
    ----------
    n_input
        Number of genes.
    n_clusters
        Number of clusters; 0 if it is set later by :meth:`start_clusters`.
    cluster_weight
        Weight of the clustering term relative to a reconstruction per entry of the count matrix.
    balance
        How much the targets favour clusters of equal size: 1 as published, 0 not at all.
    anchor
        Share of the start labels in the targets; 0 as published.
    **kwargs
        As in :class:`AutoencoderModule`.
    """

    def __init__(
        self,
        n_input: int,
        *,
        n_clusters: int,
        cluster_weight: float = 0.1,
        balance: float = 0.0,
        anchor: float = 0.2,
        **kwargs,
    ):
        super().__init__(n_input, **kwargs)
        self.n_clusters = n_clusters
        self.cluster_weight = cluster_weight
        self.balance = balance
        self.anchor = anchor
        self.register_buffer("bandwidth", torch.zeros(()))  # 0: clusters are not set yet
        self.register_buffer("cluster_masses", torch.ones(n_clusters))
        self.centers = nn.Parameter(torch.zeros(n_clusters, self.n_latent))
        # targets of the training cells (n, K) while clustering; no buffer, which DDP would send around at each step
        self.targets: Tensor | None = None
        # start label of each cell (n,), -1 where there is none, while the phase that was started from them runs
        self.start_labels: Tensor | None = None

    def log_assignments(self, inference_outputs: dict, covariates: Covariates) -> Tensor:
        """Log of the soft assignment q, (B, K)."""
        return student_t_log_assignment(inference_outputs["z_mean"], self.centers, self.bandwidth)

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict,
        generative_outputs: dict,
        phase: str = "cluster",
        kl_weight: float = 1.0,
    ) -> LossOutput:
        """Negative log-likelihood per cell; when clustering plus weight * G * KL(p || q)."""
        counts, log_library = inference_outputs["counts"], inference_outputs["log_library"]
        reconstruction = -self.log_likelihood(counts, generative_outputs["heads"], log_library)  # (B,)
        if phase != "cluster":
            return LossOutput(loss=reconstruction.mean(), reconstruction_loss=reconstruction)
        z = self.encode_without_noise(inference_outputs["u"], self.covariates(tensors))
        log_q = student_t_log_assignment(z, self.centers, self.bandwidth)  # (B, K)
        kl = assignment_kl(log_q, self._targets(tensors[CELL_INDEX], log_q)).mean()
        loss = reconstruction.mean() + self.cluster_weight * self.n_input * kl
        return LossOutput(loss=loss, reconstruction_loss=reconstruction, extra_metrics={"cluster_kl": kl})

    def _targets(self, cells: Tensor, log_q: Tensor) -> Tensor:
        """Target distribution p (B, K): as stored (training cells only), or from the current q and the masses."""
        if self.targets is not None and self.training:
            self.targets = self.targets.to(cells.device)
            p = self.targets[cells]
        else:
            p = target_distribution(log_q.detach().exp(), self.cluster_masses, self.balance)
        if self.start_labels is None:
            return p
        self.start_labels = self.start_labels.to(cells.device)
        labels = self.start_labels[cells]
        start = (labels.unsqueeze(1) == torch.arange(self.n_clusters, device=cells.device)).to(p.dtype)
        share = self.anchor * (labels >= 0).unsqueeze(1)
        return (1 - share) * p + share * start

    @torch.no_grad()
    def start_clusters(self, z: Tensor, labels: Tensor) -> None:
        """Set centres to the means of labelled latent codes (n, D), and the bandwidth to their median spread."""
        n_clusters = int(labels.max()) + 1
        one_hot = nn.functional.one_hot(labels, n_clusters).to(z.dtype)
        centers = (one_hot.T @ z) / one_hot.sum(dim=0).unsqueeze(1)
        self.n_clusters = n_clusters
        self.centers = nn.Parameter(centers)
        self.cluster_masses = torch.ones(n_clusters, device=z.device)
        spread = (z - centers[labels]).square().sum(dim=1)
        if not (bandwidth := spread.median()) > 0:  # most cells are alone in their cluster
            bandwidth = (z - z.mean(dim=0)).square().sum(dim=1).mean() / n_clusters
        self.bandwidth.copy_(bandwidth.clamp_min(torch.finfo(z.dtype).tiny))

    @torch.no_grad()
    def reorder_clusters(self, order: Tensor) -> None:
        """Renumber the clusters: new cluster j is old cluster ``order[j]``."""
        self.centers.copy_(self.centers[order].clone())
        self.cluster_masses.copy_(self.cluster_masses[order].clone())


@shared_docs
class SCDeepCluster(ClusteringModel):
    """Denoising count autoencoder with deep embedded clustering :cite:p:`Tian19`.

    Parameters
    ----------
    %(adata)s
    %(n_clusters)s
    %(init)s
    %(likelihood)s
    %(networks)s
    input_noise
        Standard deviation of the noise added to the standardised input in training.
    cluster_weight
        Weight of the clustering term, relative to a reconstruction per entry of the count matrix.
    balance
        How much the targets favour clusters of equal size: 1 as published, 0 not at all.
    anchor
        Share of the start labels in the targets; 0 as published.
    targets
        ``"stored"`` keeps the target distribution of each cell over an epoch, as published; ``"streaming"`` keeps only
        the masses of the clusters and computes targets from the current assignment: a slight change of method that
        needs no matrix of cells x clusters.
    %(encode_covariates)s
    %(n_init)s
    %(alpha)s
    tol
        The clustering phase stops when a smaller share of the labels changes in an epoch.

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.pbmc68k_reduced()
    >>> sdc.model.SCDeepCluster.setup_anndata(adata)
    >>> model = sdc.model.SCDeepCluster(adata, n_clusters=8)
    >>> model.train(pretrain_epochs=2, max_epochs=1, enable_progress_bar=False)
    >>> model.predict()[:3]  # doctest: +SKIP
    array(['0', '2', '0'], dtype='<U21')
    >>> model.write_back(adata)
    >>> adata.obsm["X_scdeepcluster"].shape
    (700, 16)
    """

    _module_cls = SCDeepClusterModule

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
        input_noise: float = 2.0,
        cluster_weight: float = 0.1,
        balance: float = 0.0,
        anchor: float = 0.2,
        targets: Literal["stored", "streaming"] = "stored",
        encode_covariates: bool = True,
        n_init: int = 3,
        alpha: float = 0.05,
        tol: float = 1e-3,
        seed: int | None = None,
        extra_payload_autotune: bool = False,
        registry: dict | None = None,
    ):
        check_choice("targets", targets, ("stored", "streaming"))
        module_kwargs = {
            "gene_likelihood": gene_likelihood,
            "dispersion": dispersion,
            "n_latent": n_latent,
            "n_hidden": n_hidden,
            "n_layers": n_layers,
            "dropout_rate": dropout_rate,
            "input_noise": input_noise,
            "cluster_weight": cluster_weight,
            "balance": balance,
            "anchor": anchor,
            "encode_covariates": encode_covariates,
        }
        super().__init__(adata, n_clusters, module_kwargs, registry, init=init, n_init=n_init, alpha=alpha, seed=seed)
        self._tol = tol
        self._stores_targets = targets == "stored"
        self.init_params_ = self._get_init_params(locals())

    # -- fit ----------------------------------------------------------------------------------------------------------

    @property
    def _has_clusters(self) -> bool:
        return bool(self.module.bandwidth > 0)

    def _phases(self, pretrain_epochs, max_epochs, n_train, batch_size) -> list[Phase]:
        if self._keeps_reference_clusters:
            return self._query_phases(max_epochs, n_train, batch_size)
        if pretrain_epochs is None:
            # a model that has clusters goes on from them
            pretrain_epochs = 0 if self._continues else pretraining_epochs(1000, n_train, batch_size, 200)
        if max_epochs is None:
            max_epochs = epochs_for_steps(300, n_train, batch_size, 60)
        refresh = RefreshTargets(self._refresh_targets, self._tol)
        starts = self._continue_clusters if self._continues and not pretrain_epochs else self._start_clusters
        return [
            Phase("pretrain", pretrain_epochs),
            Phase("cluster", max_epochs, begin=starts, plan_kwargs={"lr": 5e-4}, callbacks=[refresh]),
        ]

    def _start_clusters(self, train_indices: np.ndarray) -> None:
        cells = np.sort(train_indices)
        labels = self._start_labels(cells)
        z = torch.as_tensor(self._latent(indices=cells), device=self.device)
        self.module.start_clusters(z, torch.as_tensor(labels, device=self.device))
        self.module.start_labels = self._keep_start("labels", cells, labels)

    def _continue_clusters(self, train_indices: np.ndarray) -> None:
        self.module.start_labels = self._kept_start("labels")

    @torch.no_grad()
    def _refresh_targets(self) -> np.ndarray:
        """Renew the targets from the current assignment of the training cells; returns their labels."""
        module = self.module
        cells = torch.as_tensor(np.sort(self.train_indices))
        z = torch.as_tensor(self._latent(indices=cells.numpy()), device=self.device)
        masses = column_sums(z, module.centers, module.bandwidth)
        module.cluster_masses.copy_(masses)
        module.targets = torch.zeros(self.adata.n_obs, self.n_clusters) if self._stores_targets else None
        labels = []
        for rows, block in zip(cells.split(BLOCK_ROWS), z.split(BLOCK_ROWS), strict=True):
            q = student_t_log_assignment(block, module.centers, module.bandwidth).exp()
            labels.append(q.argmax(dim=1).cpu().numpy())
            if module.targets is not None:
                module.targets[rows] = target_distribution(q, masses, module.balance).cpu()
        return np.concatenate(labels)

    def _end_training(self, train_indices: np.ndarray) -> None:
        self.module.targets = self.module.start_labels = None
        super()._end_training(train_indices)

    def _warn_if_degenerate(self, probabilities: np.ndarray) -> None:
        super()._warn_if_degenerate(probabilities)
        before = self.history.get("pretrain_reconstruction_loss_train")
        after = self.history.get("reconstruction_loss_train")
        if before is None or after is None or not len(after):
            return
        rise = float(after.iloc[-1, 0]) / float(before.iloc[-1, 0]) - 1
        if rise > 0.05:
            warnings.warn(
                f"The clustering phase lost {rise:.0%} of the reconstruction: clusters were bought with information "
                "about the cells. Compare with `initial_labels_`, or train with a smaller `cluster_weight`.",
                stacklevel=2,
            )

    # -- getters ------------------------------------------------------------------------------------------------------

    def get_cluster_centers(self) -> np.ndarray:
        """Cluster centres in the latent space.

        Returns
        -------
        Array of shape (n_clusters, n_latent), in the order of the labels.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        """
        self._check_if_trained(warn=False)
        return self.module.centers.detach().cpu().numpy()
