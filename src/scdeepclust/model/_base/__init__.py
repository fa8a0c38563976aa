"""What the five systems share."""

from ._checks import check_anndata, check_choice, check_n_clusters, check_obs_keys, count_matrix
from ._data import Indices
from ._docs import shared_docs
from ._draw import draw_codes
from ._model import ClusteringModel, ModelPart
from ._module import LOG_VAR_MAX, LOG_VAR_MIN, TARGET_TOTAL, AutoencoderModule, ClusteringModule

__all__ = [
    "LOG_VAR_MAX",
    "LOG_VAR_MIN",
    "TARGET_TOTAL",
    "AutoencoderModule",
    "ClusteringModel",
    "ClusteringModule",
    "Indices",
    "ModelPart",
    "check_anndata",
    "check_choice",
    "check_n_clusters",
    "check_obs_keys",
    "count_matrix",
    "draw_codes",
    "shared_docs",
]
