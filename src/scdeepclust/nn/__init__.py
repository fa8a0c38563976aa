"""Pure torch that two systems or more use: tensors in, tensors out."""

from ._beta_binomial import BetaBinomialCounts
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
from ._mixture import GaussianMixture, clamp_component_log_var, diag_gaussian_log_prob, standard_normal_kl
from ._networks import CountDecoder, CountHeads, CovariateMLP, Covariates, Dispersion, GeneLikelihood
from ._noise import normal_like
from ._precision import as_double, as_wide, check_precision, full_precision

__all__ = [
    "BetaBinomialCounts",
    "CountDecoder",
    "CountHeads",
    "Counts",
    "CovariateMLP",
    "Covariates",
    "Dispersion",
    "FastLinear",
    "GaussianMixture",
    "GeneLikelihood",
    "as_double",
    "as_wide",
    "beta_binomial_log_likelihood",
    "check_precision",
    "clamp_component_log_var",
    "counts_from_csr",
    "counts_from_dense",
    "diag_gaussian_log_prob",
    "full_precision",
    "gaussian_log_likelihood",
    "nb_log_likelihood",
    "normal_like",
    "poisson_log_likelihood",
    "standard_normal_kl",
    "use_fast_linear",
    "zinb_log_likelihood",
]
