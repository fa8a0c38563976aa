"""What a model registers of an AnnData object, where fields of scvi-tools ask too much of it or look too little."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
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

# With fewer cells than this a category says little.
FEW_CELLS = 3

# Where scvi-tools writes registered data.
SLOTS = ("obs", "obsm", "uns")


def used_categories(column: pd.Series) -> np.ndarray:
    """The values that cells have, in the order of the categories where there is one; missing values are none."""
    return column.astype("category").cat.remove_unused_categories().cat.categories.to_numpy(copy=True)


def category_codes(column: pd.Series, categories: Sequence | np.ndarray) -> np.ndarray:
    """Place of each value among the categories, which have been checked to hold all of them."""
    values = column.astype("category")
    index = pd.Index(categories).astype(object)  # dates stay dates
    places = index.get_indexer(values.cat.categories.to_numpy(dtype=object))
    codes = np.append(places, -1)[values.cat.codes].astype(np.int32)  # a missing value has code -1
    if (codes < 0).any():
        raise ValueError(f"`adata.obs[{column.name!r}]` has values that are not registered.")
    return codes


def numbers(column: pd.Series) -> np.ndarray:
    """A column as 32-bit floats, which is what networks read; NaN where it holds no real number."""
    if column.dtype.kind not in "biuf":
        if column.dtype.kind in "mM":
            return np.full(len(column), np.nan, dtype=np.float32)
        column = pd.to_numeric(column.astype(object), errors="coerce")
    with np.errstate(over="ignore"):
        return column.to_numpy(dtype=np.float64, na_value=np.nan).astype(np.float32)


class UsedCategoriesField(CategoricalObsField):
    """Categories that cells have. A category without cells is no batch: no weight of the model knows it."""

    def register_field(self, adata: AnnData) -> dict:
        """Register the categories in use."""
        column = self._column(adata)
        categories = np.array([0]) if column is None else used_categories(column)
        registered = self._encode(adata, column, categories)
        sizes = np.bincount(adata.obs[self.attr_key], minlength=1)
        if column is not None and sizes.min() < FEW_CELLS:
            warnings.warn(
                f"Category {categories[sizes.argmin()]!r} of `adata.obs[{column.name!r}]` has {sizes.min()} cells: the "
                "model learns little of it.",
                stacklevel=2,
            )
        return registered

    def transfer_field(
        self, state_registry: dict, adata_target: AnnData, extend_categories: bool = False, **kwargs
    ) -> dict:
        """Codes of the known categories; new ones follow them with ``extend_categories``."""
        column = self._column(adata_target)
        categories = np.asarray(state_registry[self.CATEGORICAL_MAPPING_KEY])
        if column is not None and extend_categories:
            known = set(categories)
            if new := sorted(value for value in used_categories(column) if value not in known):
                categories = pd.Index([*categories, *new]).to_numpy()
        return self._encode(adata_target, column, categories)

    def get_summary_stats(self, state_registry: dict) -> dict:
        """Number of categories."""
        return {self.count_stat_key: len(state_registry[self.CATEGORICAL_MAPPING_KEY])}

    def _column(self, adata: AnnData) -> pd.Series | None:
        return None if self.is_default else adata.obs[self._original_attr_key]

    def _encode(self, adata: AnnData, column: pd.Series | None, categories: np.ndarray) -> dict:
        if column is None:
            self._setup_default_attr(adata)
        else:
            adata.obs[self.attr_key] = category_codes(column, categories)
        return {self.CATEGORICAL_MAPPING_KEY: categories, self.ORIGINAL_ATTR_KEY: self._original_attr_key}


class LabelsField(UsedCategoriesField):
    """Known labels. No network reads them, so new cells may have other ones, or none."""

    def validate_field(self, adata: AnnData) -> None:
        """Ask nothing of new cells; ``setup_anndata`` has looked at the others."""

    def transfer_field(
        self, state_registry: dict, adata_target: AnnData, extend_categories: bool = True, **kwargs
    ) -> dict:
        """Register labels of new cells, as code 0 where there are none."""
        labels = adata_target.obs.get(self._original_attr_key)
        if self.is_default or (isinstance(labels, pd.Series) and not labels.isna().any()):
            return super().transfer_field(state_registry, adata_target, True)
        adata_target.obs[self.attr_key] = np.zeros(adata_target.n_obs, dtype=np.int64)
        return state_registry


class UsedCovariatesField(CategoricalJointObsField):
    """Categories that cells have, of several columns; new cells have no others."""

    def register_field(self, adata: AnnData) -> dict:
        """Register the categories in use."""
        return self._encode(adata, {key: used_categories(adata.obs[key]) for key in self.attr_keys})

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs) -> dict:
        """Codes of the known categories."""
        return self._encode(adata_target, state_registry[self.MAPPINGS_KEY])

    def _encode(self, adata: AnnData, mappings: dict) -> dict:
        codes = {key: category_codes(adata.obs[key], mappings[key]) for key in self.attr_keys}
        adata.obsm[self.attr_key] = pd.DataFrame(codes, index=adata.obs_names)
        return {
            self.MAPPINGS_KEY: mappings,
            self.FIELD_KEYS_KEY: self.attr_keys,
            self.N_CATS_PER_KEY: [len(mappings[key]) for key in self.attr_keys],
        }


class NumbersField(NumericalJointObsField):
    """Continuous covariates, as numbers whatever the type of their columns."""

    def _combine_fields(self, adata: AnnData) -> None:
        columns = {key: numbers(adata.obs[key]) for key in self.attr_keys}
        adata.obsm[self.attr_key] = pd.DataFrame(columns, index=adata.obs_names)


def registered_fields(
    layer: str | None = None,
    batch_key: str | None = None,
    labels_key: str | None = None,
    size_factor_key: str | None = None,
    categorical_covariate_keys: Sequence[str] | None = None,
    continuous_covariate_keys: Sequence[str] | None = None,
    *,
    may_reformat: bool = True,
    **others,
) -> list[AnnDataField]:
    """What ``setup_anndata`` registers, from its arguments; others, such as those about time, have no field.

    ``may_reformat`` lets scvi-tools put a dense matrix into C order, which is faster to train on.
    """
    return [
        # checked before in full; scvi-tools would look at a corner, and not know all sparse formats
        LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False, correct_data_format=may_reformat),
        UsedCategoriesField(REGISTRY_KEYS.BATCH_KEY, batch_key),
        LabelsField(REGISTRY_KEYS.LABELS_KEY, labels_key),
        NumericalObsField(REGISTRY_KEYS.SIZE_FACTOR_KEY, size_factor_key, required=False),
        UsedCovariatesField(REGISTRY_KEYS.CAT_COVS_KEY, list(categorical_covariate_keys or [])),
        NumbersField(REGISTRY_KEYS.CONT_COVS_KEY, list(continuous_covariate_keys or [])),
    ]


@contextmanager
def unchanged_on_error(adata: AnnData) -> Iterator[None]:
    """Take back what scvi-tools wrote into ``adata`` if the registration fails half-way."""
    before = _registered(adata)
    try:
        yield
    except BaseException:
        _put_back(adata, before)
        raise


@contextmanager
def unchanged(adata: AnnData) -> Iterator[None]:
    """Take back what scvi-tools wrote into ``adata``, whatever happens."""
    before = _registered(adata)
    try:
        yield
    finally:
        _put_back(adata, before)


def _registered(adata: AnnData) -> dict[str, dict]:
    """What scvi-tools has in ``adata``, by slot and name; a collection of files may have no obsm."""
    slots = {slot: getattr(adata, slot) for slot in SLOTS if getattr(adata, slot, None) is not None}
    return {slot: {name: held[name] for name in held.keys() if _is_of_scvi(name)} for slot, held in slots.items()}


def _put_back(adata: AnnData, before: dict[str, dict]) -> None:
    for slot, values in before.items():
        held = getattr(adata, slot)
        for name in [name for name in held.keys() if _is_of_scvi(name) and name not in values]:
            del held[name]
        for name, value in values.items():
            if name not in held or held[name] is not value:
                held[name] = value


def _is_of_scvi(name: object) -> bool:
    return str(name).startswith("_scvi")
