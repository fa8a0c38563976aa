"""The records of the systems are true, and what is written about the systems by hand says what the records say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import typer

import scdeepclust as sdc
from scdeepclust.cli import _options
from scdeepclust.model._systems import COMMON, SYSTEMS

ROOT = Path(__file__).parents[2]
SITE = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Documentation"].rstrip("/")
KEYS = [system.key for system in SYSTEMS]

each_system = pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.key)


def table(head: str, rows: list[str]) -> str:
    """All of a table: a row too many in it is an error as well."""
    return "\n".join([head, "|" + "---|" * (head.count("|") - 1), *rows]) + "\n\n"


def test_readme_says_which_model_to_take():
    rows = [
        f"| [`{system.name}`]({SITE}/user_guide/{system.key}.html) | {system.idea} | {system.purpose} |"
        for system in SYSTEMS
    ]
    assert table("| model | idea | take it when |", rows) in (ROOT / "README.md").read_text()


def test_readme_says_what_write_back_writes():
    rows = [f'| `{slot}["{name}"]` | {what} |' for slot, name, what in written(COMMON, "scdeepcluster")]
    assert table("| where | what `write_back` puts there |", rows) in (ROOT / "README.md").read_text()


def test_user_guide_says_what_each_model_gives():
    rows = [f"| `{system.name}` | {system.gives} | [{system.name}]({system.key}.md) |" for system in SYSTEMS]
    text = (ROOT / "docs" / "user_guide" / "index.md").read_text()
    assert table("| model | what you get | page |", rows) in text
    assert "\n".join(["```{toctree}", ":hidden:", "", *KEYS]) in text


def test_every_system_is_public_and_nothing_else():
    assert sdc.model.__all__ == sorted(system.name for system in SYSTEMS)
    assert all(getattr(sdc.model, system.name).__name__ == system.name for system in SYSTEMS)


def test_command_line_takes_every_system_and_nothing_else(capsys):
    assert KEYS == _options._KEYS
    for system in SYSTEMS:
        assert _options._known(system.name) == system.key
    with pytest.raises(typer.Exit):
        _options._known("kmeans")
    assert ", ".join(KEYS) in " ".join(capsys.readouterr().err.split())


@each_system
def test_every_system_has_its_places(system):
    assert (ROOT / "src" / "scdeepclust" / "model" / system.key / "__init__.py").is_file()
    assert list((ROOT / "tests" / "model" / system.key).glob("test_*.py"))
    assert (ROOT / "docs" / "user_guide" / f"{system.key}.md").is_file()


@each_system
def test_every_system_cites_its_paper(system):
    entries = re.findall(r"^@\w+\{(\w+),", (ROOT / "docs" / "references.bib").read_text(), flags=re.MULTILINE)
    assert entries.count(system.citation) == 1
    page = (ROOT / "docs" / "user_guide" / f"{system.key}.md").read_text()
    cited = ",".join(re.findall(r"\{cite:p\}`([^`]+)`", page)).split(",")
    assert system.citation in cited


@each_system
def test_page_of_a_system_names_what_it_writes(system):
    page = (ROOT / "docs" / "user_guide" / f"{system.key}.md").read_text()
    for _, name, _ in written(system.writes, system.key):
        assert f"`{name}`" in page


def written(things, key: str) -> list[tuple[str, str, str]]:
    return [(thing.slot, thing.name.format(key=key), thing.what) for thing in things]
