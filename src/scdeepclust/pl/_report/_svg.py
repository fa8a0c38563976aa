"""Figures as SVG inside a page: they take its colours, light or dark, and ask for nothing outside of it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from scdeepclust.pl._style import Panels, figure_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A colour that nothing else has: what matplotlib draws in it takes the colour of the text of the page.
_INK = "#010203"
_DPI = 110


@dataclass(frozen=True)
class Picture:
    """A figure of a page.

    Parameters
    ----------
    svg
        Its code.
    caption
        What to see in it.
    width
        Its own width in pixels; it gets narrower where the page is.
    """

    svg: str
    caption: str
    width: int


@contextmanager
def page_style() -> Iterator[None]:
    """Draw in the ink of the page, on nothing, letters as letters."""
    import matplotlib as mpl

    ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "legend.labelcolor")
    style: dict[Any, Any] = dict.fromkeys(ink, _INK) | {
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "savefig.dpi": _DPI,
        "figure.dpi": _DPI,
        "svg.fonttype": "none",
        "svg.hashsalt": "scdeepclust",
        "font.family": "sans-serif",
        "font.size": 10,
        "figure.max_open_warning": 0,
    }
    with mpl.rc_context(style):
        yield


_numbers = count()


def picture(draw: Callable[[], Axes | Panels], alt: str, caption: str = "") -> Picture:
    """What a drawing function returns as a picture; its figure is closed."""
    import matplotlib.pyplot as plt

    before = set(plt.get_fignums())
    try:
        with page_style():
            drawn = draw()
            code, width = _code(figure_of(drawn))
    finally:
        for number in set(plt.get_fignums()) - before:
            plt.close(number)
    label = alt.replace("&", "and").replace('"', "'").replace("<", "")
    code = re.sub(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", rf'<svg \1 role="img" aria-label="{label}">', code, count=1)
    return Picture(code, caption or alt, width)


def _code(figure: Figure) -> tuple[str, int]:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", pad_inches=0.05, metadata={"Date": None})
    code = buffer.getvalue()
    code = code[code.index("<svg") :]
    code = re.sub(r"<metadata>.*?</metadata>", "", code, flags=re.DOTALL)
    code = re.sub(r"<!--.*?-->", "", code, flags=re.DOTALL)
    code = code.replace(_INK, "currentColor").replace("#ffffff", "var(--paper)")
    code = code.replace("xlink:href", "href")
    width = re.search(r'viewBox="0 0 ([\d.]+)', code)
    # several drawings on a page: names that they refer to must not be those of another
    prefix = f"f{next(_numbers)}-"
    code = re.sub(r'\bid="', f'id="{prefix}', code)
    code = re.sub(r'(href="#|url\(#)', rf"\1{prefix}", code)
    return re.sub(r"\n\s*", "\n", code), round(float(width.group(1)) * 96 / 72) if width else 600
