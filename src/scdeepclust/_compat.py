"""The only place that looks at versions of scvi-tools and anndata, or at names they do not export publicly."""

from __future__ import annotations

from importlib.metadata import version


def package_versions() -> dict[str, str]:
    """Versions worth storing beside a result, as ``{distribution: version}``."""
    return {name: version(name) for name in ("scdeepclust", "scvi-tools", "torch", "anndata", "scikit-learn")}
