"""From files to one AnnData whose counts are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from ._app import messages

if TYPE_CHECKING:
    from anndata import AnnData

    from scdeepclust.datasets._read import Found


def open_counts(
    paths: Sequence[Path], layer: str | None = None, raw: bool = False, modality: str | None = None
) -> tuple[AnnData, str | None]:
    """The cells of all files, and the layer that holds their counts (None: X); what was found is said."""
    from scdeepclust.datasets._read import find_counts

    found = []
    for path in paths:
        found.append(find_counts(path, layer=layer, raw=raw, modality=modality))
        messages.print(escape(found[-1].summary))
        _check_for_empty_cells(path, found[-1])
    return (found[0].adata, found[0].layer) if len(found) == 1 else _as_one(found, short_names(paths))


def open_file(path: Path) -> AnnData:
    """What one file holds, counts or not."""
    from scdeepclust.datasets._formats import open_as_anndata

    return open_as_anndata(path, None)[0]


def counts_of(adata: AnnData, layer: str | None):
    return adata.X if layer is None else adata.layers[layer]


def _check_for_empty_cells(path: Path, found: Found) -> None:
    import numpy as np

    totals = np.ravel(counts_of(found.adata, found.layer).sum(axis=1))
    if n_empty := int((totals == 0).sum()):
        raise ValueError(
            f"{path}: {n_empty:,} of {len(totals):,} cells have no counts, such as "
            f"{found.adata.obs_names[int((totals == 0).argmax())]!r}. Give the filtered matrix of CellRanger or "
            "CellBender, or leave them out with `scanpy.pp.filter_cells(adata, min_counts=1)`"
        )


# --- several files


def short_names(paths: Sequence[Path]) -> list[str]:
    """Names of the files, with as many of their folders as it takes to tell them apart."""
    stems = [path.absolute().with_suffix("") if path.is_file() else path.absolute() for path in paths]
    for n in range(1, max(len(stem.parts) for stem in stems) + 1):
        names = ["/".join(stem.parts[-n:]) for stem in stems]
        if len(set(names)) == len(names):
            return names
    raise ValueError("the same file is given twice")


def _as_one(found: Sequence[Found], names: Sequence[str]) -> tuple[AnnData, str | None]:
    """Genes that all files have, cells of all; obs["file"] says which."""
    import anndata
    import pandas as pd

    layer = found[0].layer
    if any(file.layer != layer for file in found):
        layer = "counts"
        for file in found:
            file.adata.layers[layer] = counts_of(file.adata, file.layer)
    parts = [file.adata for file in found]
    shared = set(parts[0].var_names).intersection(*(part.var_names for part in parts))
    each = ", ".join(f"{name}: {part.n_vars:,}" for name, part in zip(names, parts, strict=True))
    if len(shared) < 2:
        examples = ", ".join(repr(part.var_names[0]) for part in parts[:3])
        raise ValueError(
            f"the files share {len(shared)} genes ({each}), which are named like {examples}; give all files the same "
            "kind of gene names"
        )
    unique = not pd.Index([name for part in parts for name in part.obs_names]).has_duplicates
    adata = anndata.concat(
        dict(zip(names, parts, strict=True)),
        join="inner",
        label="file",
        index_unique=None if unique else "-",
        merge="same",
    )
    left_out = len(set().union(*(part.var_names for part in parts))) - len(shared)
    messages.print(
        escape(
            f"{adata.n_obs:,} cells of {len(parts)} files, {len(shared):,} genes that all have ({each}); {left_out:,} "
            "genes that some lack are left out"
        )
    )
    return adata, layer


# --- where a saved model looks for counts


@contextmanager
def counts_at(adata: AnnData, layer: str | None, wanted: str | None) -> Iterator[None]:
    """Have the counts in another place for a while."""
    if layer == wanted:
        yield
        return
    counts = counts_of(adata, layer)
    before = adata.X if wanted is None else adata.layers.get(wanted)
    if wanted is None:
        adata.X = counts
    else:
        adata.layers[wanted] = counts
    try:
        yield
    finally:
        if wanted is None:
            adata.X = before
        elif before is None:
            del adata.layers[wanted]
        else:
            adata.layers[wanted] = before
