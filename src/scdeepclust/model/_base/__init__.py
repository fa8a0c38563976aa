"""What the five systems share."""

from ._cells import all_genes, cell_rows, check_counts_of, check_flags
from ._checks import check_alpha, check_anndata, check_choice, check_held_out, check_n_clusters, check_obs_keys
from ._confidence import Confidence
from ._data import Indices
from ._docs import shared_docs
from ._draw import check_draw, draw_codes
from ._inherited import checked
from ._matrix import count_matrix, row_blocks
from ._model import ClusteringModel, ModelPart
from ._module import LOG_VAR_MAX, LOG_VAR_MIN, TARGET_TOTAL, AutoencoderModule, ClusteringModule

__all__ = [
    "LOG_VAR_MAX",
    "LOG_VAR_MIN",
    "TARGET_TOTAL",
    "AutoencoderModule",
    "ClusteringModel",
    "ClusteringModule",
    "Confidence",
    "Indices",
    "ModelPart",
    "all_genes",
    "cell_rows",
    "check_alpha",
    "check_anndata",
    "check_choice",
    "check_counts_of",
    "check_draw",
    "check_flags",
    "check_held_out",
    "check_n_clusters",
    "check_obs_keys",
    "checked",
    "count_matrix",
    "row_blocks",
    "draw_codes",
    "shared_docs",
]
