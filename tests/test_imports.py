"""The shape of the package: who may import whom, what an import costs, and that the docs list what is public."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import scdeepclust

SOURCE = Path(scdeepclust.__file__).parent
API_PAGE = Path(__file__).parents[1] / "docs" / "api.md"
PUBLIC_MODULES = ("datasets", "model", "pl", "tl")

# A part may import from parts with a smaller number and from itself.
ORDER = ("_compat _keys datasets", "nn", "train", "model", "tl", "pl", "cli")
LAYERS = {part: number for number, parts in enumerate(ORDER) for part in parts.split()}

# Names of a part that users look for there although they draw: they stand with the part of their neighbours, and may
# import as the last one that they call.
ABOVE = {"tl/_report.py": "pl"}

# The largest file and function that are still one idea.
MAX_LINES = 400


def part_of(path: Path) -> str:
    """'model' for model/gmvae/_model.py, and '_keys' for the single file _keys.py."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    """Dotted names below the package that a file imports, anywhere in it and in whatever form."""
    package = ("scdeepclust", *path.relative_to(SOURCE).parts[:-1])
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            stem = ".".join(filter(None, (base, node.module)))
            modules |= {f"{stem}.{alias.name}" for alias in node.names}
    return {name.partition(".")[2] for name in modules if name.split(".")[0] == "scdeepclust"}


def imports_of_ours(path: Path) -> set[str]:
    """Parts of the package that a file imports."""
    return {name.split(".")[0] for name in imported_modules(path)}


FILES = sorted(SOURCE.rglob("*.py"), key=str)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_run_one_way(path):
    part = part_of(path)
    if part == "__init__":
        assert imports_of_ours(path) <= set(PUBLIC_MODULES)
        return
    assert part in LAYERS, f"{part} is new: give it a place in LAYERS"
    part = ABOVE.get(path.relative_to(SOURCE).as_posix(), part)
    for other in imports_of_ours(path) - {part, part_of(path), "__version__"}:
        assert other in LAYERS, f"imports all of scdeepclust: say which part (found {other!r})"
        assert LAYERS[other] < LAYERS[part], f"{part} must not import {other}"


ROOMS = sorted(path.parent for path in (SOURCE / "model").glob("*/__init__.py") if path.parent.name != "_base")


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_imports_no_other_room_and_the_foundation_none(room):
    others = {other.name for other in ROOMS} - {room.name}
    rooms = {name.split(".")[1] for path in room.glob("*.py") for name in imported_modules(path) if "model." in name}
    assert rooms <= {"_base", room.name}
    foundation = {name for path in (SOURCE / "model" / "_base").glob("*.py") for name in imported_modules(path)}
    assert not {name for name in foundation if name.startswith("model.") and name.split(".")[1] in {*others, room.name}}


@pytest.mark.parametrize("shared", ["nn", "train"])
def test_what_one_room_alone_uses_is_at_home_there(shared):
    """A name of the shared parts has two users at least: rooms, or files of the other shared parts."""
    users: dict[str, set[str]] = {}
    for path in FILES:
        user = path.parent.name if path.parent in ROOMS else "shared"
        words = Counter(re.findall(r"\w+", path.read_text()))
        for name in importlib.import_module(f"scdeepclust.{shared}").__all__:
            defined = re.search(rf"^(def|class) {name}\b|^{name}\b.* = ", path.read_text(), flags=re.MULTILINE)
            if path.name != "__init__.py" and words[name] > bool(defined):
                users.setdefault(name, set()).add(user)
    assert not {name: users[name] for name in users if len(users[name]) == 1 and "shared" not in users[name]}


def test_no_import_circle():
    """Those that only a type checker follows included."""
    graph = {}
    for path in FILES:
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        graph[name] = imported_modules(path)
    names = set(graph)
    graph = {
        name: {next(part for part in (other, other.rpartition(".")[0], "") if part in names or not part)
               for other in others} - {"", "__init__"}
        for name, others in graph.items()
    }  # fmt: skip
    TopologicalSorter({name: others for name, others in graph.items() if name != "__init__"}).prepare()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_is_one_idea(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES


def test_the_reader_of_imports_sees_every_form(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    (tmp_path / "nn").mkdir()
    file = tmp_path / "nn" / "_a.py"
    file.write_text(
        "import scdeepclust.model\nfrom scdeepclust import tl\nfrom ..pl import history\nfrom ._b import c\n"
        "def f():\n    from scdeepclust.train._plan import Plan\n"
    )
    assert imports_of_ours(file) == {"model", "tl", "pl", "nn", "train"}


def modules_after(statements: str) -> set[str]:
    code = f"import json, sys\n{statements}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_is_cheap():
    loaded = modules_after("import scdeepclust")
    assert not {"torch", "scvi", "scanpy", "sklearn", "matplotlib", "pandas"} & loaded


def test_everything_public_costs_little_more_than_scvi():
    """Libraries that only some functions need are not loaded before these are called."""
    names = ", ".join(f"scdeepclust.{module}" for module in PUBLIC_MODULES)
    extra = modules_after(f"import scvi, {names}") - modules_after("import scvi")
    heavy = {"scanpy", "scib_metrics", "sklearn", "matplotlib", "igraph", "leidenalg", "umap", "jax", "typer"}
    assert not heavy & extra


def public_names() -> list[str]:
    return [
        f"{module}.{name}"
        for module in PUBLIC_MODULES
        for name in importlib.import_module(f"scdeepclust.{module}").__all__
    ]


def test_version_is_that_of_the_distribution():
    import importlib.metadata

    assert scdeepclust.__version__ == importlib.metadata.version("scdeepclust")


def test_submodules_come_by_attribute_and_others_do_not():
    for module in PUBLIC_MODULES:
        assert getattr(scdeepclust, module).__name__ == f"scdeepclust.{module}"
    assert set(dir(scdeepclust)) == {*PUBLIC_MODULES, "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'preprocessing'"):
        _ = scdeepclust.preprocessing


def test_api_page_lists_exactly_what_is_public():
    listed = re.findall(rf"^\s+((?:{'|'.join(PUBLIC_MODULES)})\.\w+)$", API_PAGE.read_text(), flags=re.MULTILINE)
    assert sorted(listed) == sorted(public_names())


@pytest.mark.parametrize("name", public_names())
def test_what_is_public_is_documented_with_an_example(name):
    module, attribute = name.split(".")
    documentation = getattr(importlib.import_module(f"scdeepclust.{module}"), attribute).__doc__
    assert documentation
    assert ">>> " in documentation
