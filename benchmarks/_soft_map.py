"""The soft assignment of DPSOM as a variant of SOMVAE, to be measured beside the hard one of the package.

Manduchi, Hüser, Faltys, Vogt, Rätsch, Fortuin, "T-DPSOM: an interpretable clustering method for unsupervised learning
of patient health states", CHIL (2021). Cells belong to all nodes by a Student-t kernel; a sharpened copy of these
assignments is their target, and each assignment draws the nodes around. What differs from the package is the assignment
alone: pretraining, the map that is laid before, units and grid are the same.
"""

from __future__ import annotations

import torch
from scvi.module.base import LossOutput
from torch import Tensor

from scdeepclust._keys import CELL_INDEX
from scdeepclust.model import SOMVAE
from scdeepclust.model.somvae import SOMVAEModule

# Degrees of freedom of the Student-t kernel, as published.
FREEDOM = 10.0

# Weights as published, 20 and 0.25, relative to an entry of the 784 of an image.
SHARPENING_WEIGHT = 20 / 784
SOM_WEIGHT = 0.25 / 784

# Share of the target that is the node a cell was laid on, in the anchored variant.
ANCHOR = 0.2


class SoftMapModule(SOMVAEModule):
    """Reconstruction, KL divergence of a sharpened target from the assignments, and their neighbourhood term."""

    anchor = 0.0

    def loss(self, tensors, inference_outputs, generative_outputs, phase="map", kl_weight=1.0) -> LossOutput:
        if phase != "map":
            return super().loss(tensors, inference_outputs, generative_outputs, phase, kl_weight)
        counts, log_library = inference_outputs["counts"], inference_outputs["log_library"]
        reconstruction = -self.log_likelihood(counts, generative_outputs["heads"], log_library)  # (B,)
        z = self.encode_without_noise(inference_outputs["u"], self.covariates(tensors))
        log_s = self._log_assignments_to_nodes(z)  # (B, K)
        target = torch.softmax(2 * log_s.detach(), dim=1)  # squared, rows sum to one
        if self.anchor:
            node = self._target_nodes(z, tensors[CELL_INDEX])
            target = (1 - self.anchor) * target + self.anchor * torch.nn.functional.one_hot(node, log_s.shape[1])
        sharpening = (target * (target.clamp_min(1e-30).log() - log_s)).sum(dim=1).mean()
        around = self._log_assignments_to_nodes(z.detach()) @ self.grid.adjacency().to(z)  # moves nodes only
        som = -(log_s.detach().exp() * around).sum(dim=1).mean()
        loss = reconstruction.mean() + self.n_input * (SHARPENING_WEIGHT * sharpening + SOM_WEIGHT * som)
        terms = {"sharpening": sharpening, "som": som}
        return LossOutput(loss=loss, reconstruction_loss=reconstruction, extra_metrics=terms)

    def _log_assignments_to_nodes(self, z: Tensor) -> Tensor:
        return torch.log_softmax(-(FREEDOM + 1) / 2 * torch.log1p(self.distances(z) / FREEDOM), dim=1)


class AnchoredMapModule(SoftMapModule):
    anchor = ANCHOR


class SoftSOMVAE(SOMVAE):
    _module_cls = SoftMapModule


class AnchoredSOMVAE(SOMVAE):
    _module_cls = AnchoredMapModule


VARIANTS = {"soft": SoftSOMVAE, "soft, anchored": AnchoredSOMVAE}
