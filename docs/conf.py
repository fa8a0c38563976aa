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
html_css_files = ["pages.css", "cards.css"]
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


NumpyDocstring._parse_returns_section = returns_as_written


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


# Where types of other packages are described, by the names in our signatures (those of builtins need no link).
# A build has no network, hence no inventories of theirs.
TYPES = {
    "AnnData": "https://anndata.readthedocs.io/en/stable/generated/anndata.AnnData.html",
    "anndata.AnnData": "https://anndata.readthedocs.io/en/stable/generated/anndata.AnnData.html",
    "pd.DataFrame": "https://pandas.pydata.org/docs/reference/api/pandas.DataFrame.html",
    "pandas.DataFrame": "https://pandas.pydata.org/docs/reference/api/pandas.DataFrame.html",
    "pd.Series": "https://pandas.pydata.org/docs/reference/api/pandas.Series.html",
    "np.ndarray": "https://numpy.org/doc/stable/reference/generated/numpy.ndarray.html",
    "numpy.ndarray": "https://numpy.org/doc/stable/reference/generated/numpy.ndarray.html",
    "Axes": "https://matplotlib.org/stable/api/_as_gen/matplotlib.axes.Axes.html",
    "Figure": "https://matplotlib.org/stable/api/_as_gen/matplotlib.figure.Figure.html",
    "torch.Tensor": "https://docs.pytorch.org/docs/stable/tensors.html#torch.Tensor",
    "Path": "https://docs.python.org/3/library/pathlib.html#pathlib.Path",
    "Sequence": "https://docs.python.org/3/library/collections.abc.html#collections.abc.Sequence",
    "Iterable": "https://docs.python.org/3/library/collections.abc.html#collections.abc.Iterable",
    "Mapping": "https://docs.python.org/3/library/collections.abc.html#collections.abc.Mapping",
    "Literal": "https://docs.python.org/3/library/typing.html#typing.Literal",
    "scvi.model.SCVI": "https://docs.scvi-tools.org/en/stable/api/reference/scvi.model.SCVI.html",
    "scanpy.pl.DotPlot": "https://scanpy.readthedocs.io/en/stable/api/generated/classes/scanpy.pl.DotPlot.html",
}


def link_of_a_type(app, env, node, contents):
    """A reference to a type that is not ours."""
    from docutils.nodes import reference

    target = node.get("reftarget")
    if node.get("refdomain") != "py" or target not in TYPES:
        return None
    return reference("", "", contents, internal=False, refuri=TYPES[target])


def setup(app) -> None:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.connect("missing-reference", link_of_a_type)


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
