from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ._app import announce, app, messages, one_line_errors, prepare_libraries, results
from ._files import check_files, check_suffix, temporary_names
from ._open import open_file
from ._options import Overwrite


@app.command()
def benchmark(
    data: Annotated[Path, typer.Argument(metavar="IN.h5ad", help="AnnData file with embeddings.", show_default=False)],
    batch_key: Annotated[str, typer.Option(help="Column of obs with the technical batch.")],
    label_key: Annotated[str, typer.Option(help="Column of obs with known labels.")],
    embedding: Annotated[
        list[str] | None,
        typer.Option(help="Name in obsm; repeat for more.", show_default="all X_... of more than 3 dimensions"),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write the table here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the table here (png, pdf).")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare embeddings, and the clusters that belong to them, by the scores of scib-metrics."""
    with one_line_errors(ValueError, OSError):
        check_files([path for path in (csv, plot) if path is not None], overwrite)
        if plot is not None:
            check_suffix("--plot", plot, ".png", ".pdf", ".svg")
        messages.print("Loading the libraries ...")
        prepare_libraries(seed=0)
        from scdeepclust.tl import benchmark_integration

        adata = open_file(data)
        names = embedding or [name for name in adata.obsm if name.startswith("X_") and adata.obsm[name].shape[1] > 3]
        if not names:
            raise ValueError(f"{data} has no embeddings; obsm holds {', '.join(adata.obsm) or 'nothing'}")
        own = {name: key if (key := name.removeprefix("X_")) in adata.obs else None for name in names}
        scores = benchmark_integration(adata, own, batch_key=batch_key, label_key=label_key)
    shown = [name for name in ("Bio conservation", "Batch correction", "Total", "Own ARI", "Own NMI") if name in scores]
    table = Table("embedding", box=SIMPLE_HEAD, pad_edge=False)
    for name in shown:
        table.add_column(name, justify="right")
    for name, row in scores[shown].iterrows():
        table.add_row(str(name), *[f"{value:.3f}" if value == value else "-" for value in row])
    results.print(table)
    with one_line_errors(OSError), temporary_names(announce) as temporary:
        if csv is not None:
            scores.to_csv(temporary(csv), float_format="%.4f")
        if plot is not None:
            import matplotlib

            matplotlib.use("Agg")
            import matplotlib.pyplot as plt

            from scdeepclust.pl import benchmark_table

            benchmark_table(scores)
            plt.savefig(temporary(plot), dpi=150)
