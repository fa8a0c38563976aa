"""How a model is fitted, whatever the model: phases, training plan, data, start labels, callbacks."""

from ._arguments import check_names
from ._callbacks import GracefulInterrupt, LearnOnly, PhaseProgressBar, RefreshTargets
from ._checkpoint import digest, kept_random_states, undone_on_failure
from ._data import (
    BlockShuffleLoader,
    CountsDataset,
    CountsManager,
    CountsSplitter,
    Minibatch,
    is_collection,
    tensors_of,
    to_device,
)
from ._datamodule import DataModuleCells, DataModuleLoaders, DataModuleRows, MinibatchForm
from ._init import (
    MAX_POINTS,
    Initialiser,
    given_labels,
    initial_labels,
    kmeans_labels,
    leiden_labels,
    means_and_sizes,
    merge_costs,
    n_communities,
    nearest,
    sample_points,
)
from ._novelty import Profiles, cluster_profiles, misfit, novelty
from ._phase import Phase, epochs_for_steps, pretraining_epochs, split_cells
from ._phases import PhasedTrainingMixin
from ._plan import ClusteringPlan, NonFiniteLossError
from ._repeats import matched, repeat_intercept, repeat_probability
from ._threads import keep_threads, one_thread
from ._tree import (
    cut,
    gap,
    least_p_below,
    mean_gap,
    members,
    separation_linkage,
    sides,
    split_p_values,
)

__all__ = [
    "MAX_POINTS",
    "BlockShuffleLoader",
    "ClusteringPlan",
    "CountsDataset",
    "CountsManager",
    "CountsSplitter",
    "DataModuleCells",
    "DataModuleLoaders",
    "DataModuleRows",
    "GracefulInterrupt",
    "Initialiser",
    "LearnOnly",
    "Minibatch",
    "MinibatchForm",
    "NonFiniteLossError",
    "Phase",
    "PhaseProgressBar",
    "PhasedTrainingMixin",
    "Profiles",
    "RefreshTargets",
    "check_names",
    "cluster_profiles",
    "cut",
    "digest",
    "epochs_for_steps",
    "gap",
    "given_labels",
    "initial_labels",
    "is_collection",
    "keep_threads",
    "kept_random_states",
    "kmeans_labels",
    "least_p_below",
    "leiden_labels",
    "matched",
    "mean_gap",
    "means_and_sizes",
    "members",
    "merge_costs",
    "misfit",
    "n_communities",
    "nearest",
    "novelty",
    "one_thread",
    "pretraining_epochs",
    "repeat_intercept",
    "repeat_probability",
    "sample_points",
    "separation_linkage",
    "sides",
    "split_cells",
    "split_p_values",
    "tensors_of",
    "to_device",
    "undone_on_failure",
]
