"""What the scripts share: the rows of a CSV, the Markdown page written from them, and the options."""

from __future__ import annotations

import argparse
import fcntl
import fnmatch
import os
import re
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from _charts import Lead, save

HERE = Path(__file__).resolve().parent


class Report:
    """Rows, page and options of one script.

    Parameters
    ----------
    script
        The `__file__` of the script; rows and page have its name.
    keys
        Columns that name what is measured at once: new rows take the place of all old ones that agree in them.
    seeds
        Default of the option `--seeds`; without it there is none.
    packages
        Packages whose versions are noted beside those of the package, torch and scvi-tools.
    files
        What the page says of where the rows are, if they are in more than one file.
    """

    def __init__(
        self,
        script: str,
        keys: Sequence[str],
        *,
        seeds: str | None = None,
        packages: Sequence[str] = (),
        files: str | None = None,
    ):
        self.name = Path(script).stem
        self.keys = list(keys)
        self.seeds = seeds
        self.packages = packages
        self.files = files or f"{self.name}.csv"
        self.csv = HERE / "results" / f"{self.name}.csv"
        self.page = HERE.parent / "docs" / "benchmarks" / f"{self.name}.md"
        self.is_moved = False  # whether rows or page are elsewhere by option

    # -- rows ---------------------------------------------------------------------------------------------------------

    def read(self) -> pd.DataFrame:
        if not self.csv.exists():
            return pd.DataFrame(columns=self.keys)
        return pd.read_csv(self.csv, float_precision="round_trip")  # what is read is written again as it was

    def has(self, **values: object) -> bool:
        """Whether there are rows with these values."""
        rows = self.read()
        return bool(np.logical_and.reduce([rows[name] == value for name, value in values.items()]).any())

    def append(self, rows: pd.DataFrame) -> None:
        """Add rows, under a lock, so that runs side by side lose nothing."""
        rows = rows.assign(versions=versions(*self.packages))
        self.csv.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.csv.parent):
            old = self.read()
            if len(old):
                both = pd.concat([old, rows], ignore_index=True)
                place = both.groupby(self.keys, sort=False).ngroup()  # by first appearance: new rows go where old were
                new = both.index >= len(old)
                place = place[new | ~place.isin(place[new])]
                rows = both.loc[place.sort_values(kind="stable").index]
            write_csv(self.csv, rows)

    # -- page ---------------------------------------------------------------------------------------------------------

    def write(self, title: str, lead: Lead, *parts: str, rows: pd.DataFrame) -> None:
        """Write the page and its chart.

        Title, what it starts with, the parts, where the rows are, and the versions that they were measured with.
        """
        figure = self.page.parent / "figures" / f"{self.page.stem}.svg"
        save(lead.figure, figure)
        files = [path.name for path in sorted(self.csv.parent.glob(self.files))]
        links = ", ".join(f"{{download}}`{name} <../../benchmarks/results/{name}>`" for name in files)
        foot = f"Written by `benchmarks/{self.name}.py`; do not edit. Every row: {links}."
        shown = f"```{{image}} figures/{figure.name}\n:alt: {lead.alt}\n:width: 100%\n```"
        parts = (f"# {title}", shown, lead.text, *parts, "## Rows and versions", foot, versions_line(rows))
        self.page.parent.mkdir(parents=True, exist_ok=True)
        self.page.write_text("\n\n".join(part for part in parts if part) + "\n")
        print(f"wrote {self.page}")

    # -- options ------------------------------------------------------------------------------------------------------

    def parser(self, doc: str | None, **choices: Sequence[str]) -> argparse.ArgumentParser:
        """Options of all scripts, and one for each list of names of which a part can be chosen."""
        parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        for option, names in choices.items():
            which = "names or patterns, separated by commas"
            parser.add_argument(f"--{option}", type=partial(matching, names=names), default="*", help=which)
        if self.seeds:
            parser.add_argument("--seeds", type=number_list, default=self.seeds, help="for example 0-4 or 0,3")
        parser.add_argument("--again", action="store_true", help="measure rows that are there already once more")
        parser.add_argument("--table", action="store_true", help="measure nothing, only write the page")
        parser.add_argument("--out", type=Path, default=self.csv, help="the CSV to extend")
        parser.add_argument("--page", type=Path, default=self.page, help="the Markdown page to write")
        return parser

    def parse(self, parser: argparse.ArgumentParser) -> argparse.Namespace:
        arguments = parser.parse_args()
        self.is_moved = (self.csv, self.page) != (arguments.out, arguments.page)
        self.csv, self.page = arguments.out, arguments.page
        warnings.filterwarnings("ignore")
        return arguments


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder and not the file in it is locked: the file is replaced, and a lock would go with the old one."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_csv(path: Path, rows: pd.DataFrame, **options: str) -> None:
    """Replace a file at once, so that nobody ever reads half of it."""
    part = path.with_suffix(".part")
    rows.to_csv(part, index=False, **options)
    part.replace(path)


def between(path: Path, start: str, end: str, text: str) -> None:
    """Put a text between two marks of a file."""
    before, found, rest = path.read_text().partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{path} has no {start} ... {end}")
    path.write_text(f"{before}{start}\n{text}\n{end}{after}")
    print(f"wrote {path}")


def versions(*more: str) -> str:
    """Versions of this package (with its commit), torch, scvi-tools and others."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True, check=False
    ).stdout.strip()
    packages = " ".join(f"{name}={version(name)}" for name in ("torch", "scvi-tools", *more))
    return f"scdeepclust={version('scdeepclust')}({commit or 'no git'}) {packages}"


def versions_line(rows: pd.DataFrame) -> str:
    """All versions that occur, without commits."""
    if "versions" not in rows:
        return ""
    texts = [re.sub(r"\(.*?\)", "", text) for text in rows["versions"].dropna().unique()]
    return f"Versions: {' '.join(dict.fromkeys(word for text in texts for word in text.split()))}."


def markdown(lines: list[list[str]]) -> str:
    """A table from its lines, the head first."""
    head, *body = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *body])


def number_list(text: str) -> list[int]:
    """'0-4' or '0,2,5' or a mixture."""
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers.extend(range(int(first), int(last or first) + 1))
    return numbers


def matching(patterns: str, names: Sequence[str]) -> list[str]:
    """The names that match one of the patterns, in their order."""
    found = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns.split(","))]
    if not found:
        raise argparse.ArgumentTypeError(f"nothing matches {patterns!r}; there are: {', '.join(names)}")
    return found
