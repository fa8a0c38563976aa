"""The tutorials run from top to bottom."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.ipynb"))


def code_cells(path: Path) -> list[str]:
    cells = json.loads(path.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_is_committed_without_outputs_and_can_be_compiled(path):
    cells = json.loads(path.read_text())["cells"]
    assert all(not cell.get("outputs") for cell in cells)
    for source in code_cells(path):
        compile(source, path.name, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs(path, monkeypatch, tmp_path):
    import matplotlib.pyplot as plt
    import scvi

    monkeypatch.chdir(tmp_path)
    names: dict = {}
    try:
        for source in code_cells(path):
            exec(compile(source, path.name, "exec"), names)
            plt.close("all")
    finally:
        scvi.settings.seed = None
