"""The command line: counts in, clusters out, without a line of Python.

Only typer and rich are imported at the top of these files, so that ``--help`` answers at once.
"""

from ._app import app
from ._benchmark import benchmark
from ._cluster import cluster
from ._compare import compare
from ._demo import demo
from ._map import map_cells
from ._report import report

__all__ = ["app", "benchmark", "cluster", "compare", "demo", "map_cells", "report"]
