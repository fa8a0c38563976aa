"""Sphinx configuration."""

from __future__ import annotations

import base64
import importlib
import inspect
import json
import re
from functools import cached_property
from importlib.metadata import version as distribution_version
from pathlib import Path

from latex2mathml.converter import convert
from sphinx.ext.napoleon import NumpyDocstring

project = "scdeepclust"
author = "The scdeepclust developers"
copyright = f"2026, {author}"
version = release = distribution_version("scdeepclust")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinxcontrib.bibtex",
    "sphinx_copybutton",
]
templates_path = ["_templates"]
exclude_patterns = ["_build"]
default_role = "code"

html_theme = "sphinx_book_theme"
html_title = "scdeepclust"
html_theme_options = {"show_toc_level": 2, "navbar_persistent": []}  # the search is in the side bar, once
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_math_renderer = "mathml"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # a slow test runs the notebooks

bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

napoleon_google_docstring = False
napoleon_use_rtype = False
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autosummary_generate = True


def returns_as_written(docstring: NumpyDocstring, section: str) -> list[str]:
    """Our `Returns` are prose and lists, the types being in the signature: nothing to be taken apart."""
    lines = docstring._dedent(docstring._consume_to_next_section())
    return [*docstring._format_block(":returns: ", lines), ""]


def property_as_written(docstring: NumpyDocstring) -> list[str]:
    """What stands before a colon in the text of a property is no type."""
    return docstring._consume_to_end()


NumpyDocstring._parse_returns_section = returns_as_written
NumpyDocstring._parse_attribute_docstring = property_as_written


def visit_math(translator, node, display: str = "inline") -> None:
    """Formulas as MathML, which browsers draw by themselves: pages need no network and no script."""
    from docutils.nodes import SkipNode

    latex = re.sub(r"\\(log|det)(?=[ \\])", r"\\\1\\,", node.astext())  # no space after these otherwise
    latex = re.sub(r"\\texttt\{(.*?)\}", lambda found: rf"\text{{{found[1]}}}".replace(r"\_", "_"), latex)
    mathml = convert(latex, display=display).replace("<mi>&#x0007E;</mi>", "<mo>&#x223C;</mo>")  # an operator
    translator.body.append(mathml if display == "inline" else f'<div class="formula">{mathml}</div>')
    raise SkipNode


def visit_math_block(translator, node) -> None:
    visit_math(translator, node, "block")


nitpicky = True
# What all five models are, a dictionary of axes, and what a minibatch holds: told where they are returned.
nitpick_ignore = [("py:class", name) for name in ("ClusteringModel", "Panels", "scdeepclust.nn._counts.Counts")]

# Where things of other packages are described; what is found first holds. A build has no network, hence no inventories
# of theirs, so that pages of single things are linked only where their addresses follow from their names.
PYTHON, SCVI = "https://docs.python.org/3/library", "https://docs.scvi-tools.org/en/stable/api"
ELSEWHERE = {
    r"(collections\.abc\.)?(Sequence|Iterable|Iterator|Mapping|Callable)": (
        rf"{PYTHON}/collections.abc.html#collections.abc.\2"
    ),
    r"(typing\.)?(Literal|Any)": rf"{PYTHON}/typing.html#typing.\2",
    r"(pathlib\.)?Path": rf"{PYTHON}/pathlib.html#pathlib.Path",
    r"os\.PathLike": rf"{PYTHON}/os.html#os.PathLike",
    r"(numbers\.)?(Number|Real)": rf"{PYTHON}/numbers.html#numbers.\2",
    r"(anndata\.|anndata\._core\.anndata\.)?AnnData(\.\w+)?": "https://anndata.readthedocs.io/en/stable/generated/anndata.AnnData.html",
    r"(pd|pandas|pandas\.core\.\w+)\.(DataFrame|Series)(\.\w+)?": r"https://pandas.pydata.org/docs/reference/api/pandas.\2\3.html",
    r"(np|numpy)\.ndarray": "https://numpy.org/doc/stable/reference/generated/numpy.ndarray.html",
    r"scipy\.sparse\._csr\.csr_matrix": "https://docs.scipy.org/doc/scipy/reference/generated/scipy.sparse.csr_matrix.html",
    r"scipy\.cluster\.hierarchy": "https://docs.scipy.org/doc/scipy/reference/cluster.hierarchy.html",
    r"(Axes|Figure)": lambda found: (
        "https://matplotlib.org/stable/api/"
        + {"Axes": "_as_gen/matplotlib.axes.Axes.html", "Figure": "_as_gen/matplotlib.figure.Figure.html"}[found[1]]
    ),
    r"(torch\.)?Tensor": "https://docs.pytorch.org/docs/stable/tensors.html#torch.Tensor",
    r"torch\.optim\..*": "https://docs.pytorch.org/docs/stable/optim.html",
    r"torch\.nn\.parameter\.Parameter": "https://docs.pytorch.org/docs/stable/generated/torch.nn.parameter.Parameter.html",
    r"torch\.(dist|distributions)\..*": "https://docs.pytorch.org/docs/stable/distributions.html",
    r"(sparse\.)?GCXS": "https://sparse.pydata.org/en/stable/api/sparse.GCXS.html",
    r"scanpy\.pl\.DotPlot": "https://scanpy.readthedocs.io/en/stable/api/generated/classes/scanpy.pl.DotPlot.html",
    r"scanpy\.(\w+\.\w+)": r"https://scanpy.readthedocs.io/en/stable/api/generated/scanpy.\1.html",
    r"lightning\..*|Logger|Callback": "https://lightning.ai/docs/pytorch/stable/api_references.html",
    r"scvi\.model\.(SCVI|TOTALVI)": rf"{SCVI}/reference/scvi.model.\1.html",
    r"scvi(\..*)?|AnnOrMuData": f"{SCVI}/index.html",
}


