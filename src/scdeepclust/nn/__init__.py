"""Pure torch: tensors in, tensors out."""

from ._dec import assignment_kl, column_sums, student_t_log_assignment, target_distribution
from ._likelihoods import (
    Counts,
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

__all__ = [
    "CountDecoder",
    "CountHeads",
    "Counts",
    "CovariateMLP",
    "Covariates",
    "Dispersion",
    "FastLinear",
    "GaussianMixture",
    "GeneLikelihood",
    "StyleOffsets",
    "assignment_kl",
    "clamp_component_log_var",
    "column_sums",
    "counts_from_csr",
    "counts_from_dense",
    "diag_gaussian_log_prob",
    "gaussian_log_likelihood",
    "nb_log_likelihood",
    "normal_like",
    "poisson_log_likelihood",
    "student_t_log_assignment",
    "target_distribution",
    "use_fast_linear",
    "zinb_log_likelihood",
]
