"""Run the notebooks of this folder from top to bottom and write them back with their outputs.

    python tutorials/execute.py                     # all of them
    python tutorials/execute.py first_steps somvae  # those whose name begins so

What changes from run to run without meaning is taken out, so that a difference between commits is one of code or of
results: what goes to stderr, times of execution, versions of the kernel, and the colours of figures beyond 256.
"""

from __future__ import annotations

import base64
import io
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
SECONDS_A_CELL = 1800
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook at `path` with fresh outputs; the file stays as it is."""
    notebook = nbformat.read(path, as_version=4)
    # the models are so small that more threads only wait for each other
    os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:  # what a notebook saves does not stay
        client = NotebookClient(notebook, timeout=SECONDS_A_CELL, resources={"metadata": {"path": folder}})
        client.execute()
    normalise(notebook)
    return notebook


def normalise(notebook: nbformat.NotebookNode) -> None:
    """Keep what a reader sees."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                print(f"  not kept, cell {number}: {output.text.strip()[:300]}", file=sys.stderr)
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if png := output.get("data", {}).get("image/png"):
                output.data["image/png"] = fewer_colours(png)
                output.metadata = nbformat.from_dict({})


def fewer_colours(png: str) -> str:
    """A PNG, in base64, as one of 256 colours: a third of the size, and no difference to be seen."""
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    small = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(small, format="PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def main() -> None:
    """Run those that are named, or all."""
    paths = sorted(FOLDER.glob("*.ipynb"))
    if sys.argv[1:]:
        paths = [path for path in paths if path.stem.startswith(tuple(sys.argv[1:]))]
    for path in paths:
        print(path.name, flush=True)
        nbformat.write(executed(path), path)
        print(f"  {path.stat().st_size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
