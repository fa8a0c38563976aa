"""One HTML page about a clustering, a comparison, or both, that opens without a network."""

from __future__ import annotations

from scdeepclust.pl._report._page import write_page

__all__ = ["write_page"]
