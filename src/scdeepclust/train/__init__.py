"""How a model is fitted, whatever the model: phases, training plan, start labels, callbacks."""

from ._callbacks import FadeIn, GracefulInterrupt, PhaseProgressBar, RefreshTargets
from ._data import BlockShuffleLoader, CountsDataset, CountsManager, CountsSplitter, Minibatch, to_device
from ._facets import crossed_groups, shared_information
from ._init import Initialiser, given_labels, initial_labels, leiden_labels, n_communities, nearest, one_thread
from ._map import FINAL_RADIUS, choose_grid, fill_dead_nodes, lay_map, vote_regions
from ._n_clusters import count_table
from ._phases import Phase, PhasedTrainingMixin, epochs_for_steps, split_cells
from ._plan import ClusteringPlan, NonFiniteLossError
from ._time import are_sequences, cell_pairs, count_pairs, require_transport, time_codes

__all__ = [
    "time_codes",
    "require_transport",
    "count_pairs",
    "cell_pairs",
    "are_sequences",
    "FINAL_RADIUS",
    "vote_regions",
    "lay_map",
    "fill_dead_nodes",
    "choose_grid",
    "BlockShuffleLoader",
    "ClusteringPlan",
    "CountsDataset",
    "CountsManager",
    "CountsSplitter",
    "FadeIn",
    "GracefulInterrupt",
    "Initialiser",
    "Minibatch",
    "NonFiniteLossError",
    "Phase",
    "PhaseProgressBar",
    "PhasedTrainingMixin",
    "RefreshTargets",
    "count_table",
    "crossed_groups",
    "epochs_for_steps",
    "given_labels",
    "initial_labels",
    "one_thread",
    "leiden_labels",
    "n_communities",
    "nearest",
    "shared_information",
    "split_cells",
    "to_device",
]
