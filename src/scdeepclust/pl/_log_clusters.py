"""Clusters and pictures of them, for the loggers of a training that goes on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from lightning.pytorch.callbacks import Callback

from scdeepclust.pl._own_view import own_views
from scdeepclust.pl._style import category_colors, figure_of
from scdeepclust.train import kept_random_states, one_thread

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

    from scdeepclust.pl._style import Panels

_KEY = "clusters"


class LogClusters(Callback):
    """Report clusters, and pictures of them, to the loggers of a training while it goes on.

    Losses and learning rates of every phase go to the logger by themselves. This callback adds, every few epochs and
    at the end of each phase:

    - the share of the cells in each cluster, the number of clusters with cells, and their share of all clusters;
    - against known labels the adjusted Rand index, the mutual information and the accuracy;
    - pictures: the embedding with clusters, confidence and known labels, the sizes of the clusters, the confusion with
      known labels, and what only this model shows: gates, facets, or the map.

    TensorBoard and Weights & Biases show the pictures; other loggers get them as PNG files in the folder ``figures``
    of theirs. Before a phase that has no clusters yet, the embedding is coloured by known labels and batches alone.
    What is learnt is the same with and without this callback.

    Parameters
    ----------
    model
        The model that is to be trained.
    every_n_epochs
        How often, in epochs of a phase.
    label_key
        Column of ``obs`` with known labels; by default the ``labels_key`` of ``setup_anndata``, if there is one.
    max_cells
        Cells to look at, drawn once at random where there are more. The UMAP of these cells takes most of the time.

    Raises
    ------
    ValueError
        If an argument is out of range or there is no such column; from ``train``, if it was given no logger.

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> from lightning.pytorch.loggers import CSVLogger
    >>> adata = sdc.datasets.simulate_counts(200, 100, n_clusters=3)
    >>> sdc.model.GMVAE.setup_anndata(adata, labels_key="cell_type")
    >>> model = sdc.model.GMVAE(adata, n_clusters=3)
    >>> watch = sdc.pl.LogClusters(model, every_n_epochs=2)
    >>> options = {"logger": CSVLogger("logs"), "callbacks": [watch], "enable_progress_bar": False}
    >>> model.train(max_epochs=2, pretrain_epochs=2, **options)

    Clusters keep their number while they are learnt; in the end ``train`` numbers them by size.
    """

    def __init__(self, model: Any, every_n_epochs: int = 10, *, label_key: str | None = None, max_cells: int = 2000):
        for name, value in {"every_n_epochs": every_n_epochs, "max_cells": max_cells}.items():
            least = 1 if name == "every_n_epochs" else 20  # fewer have no neighbours to draw a map by
            if not isinstance(value, int | np.integer) or value < least:
                raise ValueError(f"`{name}` must be a whole number of at least {least}; found {value!r}.")
        if not hasattr(model, "registry_") or getattr(model, "adata", None) is None:
            raise ValueError("`model` must be a model of scdeepclust with its data.")
        setup = model.registry_["setup_args"]
        label_key = setup.get("labels_key") if label_key is None else label_key
        if label_key is not None and label_key not in model.adata.obs:
            raise ValueError(
                f"`label_key`: obs has no column {label_key!r}; it has {', '.join(map(str, model.adata.obs))}."
            )
        self.model = model
        self.every_n_epochs = int(every_n_epochs)
        self.max_cells = int(max_cells)
        self.label_key = label_key
        self.batch_key = setup.get("batch_key")
        self._cells: AnnData | None = None

    def on_fit_start(self, trainer, pl_module):
        """Raise a ValueError where nobody listens."""
        if not trainer.loggers:
            raise ValueError("`logger`: LogClusters has nothing to report to. Give `train` a Lightning logger.")

    def on_train_epoch_end(self, trainer, pl_module):
        """Report at every so many epochs, and at the last one of a phase."""
        epoch = trainer.current_epoch + 1
        last = epoch == trainer.max_epochs or trainer.should_stop
        if trainer.is_global_zero and (last or epoch % self.every_n_epochs == 0):
            try:
                with kept_random_states(), one_thread(), self._as_if_trained():
                    self._report(trainer, pl_module)
            except Exception as error:  # noqa: BLE001 - a picture is no reason to lose a training of hours
                warnings.warn(f"LogClusters could not report epoch {epoch}: {error!r}", stacklevel=2)

    @contextmanager
    def _as_if_trained(self) -> Iterator[None]:
        """Let the getters of the model work in the middle of a fit."""
        model = self.model
        kept = model.is_trained_, model.phase_, model.module.training
        model.is_trained_, model.phase_ = True, None
        try:
            yield
        finally:
            model.is_trained_, model.phase_ = kept[:2]
            model.module.train(kept[2])

    def _report(self, trainer: Any, plan: Any) -> None:
        adata = self._sample()
        if self.model._has_clusters:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what a fit says of its end does not hold in its middle
                self.model.write_back(adata, _KEY, confidence="posterior")
            self._keep_colors(adata)
        else:
            adata.obsm[f"X_{_KEY}"] = self.model.get_latent_representation(adata)
        numbers = self._numbers(adata)
        named = {f"{plan.prefix}{name}": value for name, value in numbers.items()}
        for logger in trainer.loggers:
            if named:
                logger.log_metrics(named | {"epoch": trainer.current_epoch}, step=plan.global_step)
        _lay_out(adata)
        for name, draw in self._drawings(adata):
            png = _png(draw)
            for logger in trainer.loggers:
                _log_picture(logger, f"{plan.prefix}{name}", png, plan.global_step)
        for logger in trainer.loggers:
            logger.save()

    def _sample(self) -> AnnData:
        """The cells that are looked at, the same ones in each epoch."""
        if self._cells is None:
            adata = self.model.adata
            n = min(self.max_cells, adata.n_obs)
            chosen = np.sort(np.random.default_rng(0).choice(adata.n_obs, n, replace=False))
            self._cells = adata[chosen].to_memory().copy()
            self._cells.obsm.clear()
        return self._cells

    def _keep_colors(self, adata: AnnData) -> None:
        """Give a cluster the same colour in all epochs, whichever others have cells."""
        names = adata.obs[_KEY].cat.categories
        adata.uns.pop(f"{_KEY}_colors", None)
        colors = category_colors(adata, _KEY, self.model.n_clusters)
        adata.uns[f"{_KEY}_colors"] = [colors[int(name)] for name in names]

    def _numbers(self, adata: AnnData) -> dict[str, float]:
        from scdeepclust.tl import score_clusters

        if not self.model._has_clusters:
            return {}
        sizes = adata.obs[_KEY].value_counts(normalize=True)
        n_clusters = self.model.n_clusters
        shares = {f"cluster_share/{k}": float(sizes.get(str(k), 0.0)) for k in range(n_clusters)}
        used = int((sizes > 0).sum())
        numbers = {"clusters/used": used, "clusters/used_share": used / n_clusters} | shares
        if self._labels_known(adata):
            scores = score_clusters(adata, _KEY, label_key=self.label_key).loc[_KEY]
            numbers |= {f"known_labels/{name}": float(scores[name]) for name in ("ARI", "NMI", "accuracy")}
        return numbers

    def _labels_known(self, adata: AnnData) -> bool:
        return self.label_key is not None and bool(adata.obs[self.label_key].notna().any())

    def _drawings(self, adata: AnnData) -> Iterator[tuple[str, Callable[[], Axes | Panels]]]:
        """Names of pictures, and what draws them."""
        from scdeepclust.pl import _clusters, _embedding

        label_key = self.label_key if self._labels_known(adata) else None
        known = [column for column in (label_key, self.batch_key) if column is not None]
        if not self.model._has_clusters:
            for column in known:
                yield f"embedding_{column}", partial(_embedding.draw_categories, adata, column, "X_umap", None)
            return
        yield "embedding", lambda: _embedding.overview(adata, _KEY, label_key=label_key)
        yield "cluster_sizes", lambda: _clusters.cluster_sizes(adata, _KEY)
        if label_key is not None:
            yield "confusion", lambda: _confusion(adata, label_key)
        for view in own_views(adata, _KEY, known):
            yield view.name, view.draw


def _lay_out(adata: AnnData) -> None:
    """A UMAP of the embedding, which starts from that of the epoch before, so that cells stay where they were."""
    import scanpy as sc

    start = "X_umap" if "X_umap" in adata.obsm else "spectral"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.neighbors(adata, use_rep=f"X_{_KEY}", transformer="sklearn", random_state=0)
        sc.tl.umap(adata, init_pos=start, random_state=0)


def _confusion(adata: AnnData, label_key: str) -> Axes:
    """Share of each cluster in the cells of each known type."""
    import matplotlib.pyplot as plt

    table = pd.crosstab(adata.obs[label_key], adata.obs[_KEY])
    n_rows, n_columns = table.shape
    _, ax = plt.subplots(figsize=(2.8 + 0.4 * n_columns, 1.4 + 0.3 * n_rows), layout="constrained")
    image = ax.imshow(table.div(table.sum(axis=1), axis=0), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), count in np.ndenumerate(table.to_numpy()):
        if count:
            dark = count > 0.6 * table.iloc[row].sum()
            ax.text(column, row, count, ha="center", va="center", fontsize="small", color="white" if dark else "black")
    ax.set_xticks(range(n_columns), table.columns)
    ax.set_yticks(range(n_rows), table.index)
    ax.set(xlabel="cluster", ylabel=label_key, title="cells of each known type in each cluster")
    ax.figure.colorbar(image, ax=ax, label="share of the type")
    return ax


def _png(draw: Callable[[], Axes | Panels]) -> bytes:
    """A drawing as a file; the figure is closed, so that a notebook does not show it."""
    import matplotlib.pyplot as plt

    before, file = set(plt.get_fignums()), BytesIO()
    try:
        figure_of(draw()).savefig(file, format="png", dpi=100, bbox_inches="tight", facecolor="white")
    finally:
        for number in set(plt.get_fignums()) - before:
            plt.close(number)
    return file.getvalue()


def _log_picture(logger: Any, name: str, png: bytes, step: int) -> None:
    """Give a picture to a logger in the way that it takes them in, or put it into a file beside its log."""
    if hasattr(logger.experiment, "add_image"):  # TensorBoard
        logger.experiment.add_image(name, _pixels(png), step, dataformats="HWC")
    elif hasattr(logger, "log_image"):  # Weights & Biases
        logger.log_image(name, [_pixels(png)], step=step)
    elif (folder := logger.log_dir or logger.save_dir) is not None:
        path = Path(folder) / "figures" / f"{name}_{step:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png)


def _pixels(png: bytes) -> np.ndarray:
    """Height x width x 3, uint8."""
    from matplotlib.image import imread

    return (255 * imread(BytesIO(png))[..., :3]).round().astype(np.uint8)
