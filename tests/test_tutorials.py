"""The tutorials are committed with the outputs that their code gives."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "tutorials").glob("*.ipynb"))
EACH, ALL = 600_000, 3_000_000  # bytes

each_tutorial = pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)


def cells_of(path: Path, kind: str = "code") -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def text_of(output: dict) -> str:
    """What an output says: printed text, or the plain form of a table; nothing for a figure."""
    if output["output_type"] == "stream":
        return "".join(output["text"])
    data = output.get("data", {})
    return "" if "image/png" in data else "".join(data.get("text/plain", ""))


@each_tutorial
def test_names_of_the_package_exist(path):
    """What a cell takes from `sdc`, whatever the depth."""
    found = set()
    for cell in cells_of(path):
        for node in ast.walk(ast.parse(source(cell))):
            if isinstance(node, ast.Attribute) and re.fullmatch(r"sdc(\.\w+)+", name := ast.unparse(node)):
                found.add(name)
    assert found
    for name in found:
        value = importlib.import_module("scdeepclust")
        for part in name.split(".")[1:]:
            assert hasattr(value, part), name
            value = getattr(value, part)


@each_tutorial
def test_outputs_are_those_of_one_run_from_top_to_bottom(path):
    cells = cells_of(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    figures = [cell for cell in cells if "plt.show()" in source(cell) or re.search(r"\bsc\.pl\.\w+\(", source(cell))]
    for cell in figures:
        if "def " not in source(cell):
            assert any("image/png" in output.get("data", {}) for output in cell["outputs"]), source(cell)
    assert re.fullmatch(r"\d+ s on one core, \d+\.\d GiB at most.*\n", text_of(cells[-1]["outputs"][0]))


@each_tutorial
def test_seconds_of_a_tutorial(path):
    assert int(text_of(cells_of(path)[-1]["outputs"][0]).split()[0]) <= 300


@each_tutorial
def test_outputs_hold_no_noise(path):
    text = "\n".join(text_of(output) for cell in cells_of(path) for output in cell["outputs"])
    assert not re.search(r"[Ww]arning|(^|[\s'\"(])/[a-z]+/|\d+%\|", text)
    assert not [out for cell in cells_of(path) for out in cell["outputs"] if out.get("name") == "stderr"]


@each_tutorial
def test_figures_say_what_they_show(path):
    """For those who cannot see them; one of them stands for the tutorial in the gallery."""
    drawn = [cell for cell in cells_of(path) if any("image/png" in out.get("data", {}) for out in cell["outputs"])]
    assert all(cell["metadata"].get("mystnb", {}).get("image", {}).get("alt") for cell in drawn)
    assert sum("thumbnail" in cell["metadata"].get("tags", ()) for cell in drawn) == bool(drawn)


def test_files_stay_small():
    sizes = {path.name: path.stat().st_size for path in TUTORIALS}
    assert sizes
    assert max(sizes.values()) < EACH, sizes
    assert sum(sizes.values()) < ALL, sizes


def test_each_tutorial_has_a_card():
    page = (ROOT / "docs" / "tutorials" / "index.md").read_text()
    assert {path.stem for path in TUTORIALS} == set(re.findall(r"^(\w+)$", page, flags=re.MULTILINE))
    assert {path.stem for path in TUTORIALS} == set(re.findall(r'href="(\w+)\.html"', page))


def agreement(old: list[str], new: list[str]) -> float:
    """Share of the words in which two outputs agree, numbers as far as another machine may have rounded them."""
    same = total = 0
    for before, after in zip(old, new, strict=True):
        a, b = (re.findall(r"-?\d+\.?\d*(?:e-?\d+)?|[^\s\d]+", text) for text in (before, after))
        total += max(len(a), len(b))
        same += sum(alike(x, y) for x, y in zip(a, b, strict=False))
    return same / max(total, 1)


def alike(a: str, b: str) -> bool:
    try:
        x, y = float(a), float(b)
    except ValueError:
        return a == b
    return abs(x - y) <= max(0.02, 0.1 * max(abs(x), abs(y)))


def test_agreement():
    assert agreement(["ARI 0.701, 8 clusters"], ["ARI 0.689, 8 clusters"]) == 1
    assert agreement(["ARI 0.701, 8 clusters"], ["ARI 0.42, 8 clusters"]) == 0.8  # four words of five
    assert agreement(["a"], ["a b"]) == 0.5
    with pytest.raises(ValueError, match="zip"):
        agreement(["a"], [])


@pytest.mark.slow
@each_tutorial
def test_code_gives_the_outputs_that_are_committed(path):
    """Labels may differ in some cells on another machine, and with them some numbers of a table."""
    pytest.importorskip("nbclient")
    if "SCDEEPCLUST_DATA" in path.read_text() and "SCDEEPCLUST_DATA" not in os.environ:
        pytest.skip("SCDEEPCLUST_DATA names no folder with data")
    sys.path.insert(0, str(ROOT / "tutorials"))
    try:
        execute = importlib.import_module("execute")
    finally:
        sys.path.pop(0)
    again = [cell for cell in execute.executed(path).cells if cell.cell_type == "code"]
    before, after = [], []
    for cell, fresh in zip(cells_of(path)[:-1], again[:-1], strict=True):  # the last one tells the time
        kinds = [[sorted(out.get("data", {"text": ""})) for out in c["outputs"]] for c in (cell, fresh)]
        assert kinds[0] == kinds[1], source(cell)
        before += map(text_of, cell["outputs"])
        after += map(text_of, fresh["outputs"])
    assert agreement(before, after) > 0.8
