"""What a model registers of an AnnData object, where the fields of scvi-tools ask too much of it."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from scvi.data.fields import CategoricalObsField


class LabelsField(CategoricalObsField):
    """Known labels. No network reads them, so new cells may have other ones, or none."""

    def validate_field(self, adata: AnnData) -> None:
        """Ask nothing of new cells; ``setup_anndata`` has looked at the others."""

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs) -> dict:
        """Register labels of new cells, as code 0 where there are none."""
        labels = adata_target.obs.get(self._original_attr_key)
        if self.is_default or (labels is not None and not labels.isna().any()):
            return super().transfer_field(state_registry, adata_target, **(kwargs | {"extend_categories": True}))
        adata_target.obs[self.attr_key] = np.zeros(adata_target.n_obs, dtype=np.int64)
        return state_registry
