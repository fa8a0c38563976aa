from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdeepclust.pl._style import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 3
_COLORS = {"train": PALETTE[0], "validation": PALETTE[1]}


def history(
    model: Any, quantities: str | Sequence[str] | None = None, *, ax: Axes | Sequence[Axes] | None = None
) -> list[Axes]:
    """Learning curves over all phases of a fit, one panel a quantity, the phases marked.

    Epochs are counted through the phases. Values on the training cells and on held-out cells share a panel; a
    quantity that a phase does not have leaves a gap there.

    Parameters
    ----------
    model
        A trained model.
    quantities
        What to draw, without phase and without `train` or `validation`: `"loss"`, `"elbo"`, `"lr"`, ...
        Default: everything that was logged.
    ax
        Where to draw: as many axes as quantities. Default: a new figure.

    Returns
    -------
    The axes, in the order of `quantities`.

    Raises
    ------
    ValueError
        If the model is not trained, a quantity was not logged, or the number of axes does not fit.

    Examples
    --------
    >>> import scdeepclust as sdc
    >>> adata = sdc.datasets.simulate_counts(200, 100, n_clusters=3)
    >>> sdc.model.SCDeepCluster.setup_anndata(adata)
    >>> model = sdc.model.SCDeepCluster(adata, n_clusters=3)
    >>> model.train(max_epochs=2, pretrain_epochs=3, enable_progress_bar=False)
    >>> axes = sdc.pl.history(model, "loss")
    """
    from matplotlib.lines import Line2D

    phases: list[tuple[str, int]] = list(getattr(model, "phases_", None) or [])
    if not phases or not model.history:
        raise ValueError(
            "`model` has no history of a whole fit: call `model.train()` first. A checkpoint that was saved during "
            "training has none."
        )
    curves = _curves(model.history, phases)
    wanted = list(curves) if quantities is None else [quantities] if isinstance(quantities, str) else list(quantities)
    if missing := [name for name in wanted if name not in curves]:
        raise ValueError(f"quantities: {', '.join(missing)} was not logged; there is {', '.join(curves)}")

    axes = _new_axes(len(wanted)) if ax is None else list(np.atleast_1d(np.asarray(ax, dtype=object)))
    if len(axes) != len(wanted):
        raise ValueError(f"ax: {len(axes)} axes for {len(wanted)} quantities ({', '.join(wanted)})")
    for panel, name in zip(axes, wanted, strict=True):
        for mode, curve in curves[name]:  # one line a phase: what a loss is made of changes between phases
            marker = "." if len(curve) == 1 else None
            panel.plot(curve.index, curve.to_numpy(), color=_COLORS[mode], marker=marker)
        modes = sorted({mode for mode, _ in curves[name]})
        if len(modes) > 1:
            panel.legend([Line2D([], [], color=_COLORS[mode]) for mode in modes], modes, frameon=False)
        panel.set(title=name, xlabel="epoch")
        panel.margins(y=0.15)  # room for the names of the phases
        panel.spines[["top", "right"]].set_visible(False)
        _mark_phases(panel, phases)
    return axes


def _curves(logged: dict[str, pd.DataFrame], phases: list[tuple[str, int]]) -> dict[str, list[tuple[str, pd.Series]]]:
    """For each quantity: "train" or "validation", and the values by epoch since the start of the fit."""
    ends = np.cumsum([epochs for _, epochs in phases])
    curves: dict[str, list[tuple[str, pd.Series]]] = {}
    for key, frame in logged.items():
        phase = next((i for i, (name, _) in enumerate(phases[:-1]) if key.startswith(f"{name}_")), len(phases) - 1)
        # metrics of the last phase have no prefix
        quantity, mode = _split_mode(key if phase == len(phases) - 1 else key.removeprefix(f"{phases[phase][0]}_"))
        first_epoch = ends[phase] - phases[phase][1] + 1
        values = pd.Series(frame.iloc[:, 0].to_numpy(dtype=float), index=first_epoch + np.arange(len(frame)))
        curves.setdefault(quantity, []).append((mode, values))
    chosen = ("lr", "kl_weight")  # set, not learnt: last
    return {name: curves[name] for name in sorted(curves, key=lambda name: (name in chosen, name != "loss"))}


def _split_mode(metric: str) -> tuple[str, str]:
    """`elbo_validation` -> (`elbo`, `validation`); `train_loss` -> (`loss`, `train`)."""
    for mode in ("train", "validation"):
        if metric.endswith(f"_{mode}") or metric.startswith(f"{mode}_"):
            return metric.removesuffix(f"_{mode}").removeprefix(f"{mode}_"), mode
    return metric, "train"


def _new_axes(n: int) -> list[Axes]:
    import matplotlib.pyplot as plt

    n_columns = min(n, _COLUMNS)
    n_rows = -(-n // n_columns)
    figure, axes = plt.subplots(
        n_rows, n_columns, figsize=(3.8 * n_columns, 2.8 * n_rows), layout="constrained", squeeze=False
    )
    for unused in axes.ravel()[n:]:
        figure.delaxes(unused)
    return list(axes.ravel()[:n])


def _mark_phases(ax: Axes, phases: list[tuple[str, int]]) -> None:
    """Name each phase above its epochs, and draw a line where it ends."""
    start = 0
    for name, epochs in phases:
        if start and epochs:
            ax.axvline(start + 0.5, color="0.6", linewidth=0.8, linestyle=":")
        if epochs:
            ax.text(
                start + 0.5 + epochs / 2, 1.0, name, transform=ax.get_xaxis_transform(), ha="center", va="top",
                fontsize="small", color="0.4",
            )  # fmt: skip
        start += epochs
    ax.set_xlim(0.5, start + 0.5)
