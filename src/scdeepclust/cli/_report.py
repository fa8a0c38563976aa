from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._app import announce, app, messages, one_line_errors, prepare_libraries
from ._files import check_files, check_suffix
from ._options import Overwrite

if TYPE_CHECKING:
    from anndata import AnnData


@app.command()
def report(
    source: Annotated[
        Path, typer.Argument(metavar="RESULTS.h5ad|DIR", help="Results of cluster or of compare.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
    key: Annotated[
        str | None,
        typer.Option(help="Results, or run of a comparison.", show_default="the only ones there are"),
    ] = None,
    batch_key: Annotated[
        str | None, typer.Option(help="Column of obs with the batch.", show_default="that of the model")
    ] = None,
    label_key: Annotated[str | None, typer.Option(help="Column of obs with known labels.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write one HTML page that says which clusters to trust, and opens without a network."""
    with one_line_errors(ValueError, OSError):
        check_files([out], overwrite)
        check_suffix("--out", out, ".html", ".htm")
        if not source.exists():
            raise ValueError(f"{source}: no such file or folder")
        prepare_libraries(seed=0)
        write_report(source, out, key=key, batch_key=batch_key, label_key=label_key)


def write_report(source: AnnData | Path, out: Path, **options: str | None) -> None:
    """Write the page, for other commands too: of results, a file with them, or the folder of a comparison."""
    import matplotlib

    matplotlib.use("Agg")
    from scdeepclust.tl import report as write

    messages.print("Writing the report ...")
    try:
        write(source, out, **options)
    except ValueError as error:
        text = str(error)
        for name in ("key", "batch_key", "label_key", "out"):
            text = text.replace(f"`{name}`", "--" + name.replace("_", "-"))
        raise ValueError(text.replace("`source`: ", "")) from error
    announce(out)
