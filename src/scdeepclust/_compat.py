"""The only place that looks at versions of scvi-tools and anndata, or at names they do not export publicly."""

from __future__ import annotations

from importlib.metadata import version

from packaging.version import Version

SCVI_VERSION = Version(version("scvi-tools"))

#: scvi-tools >= 1.5 streams zarr stores through annbatch (Python >= 3.12 only).
HAS_ANNBATCH_DATAMODULE = SCVI_VERSION >= Version("1.5.0")


def package_versions() -> dict[str, str]:
    """Versions worth storing beside a result, as ``{distribution: version}``."""
    return {name: version(name) for name in ("scdeepclust", "scvi-tools", "torch", "anndata", "scikit-learn")}
