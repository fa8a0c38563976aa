"""Pure torch: tensors in, tensors out."""

from ._coding_rate import coding_rate, compressed_rate
from ._dec import assignment_kl, column_sums, student_t_log_assignment, target_distribution
from ._gates import GateBudget, GatingNetwork, draw_gates, expected_open
from ._independence import dependence
from ._ladder import LadderBody, LadderEncoder
from ._likelihoods import (
    Counts,
    beta_binomial_log_likelihood,
    counts_from_csr,
    counts_from_dense,
    gaussian_log_likelihood,
    nb_log_likelihood,
    poisson_log_likelihood,
    zinb_log_likelihood,
)
from ._linear import FastLinear, use_fast_linear
from ._mixture import GaussianMixture, StyleOffsets, clamp_component_log_var, diag_gaussian_log_prob
from ._networks import CountDecoder, CountHeads, CovariateMLP, Covariates, Dispersion, GeneLikelihood
from ._noise import normal_like
from ._prior import MixtureDivergence, PriorEstimator, mixture_divergence, standard_normal_kl
from ._som import (
    Grid,
    arrival_loss,
    neighbourhood,
    node_distances,
    smoothed_transitions,
    som_loss,
    stationary_distribution,
    topographic_error,
)

__all__ = [
    "CountDecoder",
    "CountHeads",
    "Counts",
    "CovariateMLP",
    "Covariates",
    "Dispersion",
    "FastLinear",
    "GateBudget",
    "GatingNetwork",
    "GaussianMixture",
    "GeneLikelihood",
    "Grid",
    "MixtureDivergence",
    "PriorEstimator",
    "LadderBody",
    "LadderEncoder",
    "StyleOffsets",
    "arrival_loss",
    "assignment_kl",
    "beta_binomial_log_likelihood",
    "clamp_component_log_var",
    "coding_rate",
    "column_sums",
    "compressed_rate",
    "counts_from_csr",
    "counts_from_dense",
    "dependence",
    "diag_gaussian_log_prob",
    "draw_gates",
    "expected_open",
    "gaussian_log_likelihood",
    "mixture_divergence",
    "nb_log_likelihood",
    "neighbourhood",
    "node_distances",
    "normal_like",
    "poisson_log_likelihood",
    "smoothed_transitions",
    "som_loss",
    "stationary_distribution",
    "standard_normal_kl",
    "student_t_log_assignment",
    "target_distribution",
    "topographic_error",
    "use_fast_linear",
    "zinb_log_likelihood",
]
