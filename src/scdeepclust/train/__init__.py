"""How a model is fitted, whatever the model: phases, training plan, data, start labels, callbacks."""

from ._callbacks import GracefulInterrupt, PhaseProgressBar, RefreshTargets
from ._data import (
    BlockShuffleLoader,
    CountsDataset,
    CountsManager,
    CountsSplitter,
    Minibatch,
    is_collection,
    to_device,
)
from ._init import (
    Initialiser,
    given_labels,
    initial_labels,
    kmeans_labels,
    leiden_labels,
    means_and_sizes,
    merge_costs,
    n_communities,
    nearest,
    one_thread,
    sample_points,
)
from ._n_clusters import count_table
from ._phases import Phase, PhasedTrainingMixin, epochs_for_steps, split_cells
from ._plan import ClusteringPlan, NonFiniteLossError

__all__ = [
    "BlockShuffleLoader",
    "ClusteringPlan",
    "CountsDataset",
    "CountsManager",
    "CountsSplitter",
    "GracefulInterrupt",
    "Initialiser",
    "Minibatch",
    "NonFiniteLossError",
    "Phase",
    "PhaseProgressBar",
    "PhasedTrainingMixin",
    "RefreshTargets",
    "count_table",
    "epochs_for_steps",
    "given_labels",
    "initial_labels",
    "is_collection",
    "kmeans_labels",
    "leiden_labels",
    "means_and_sizes",
    "merge_costs",
    "n_communities",
    "nearest",
    "one_thread",
    "sample_points",
    "split_cells",
    "to_device",
]
