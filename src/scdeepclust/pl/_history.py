from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdeepclust.pl._style import PALETTE, Panels, finish

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

_COLUMNS = 3
# Relative change of a flat curve, and the difference between two that can be seen, in heights of the panel.
_FLAT, _SEEN = 1e-6, 0.01
_STEEP = 0.1  # share of a phase
_COLORS = {"train": PALETTE[0], "validation": PALETTE[1]}


def history(
    model: Any,
    quantities: str | Sequence[str] | None = None,
    *,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Panels:
    """Learning curves over all phases of a fit, one panel a quantity, the phases marked.

    Epochs are counted through the phases. Values on the training cells and on held-out cells share a panel; a
    quantity that a phase does not have leaves a gap there.

    Parameters
    ----------
    model
        A trained model.
    quantities
        What to draw, without phase and without `train` or `validation`: `"loss"`, `"elbo"`, `"lr"`, ...
        Default: everything that was logged and changes within a phase, once where two quantities have the same course.
    ax
        Where to draw: as many axes as quantities. Default: a new figure.
    show
        Also show the figure, as a script needs it.
    save
        Also write the figure to this file; its ending sets the format.

    Returns
    -------
    The axes by quantity.

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
    >>> sdc.pl.history(model, "loss")["loss"].get_xlabel()
    'epoch'
    """
    from matplotlib.lines import Line2D

    phases: list[tuple[str, int]] = list(getattr(model, "phases_", None) or [])
    if not phases or not model.history:
        raise ValueError(
            "`model` has no history of a whole fit: call `model.train()` first. A checkpoint that was saved during "
            "training has none."
        )
    curves = _curves(model.history, phases)
    given = [quantities] if isinstance(quantities, str) else quantities
    wanted = _telling(curves) if given is None else list(given)
    if missing := [name for name in wanted if name not in curves]:
        raise ValueError(f"quantities: {', '.join(missing)} was not logged; there is {', '.join(curves)}")

    axes = _new_axes(len(wanted)) if ax is None else list(np.atleast_1d(np.asarray(ax, dtype=object)))
    if len(axes) != len(wanted):
        raise ValueError(f"ax: {len(axes)} axes for {len(wanted)} quantities ({', '.join(wanted)})")
    for panel, name in zip(axes, wanted, strict=True):
        for mode, curve in curves[name]:  # one line a phase: what a loss is made of changes between phases
            marker = "." if curve.count() == 1 else None
            panel.plot(curve.index, curve.to_numpy(), color=_COLORS[mode], marker=marker)
        modes = sorted({mode for mode, _ in curves[name]})
        if len(modes) > 1:
            panel.legend([Line2D([], [], color=_COLORS[mode]) for mode in modes], modes, frameon=False)
        panel.set(title=name, xlabel="epoch")
        panel.set_ylim(_range([curve for _, curve in curves[name]]))
        panel.spines[["top", "right"]].set_visible(False)
        _mark_phases(panel, phases)
    return finish(Panels(zip(wanted, axes, strict=True)), show, save)


def _telling(curves: dict[str, list[tuple[str, pd.Series]]]) -> list[str]:
    """Quantities that change within a phase, without those that have the course of an earlier one; all if none is left.

    A course is what is seen: two curves that differ in offset and scale only look the same.
    """
    told: list[list[tuple[str, pd.Series]]] = []
    names = []
    for name, parts in curves.items():
        if all(_flat(curve.dropna()) for _, curve in parts):
            continue
        values = np.concatenate([curve.to_numpy() for _, curve in parts])
        low, high = np.nanmin(values), np.nanmax(values)
        course = [(mode, (curve - low) / (high - low)) for mode, curve in parts]
        course.sort(key=lambda part: (part[0], part[1].index[0]))
        if not any(_same_course(course, other) for other in told):
            told.append(course)
            names.append(name)
    return names or list(curves)


def _flat(curve: pd.Series) -> bool:
    return curve.empty or float(np.ptp(curve)) <= _FLAT * max(float(curve.abs().max()), 1e-12)


def _range(curves: list[pd.Series]) -> tuple[float, float]:
    """Limits of a panel: the steep first epochs of a phase may leave it where all else would be a flat line."""
    settled = np.concatenate([curve.to_numpy()[int(_STEEP * len(curve)) :] for curve in curves])
    values = np.concatenate([curve.to_numpy() for curve in curves])
    low, high = np.nanmin(values), np.nanmax(values)
    if np.nanmax(settled) - np.nanmin(settled) < (high - low) / 3:
        low, high = np.nanmin(settled), np.nanmax(settled)
    spread = (high - low) or abs(high) or 1.0
    return low - 0.05 * spread, high + 0.2 * spread  # room for the names of the phases


def _same_course(one: list[tuple[str, pd.Series]], other: list[tuple[str, pd.Series]]) -> bool:
    return len(one) == len(other) and all(
        mode == mode_of_other and curve.index.equals(its.index) and np.allclose(curve, its, atol=_SEEN)
        for (mode, curve), (mode_of_other, its) in zip(one, other, strict=True)
    )


def _curves(logged: dict[str, pd.DataFrame], phases: list[tuple[str, int]]) -> dict[str, list[tuple[str, pd.Series]]]:
    """For each quantity: "train" or "validation", and the values by epoch since the start of the fit.

    A phase that a later call of `train` ran again has a series for each time.
    """
    ends = np.cumsum([epochs for _, epochs in phases])
    last = phases[-1][0]
    curves: dict[str, list[tuple[str, pd.Series]]] = {}
    for key, frame in logged.items():
        # metrics of the last phase have no prefix
        phase = next((name for name, _ in phases if name != last and key.startswith(f"{name}_")), last)
        quantity, mode = _split_mode(key if phase == last else key.removeprefix(f"{phase}_"))
        values, before = frame.iloc[:, 0].astype(float), 0
        for (name, epochs), end in zip(phases, ends, strict=True):
            if name == phase:
                run = values[(values.index >= before) & (values.index < before + epochs)]
                if len(run):
                    curves.setdefault(quantity, []).append((mode, run.set_axis(run.index - before + end - epochs + 1)))
                before += epochs
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
