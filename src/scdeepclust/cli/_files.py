"""Output files of the command line: checked before the work starts, complete or not there at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def check_files(files: Sequence[Path], overwrite: bool, needs_folder: bool = True) -> None:
    """Raise a ValueError unless all files can be written."""
    if len({path.resolve() for path in files}) < len(files):
        raise ValueError("the same file is named for two outputs")
    for path in files:
        if path.is_dir():
            raise ValueError(f"{path} is a folder; name a file")
        if path.exists() and not overwrite:
            raise ValueError(f"{path} exists; use --overwrite to replace it")
        if needs_folder and not path.parent.is_dir():
            raise ValueError(f"{path}: there is no folder {path.parent}")


def check_folder(option: str, folder: Path | None, overwrite: bool = True) -> None:
    """Raise a ValueError unless the folder is there, or can be made; with `overwrite` false, it must not be there."""
    if folder is None:
        return
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"{option}: {existing} is a file; name a folder")
    if existing == folder and not overwrite:
        raise ValueError(f"{option}: {folder} exists; use --overwrite to replace it")


def check_suffix(option: str, path: Path | None, *allowed: str) -> None:
    """Raise a ValueError unless the name ends in one of the suffixes."""
    if path is not None and path.suffix.lower() not in allowed:
        raise ValueError(f"{option}: {path.name} must end in {' or '.join(allowed)}")


@contextmanager
def temporary_names(announce: Callable[[Path], None]) -> Iterator[Callable[[Path], Path]]:
    """Hand out a temporary name beside each file; on success they are renamed, on failure they are removed."""
    renames: dict[Path, Path] = {}

    def temporary(path: Path) -> Path:
        # the suffix stays: it tells matplotlib the format
        renames[path] = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
        return renames[path]

    try:
        yield temporary
        for path, name in renames.items():
            name.replace(path)
            announce(path)
    finally:
        for name in renames.values():
            name.unlink(missing_ok=True)
