"""The examples in docstrings, in the README and in the quickstart run and print what they say."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import tomllib
from pathlib import Path

import pytest

import scdeepclust

ROOT = Path(__file__).parents[1]
SOURCE = Path(scdeepclust.__file__).parent
WITH_EXAMPLES = sorted(
    ".".join(("scdeepclust", *path.relative_to(SOURCE).with_suffix("").parts))
    for path in SOURCE.rglob("*.py")
    if ">>> " in path.read_text()
)


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_docstring_examples(module, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    outcome = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert outcome.attempted > 0
    assert outcome.failed == 0


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_pages_run_from_top_to_bottom(page, monkeypatch, tmp_path):
    import matplotlib as mpl

    mpl.use("Agg")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    assert blocks
    names: dict = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    adata = names["adata"]
    assert adata.obs["scdeepcluster"].nunique() > 1
    assert (tmp_path / "my_model").is_dir()


FAILURES = ROOT / "docs" / "user_guide" / "when_something_fails.md"
QUOTED = [
    line
    for block in re.findall(r"^```text\n(.*?)^```", FAILURES.read_text(), flags=re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]


def texts_of_the_code() -> set[str]:
    """All strings of the package; what is filled in is left out."""
    texts = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                texts.add("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(node.value)
    return texts


@pytest.fixture(scope="module")
def code() -> str:
    return "\n".join(texts_of_the_code())


@pytest.mark.parametrize("line", QUOTED)
def test_messages_on_the_page_of_failures_are_those_of_the_code(line, code):
    for fragment in line.split("..."):
        assert fragment.strip(" :;,()") in code


def test_the_page_of_failures_quotes_messages():
    assert len(QUOTED) > 25
    assert all(max(map(len, line.split("..."))) > 10 for line in QUOTED)


PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "user_guide").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page):
    """Functions and classes that a page mentions exist, under the name it gives them."""
    named = set(re.findall(r"\b(?:sdc|scdeepclust)\.(tl|pl|model|datasets|train|nn)\.(\w+)", page.read_text()))
    named |= set(re.findall(r"`(tl|pl|datasets)\.([a-z_]\w*)`", page.read_text()))
    modules = {part: importlib.import_module(f"scdeepclust.{part}") for part in {part for part, _ in named}}
    any_model = ("model", "M")
    assert not [f"{part}.{name}" for part, name in named - {any_model} if not hasattr(modules[part], name)]


def test_links_of_the_readme_work_outside_of_the_repository():
    """Pages and images by full addresses, those of `pyproject.toml`, and each leads to a file that is here."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    targets = re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert len(targets) > 15
    assert not [target for target in targets if not target.startswith("https://")]
    for target in targets:
        if target.startswith(f"{urls['Documentation']}/"):
            page = target.removeprefix(f"{urls['Documentation']}/").removesuffix(".html")
            assert (ROOT / "docs" / f"{page}.md").exists(), target
        for kind in ("blob", "raw"):
            if target.startswith(start := f"{urls['Source']}/{kind}/main/"):
                assert (ROOT / target.removeprefix(start)).exists(), target


@pytest.mark.parametrize("page", ["cheat_sheet.md", "glossary.md", "choosing.md", "coming_from.md", "faq.md"])
def test_keys_of_a_page_are_written(page):
    from scdeepclust.model._systems import COMMON, OF_NEW_CELLS

    names = {(written.slot, written.name) for written in (*COMMON, *OF_NEW_CELLS)}
    text = (ROOT / "docs" / "user_guide" / page).read_text()
    assert set(re.findall(r'(obs|obsm|uns|varm|layers)\["([^"]*\{key\}[^"]*)"\]', text)) <= names