def address(target: str) -> str | None:
    """Of a thing that is not ours."""
    for pattern, url in ELSEWHERE.items():
        if found := re.fullmatch(pattern, target):
            return url(found) if callable(url) else found.expand(url)
    return None


def link_elsewhere(app, env, node, contents):
    """A reference to what is not ours."""
    from docutils.nodes import reference

    url = address(node.get("reftarget")) if node.get("refdomain") == "py" else None
    return None if url is None else reference("", "", contents, internal=False, refuri=url)


def setup(app) -> None:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.connect("missing-reference", link_elsewhere)


def copy_tutorials(source: Path, target: Path) -> None:
    """Bring the notebooks to where Sphinx looks. Their links go to ../docs/, which is .. from there."""
    notebooks = {
        path.name: path.read_text(encoding="utf-8").replace("](../docs/", "](../") for path in source.glob("*.ipynb")
    }
    for path in target.glob("*.ipynb"):
        if path.name not in notebooks:  # it was renamed or removed
            path.unlink()
    for name, text in notebooks.items():
        path = target / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:  # a page without changes is not built again
            path.write_text(text, encoding="utf-8")


def write_thumbnails(source: Path, target: Path) -> None:
    """The first figure of the cell tagged "thumbnail" of each notebook, for the gallery."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if "thumbnail" in cell["metadata"].get("tags", ()):
                figures = (output.get("data", {}).get("image/png") for output in cell["outputs"])
                png = next(figure for figure in figures if figure)
                (target / f"{path.stem}.png").write_bytes(base64.b64decode("".join(png)))


TUTORIALS = Path(__file__).parents[1] / "tutorials"
copy_tutorials(TUTORIALS, Path(__file__).parent / "tutorials")
write_thumbnails(TUTORIALS, Path(__file__).parent / "_static" / "tutorials")


def members(full_name: str, *, ours: bool) -> list[tuple[str, str]]:
    """(directive, name) of the public methods and properties of a class: written in this package, or inherited."""
    module, _, name = full_name.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    found = []
    for attribute in dir(cls):
        owner = next(base for base in cls.__mro__ if attribute in vars(base))
        is_property = isinstance(inspect.getattr_static(cls, attribute), (property, cached_property))
        if attribute.startswith("_") or not (is_property or inspect.isroutine(getattr(cls, attribute))):
            continue
        if owner.__module__.startswith("scdeepclust.") == ours:
            found.append(("autoproperty" if is_property else "automethod", attribute))
    return found


suppress_warnings = ["config.cache"]  # functions in the next setting cannot be kept between builds, and need not be
autosummary_context = {
    "members_here": lambda full_name: members(full_name, ours=True),
    "members_of_scvi": lambda full_name: members(full_name, ours=False),
}
