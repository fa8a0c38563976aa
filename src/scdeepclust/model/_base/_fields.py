"""What a model registers of an AnnData object, where the fields of scvi-tools ask too much of it."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data.fields import (
    AnnDataField,
    CategoricalJointObsField,
    CategoricalObsField,
    LayerField,
    NumericalJointObsField,
    NumericalObsField,
)


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


def registered_fields(
    layer: str | None,
    batch_key: str | None,
    labels_key: str | None,
    size_factor_key: str | None,
    categorical_covariate_keys: list[str] | None,
    continuous_covariate_keys: list[str] | None,
) -> list[AnnDataField]:
    """What ``setup_anndata`` registers, from its arguments."""
    return [
        # checked before in full; scvi-tools would look at a corner, and not know all sparse formats
        LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False),
        CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, batch_key),
        LabelsField(REGISTRY_KEYS.LABELS_KEY, labels_key),
        NumericalObsField(REGISTRY_KEYS.SIZE_FACTOR_KEY, size_factor_key, required=False),
        CategoricalJointObsField(REGISTRY_KEYS.CAT_COVS_KEY, categorical_covariate_keys),
        NumericalJointObsField(REGISTRY_KEYS.CONT_COVS_KEY, continuous_covariate_keys),
    ]
