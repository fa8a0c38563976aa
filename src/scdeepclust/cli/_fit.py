"""From a file to a trained model, and from a trained model to files: what `demo` and `cluster` share."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

from scdeepclust._keys import ResultKeys

from ._app import announce, messages, one_line_errors, results
from ._files import temporary_names
from ._progress import a_line_every
from ._signals import train_until_signal

if TYPE_CHECKING:
    from anndata import AnnData

    from scdeepclust.model._base import ClusteringModel, Confidence

# What a disk, and what the writer of h5ad may say.
WRITING = (OSError, ValueError, TypeError, RuntimeError)
_SCORES = ("ARI", "NMI", "accuracy", "homogeneity", "completeness")

# --- data in


def set_up(
    adata: AnnData,
    model: str,
    layer: str | None = None,
    keys: Mapping[str, Any] | None = None,
    n_clusters: int | None = None,
    n_top_genes: int | None = None,
    **options,
) -> ClusteringModel:
    """An untrained model of the variable genes, after all checks of the input.

    `keys` are arguments of `setup_anndata`, `options` those of the model; what is None is left to them.
    """
    from scdeepclust import model as models
    from scdeepclust.model._base import check_anndata, check_obs_keys
    from scdeepclust.model._systems import SYSTEMS
    from scdeepclust.tl import select_genes

    keys = {name: value for name, value in (keys or {}).items() if value}
    options = {name: value for name, value in options.items() if value is not None}
    check_anndata(adata, layer)
    check_obs_keys(adata, keys)
    if n_top_genes is not None and n_top_genes < adata.n_vars:
        genes = select_genes(adata, n_top_genes, layer=layer, batch_key=keys.get("batch_key"))
        train_on = adata[:, genes.to_numpy()].copy()
    else:
        train_on = adata
    model_class = getattr(models, next(system.name for system in SYSTEMS if system.key == model))
    model_class.setup_anndata(train_on, layer=layer, **keys)
    return model_class(train_on, n_clusters=n_clusters, **options)


# --- computing


class Training(NamedTuple):
    """Seconds that a training took, and the exit code if a signal cut it short."""

    seconds: float
    code: int


def train(
    fitted: ClusteringModel,
    adata: AnnData,
    max_epochs: int | None,
    pretrain_epochs: int | None = None,
    *,
    confidence: Confidence | None = None,
    **options,
) -> Training:
    """Train, and write the results into `adata`."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from scdeepclust.train import NonFiniteLossError

    data = fitted.adata
    messages.print(f"Training {type(fitted).__name__} on {data.n_obs:,} cells x {data.n_vars:,} genes ...")
    started = time.perf_counter()
    options = {name: value for name, value in options.items() if value is not None}
    if not results.is_terminal:
        options["callbacks"] = [a_line_every(10.0)]
    run = partial(fitted.train, max_epochs, pretrain_epochs, enable_progress_bar=results.is_terminal, **options)
    with (
        one_line_errors(NonFiniteLossError, exit_code=1),
        one_line_errors(ValueError, OSError, MisconfigurationException),
    ):
        code = train_until_signal(run, fitted)
    seconds = time.perf_counter() - started
    if code:  # who stops a training does not want to wait for another one
        confidence = "posterior"
    elif confidence == "repeat":
        messages.print("Looking whether the cells would be there again ...")
    fitted.write_back(adata, confidence=confidence)
    forget_setup(adata)
    return Training(seconds, code)


def forget_setup(adata: AnnData) -> None:
    """Remove what scvi-tools notes in data it works on."""
    for slot in (adata.obs, adata.obsm, adata.uns):
        for name in [name for name in slot if name.startswith("_scvi")]:
            del slot[name]


def print_sizes(adata: AnnData, key: str, seconds: float) -> None:
    sizes = adata.obs[key].value_counts()
    results.print(
        f"{len(sizes)} clusters of {adata.n_obs:,} cells in {seconds:.0f} s; {sizes.max():,} to {sizes.min():,} cells, "
        f"median confidence {adata.obs[ResultKeys(key).confidence].median():.2f}"
    )


def print_scores(
    adata: AnnData, columns: dict[str, str], seconds: dict[str, float], label_key: str, title: str
) -> None:
    """Table of scores: `columns` and `seconds` by the name of the method."""
    from scdeepclust.tl import score_clusters

    scores = score_clusters(adata, list(columns.values()), label_key=label_key)
    table = Table("method", title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in (*_SCORES, "seconds"):
        table.add_column(name, justify="right")
    for method, column in columns.items():
        table.add_row(method, *[f"{scores.loc[column, name]:.2f}" for name in _SCORES], f"{seconds[method]:.1f}")
    results.print(table)


# --- files out


def save(
    adata: AnnData,
    key: str,
    h5ad: Path,
    labels_csv: Path | None,
    plot: Path | None,
    *,
    label_key: str | None,
    seed: int,
) -> None:
    """Write the files that are asked for: labels first, which hardly can fail, and the picture last."""
    if labels_csv is not None:
        with temporary_names(announce) as temporary:
            _write_labels(adata, key, temporary(labels_csv))
    try:
        with temporary_names(announce) as temporary:
            adata.write_h5ad(temporary(h5ad), compression="gzip")
    except Exception:
        if labels_csv is None:
            with temporary_names(announce) as temporary:
                _write_labels(adata, key, temporary(_unused(h5ad.with_suffix(".labels.csv"))))
        raise
    if plot is not None:
        messages.print("Computing a UMAP ...")
        with temporary_names(announce) as temporary:
            _draw(adata, key, temporary(plot), label_key, seed)


def _write_labels(adata: AnnData, key: str, path: Path) -> None:
    table = adata.obs[[key, ResultKeys(key).confidence]].set_axis(["cluster", "confidence"], axis=1)
    table.to_csv(path, index_label="cell", float_format="%.4f")


def _unused(path: Path) -> Path:
    return next(p for n in range(1000) if not (p := path.with_stem(f"{path.stem}{n or ''}")).exists())


def _draw(adata: AnnData, key: str, path: Path, label_key: str | None, seed: int) -> None:
    """Draw a UMAP of the latent space with clusters, confidence and known labels."""
    import matplotlib

    matplotlib.use("Agg")
    import scanpy as sc
    from anndata import AnnData

    from scdeepclust import pl

    embedding = ResultKeys(key).embedding
    drawn = AnnData(obs=adata.obs, obsm={embedding: adata.obsm[embedding]})
    # scanpy's default search breaks with some versions of scipy on more than 8,000 cells
    sc.pp.neighbors(drawn, use_rep=embedding, transformer="sklearn", random_state=seed)
    sc.tl.umap(drawn, random_state=seed)
    pl.overview(drawn, key, label_key=label_key).savefig(path, dpi=150)
