"""What can be read and not be written: put right, or found, before hours of training rather than after."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rich.markup import escape

from ._app import messages

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


def make_writable(adata: AnnData, key: str, folder: Path) -> None:
    """Change what h5ad does not hold, with a note each; a ValueError if something remains that cannot be written.

    Everything but the matrices is written once, into a temporary file in the folder of the output.
    """
    for name in ("obs", "var"):
        setattr(adata, name, _tidy(getattr(adata, name), name, key))
    if adata.raw is not None:
        whole = adata.raw.to_adata()
        var = whole.var  # each time another object where anndata is new
        if (tidy := _tidy(var, "raw.var", key)) is not var:
            whole.var = tidy
            adata.raw = whole
    for slot in ("obsm", "varm"):
        for name, value in getattr(adata, slot).items():
            if hasattr(value, "columns"):
                getattr(adata, slot)[name] = _tidy(value, f"{slot}[{name!r}]", key)
    _try(adata, folder)


def _tidy(table: pd.DataFrame, where: str, key: str) -> pd.DataFrame:
    """The table itself, or a copy that can be written."""
    changed = table.copy(deep=False)
    notes: list[str] = []
    altered = _tidy_names(changed, key, notes)
    for i, name in enumerate(changed.columns):
        values = changed.iloc[:, i]
        if (finding := _finding(values)) is None:
            continue
        altered = True
        changed[name] = values.astype(object).where(values.isna(), values.astype(str)).where(values.notna(), None)
        changed[name] = changed[name].astype("category")
        if finding:
            notes.append(f"column {name!r} {finding} and is written as text")
    for note in notes:
        messages.print(f"[yellow]Warning:[/] {escape(f'{where}: {note}')}")
    return changed if altered else table


def _tidy_names(table: pd.DataFrame, key: str, notes: list[str]) -> bool:
    """Change index and names of columns in place; returns whether anything had to be."""
    import pandas as pd
    from anndata.utils import make_index_unique

    index, name = table.index, table.index.name
    if _is_nullable_text(index.dtype):
        index = pd.Index(index.astype(object), name=name)
    if name is not None and (name in table.columns or name == key or str(name).startswith(f"{key}_")):
        notes.append(f"the name of its index, {name!r}, is that of a column too and is left out")
        index = index.rename(None)
    columns = pd.Index([str(column) for column in table.columns])
    if "_index" in columns:
        notes.append("column '_index', a reserved name, becomes 'index'")
        columns = pd.Index(["index" if column == "_index" else column for column in columns])
    if not columns.is_unique:
        notes.append(f"column {columns[columns.duplicated()][0]!r} is there twice: a number is added")
        columns = make_index_unique(columns)
    altered = index is not table.index or list(columns) != list(table.columns)
    if altered:
        table.index, table.columns = index, columns
    return altered


def _finding(values: pd.Series) -> str | None:
    """None for a column that can be written; what is wrong with it, "" where that needs no words."""
    import pandas as pd

    inferred = pd.api.types.infer_dtype(values, skipna=True) if values.dtype == object else "string"
    if _is_nullable_text(values.dtype) or inferred == "empty":
        return ""
    if inferred != "string":
        return f"has values of several types ({', '.join(sorted({type(v).__name__ for v in values.dropna()}))})"
    if isinstance(values.dtype, pd.CategoricalDtype):
        categories = values.cat.categories
        if _is_nullable_text(categories.dtype):
            return ""
        if categories.dtype == object and pd.api.types.infer_dtype(categories) not in ("string", "empty"):
            return "has categories of several types"
    return None


def _is_nullable_text(dtype: object) -> bool:
    """Whether these are strings with `pd.NA`, which not every anndata writes; the plain ones of pandas 3 it does."""
    import pandas as pd

    return isinstance(dtype, pd.StringDtype) and dtype.na_value is pd.NA


def _try(adata: AnnData, folder: Path) -> None:
    from anndata import AnnData

    tables = {
        slot: {k: v for k, v in getattr(adata, slot).items() if hasattr(v, "columns")} for slot in ("obsm", "varm")
    }
    light = AnnData(obs=adata.obs.copy(), var=adata.var.copy(), uns=adata.uns, **tables)
    with TemporaryDirectory(dir=folder, prefix=".scdeepclust") as temporary:
        try:
            light.write_h5ad(Path(temporary) / "trial.h5ad")
        except OSError:
            raise
        except Exception as error:
            lines = [line for line in str(error).splitlines() if line.strip()] + getattr(error, "__notes__", [])
            raise ValueError(
                f"the data can be read but not written as h5ad, and nothing would be left of a training: "
                f"{' '.join(lines)}. Remove or convert it first"
            ) from error
