"""Paragraphs that the docstrings of several models share."""

from __future__ import annotations

import re
from textwrap import indent
from typing import TypeVar

T = TypeVar("T")

PARAGRAPHS = {
    "adata": """\
adata
    Data registered by :meth:`setup_anndata`.""",
    "n_clusters": """\
n_clusters
    Number of clusters. None finds it: of the communities that Leiden finds in the denoised expression of the pretrained
    model, those are joined that counts which did not make them do not tell from one population, at level ``alpha``
    (:func:`scdeepclust.tl.cluster_tree`). It may find one.""",
    "init": """\
init
    Start of the clusters: ``"merge"`` (micro-clusters merged by size and distance), ``"kmeans"``, ``"gmm"``,
    ``"leiden"``, or one label per cell.""",
    "likelihood": """\
gene_likelihood
    ``"nb"``, ``"zinb"``, ``"poisson"``, ``"normal"`` on log-normalised data, or ``"beta_binomial"`` for values
    between 0 and a largest one, such as grey values or presence and absence: no library size, no logarithm.
dispersion
    One dispersion per ``"gene"``, ``"gene-batch"``, or ``"gene-cell"``.""",
    "networks": """\
n_latent, n_hidden, n_layers, dropout_rate
    Sizes of the networks.""",
    "encode_covariates": """\
encode_covariates
    Whether batch and covariates enter the encoder too, besides the decoder.""",
    "n_init": """\
n_init
    Restarts of each k-means.""",
    "alpha": """\
alpha
    Level of the evidence for each split where the number of clusters is to be found: about the share of single
    populations that are split.""",
    "registry": """\
seed
    Seed of weights, training, split and start labels; by default ``scvi.settings.seed``.
extra_payload_autotune
    Set by :mod:`scvi.autotune`; has no effect.
registry
    Set when a saved model is loaded.""",
    "setup": """\
adata
    Data with raw counts, in memory (sparse or dense) or opened ``backed="r"``. Getters compare genes and counts with
    those registered here each time, in case they were changed in place.
layer
    Layer with the raw counts; ``X`` by default.
batch_key
    Column of ``obs`` with the technical batch, of any one type. Categories without cells do not count.
labels_key
    Column of ``obs`` with known labels. Never used in training; new cells may come without.
size_factor_key
    Column of ``obs`` with positive size factors on any scale: total counts, as for scVI, or factors about 1. The cell
    with the median one is expected to have the median total count; new cells need factors on the same scale. By
    default the total count of a cell is its library size.
categorical_covariate_keys
    Columns of ``obs`` with further categorical covariates.
continuous_covariate_keys
    Columns of ``obs`` with continuous covariates.""",
}


def shared_docs(of: T) -> T:
    """Put the paragraphs in the place of their names, as ``%(init)s`` alone on a line of the docstring."""

    def paragraph(found: re.Match) -> str:
        return indent(PARAGRAPHS[found["name"]], found["margin"])

    of.__doc__ = re.sub(r"^(?P<margin> *)%\((?P<name>\w+)\)s$", paragraph, of.__doc__ or "", flags=re.MULTILINE)
    return of
