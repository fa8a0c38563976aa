from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scdeepclust.pl._style import PALETTE, finish

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from scdeepclust.tl import ConfidenceCheck

# Marker of a bin that holds this share of the cells, and the smallest one.
_LARGEST, _SMALLEST = 400, 12


def reliability(
    check: ConfidenceCheck, *, ax: Axes | None = None, show: bool | None = None, save: str | Path | None = None
) -> Axes:
    """Share of the cells that repeat against their confidence.

    On the diagonal confidence means what it says. Below it the model is too sure, above it too modest. The area of a
    point is the number of its cells; bars are 95 % intervals of a share, as if each cell repeated on its own.

    Parameters
    ----------
    check
        Result of :func:`scdeepclust.tl.check_confidence`.
    ax
        Where to draw. Default: a new figure.
    show
        Also show the figure, as a script needs it.
    save
        Also write the figure to this file; its ending sets the format.

    Returns
    -------
    The axes.

    Raises
    ------
    ValueError
        If this is no result of ``check_confidence``.

    Examples
    --------
    >>> import numpy as np, scdeepclust as sdc
    >>> rng = np.random.default_rng(0)
    >>> confidence = rng.uniform(0.3, 1, 500)
    >>> check = sdc.tl.ConfidenceCheck(confidence, rng.uniform(size=500) < confidence)
    >>> sdc.pl.reliability(check).get_xlabel()
    'confidence'
    """
    if not hasattr(check, "bins") or not hasattr(check, "calibration_error"):
        raise ValueError("`check` must be the result of `tl.check_confidence`.")
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(4.2, 4.2), layout="constrained")
    bins = check.bins
    x, y, n = (bins[column].to_numpy() for column in ("confidence", "repeats", "n_cells"))
    # Wilson's interval
    z = 1.96
    middle = (y + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(y * (1 - y) / n + z**2 / (4 * n**2))
    low, high = np.minimum(middle - half, y), np.maximum(middle + half, y)
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", zorder=1)
    ax.errorbar(x, y, yerr=[y - low, high - y], fmt="none", ecolor=PALETTE[0], elinewidth=1, zorder=2)
    ax.scatter(x, y, s=np.maximum(_LARGEST * n / n.sum(), _SMALLEST), color=PALETTE[0], alpha=0.85, zorder=3)
    ax.set(xlim=(0, 1.03), ylim=(0, 1.03), xlabel="confidence", ylabel="share of cells that repeat", aspect="equal")
    auroc = "" if np.isnan(check.auroc) else f", AUROC {check.auroc:.2f}"
    ax.set_title(f"{check.repeats:.0%} repeat, calibration error {check.calibration_error:.3f}{auroc}", fontsize=10)
    return finish(ax, show, save)
