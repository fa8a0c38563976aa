"""The application, its consoles, and what all commands do about errors, warnings and seeds."""

from __future__ import annotations

import logging
import re
import shlex
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

app = typer.Typer(
    name="scdeepclust",
    help="Deep clustering of single-cell counts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
# Results go to stdout, all that accompanies them to stderr. No highlighting: numbers in colours carry no meaning.
results = Console(highlight=False)
messages = Console(stderr=True, highlight=False, soft_wrap=True)

# Those of `_compat.package_versions`, which loads anndata.
_DISTRIBUTIONS = ("scdeepclust", "scvi-tools", "torch", "anndata", "scikit-learn")


def _print_versions(wanted: bool) -> None:
    if wanted:
        for name in _DISTRIBUTIONS:
            results.print(f"{name} {version(name)}")
        raise typer.Exit()


@app.callback()
def _options_of_all_commands(
    show_version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_versions, help="Show versions, for a bug report."),
    ] = False,
) -> None: ...


def prepare_libraries(seed: int) -> None:
    """Set the seed, and keep what libraries say about themselves off the terminal; our own warnings stay."""
    warnings.simplefilter("ignore")
    import scvi

    for name in ("lightning.pytorch", "lightning.fabric", "scvi"):
        logging.getLogger(name).setLevel(logging.ERROR)
    scvi.settings.seed = seed
    warnings.simplefilter("ignore")  # importing has put filters before ours
    warnings.filterwarnings("always", module=r"scdeepclust\.")
    warnings.showwarning = lambda text, *_, **__: messages.print(f"[yellow]Warning:[/] {escape(str(text))}")


def announce(path: Path) -> None:
    messages.print(f"Wrote {escape(str(path))}")


@contextmanager
def one_line_errors(*kinds: type[Exception], exit_code: int = 2) -> Iterator[None]:
    """End with one line instead of a traceback: these are mistakes in the input, not in the program."""
    try:
        yield
    except kinds as error:
        messages.print(f"[red]Error:[/] {escape(as_typed(' '.join(str(error).split())))}")
        raise typer.Exit(exit_code) from error


def command_line(context: typer.Context) -> str:
    """The command that is running, with what was typed, to be run again."""
    words = ["scdeepclust", str(context.info_name)]
    for option in context.command.params:
        source, value = context.get_parameter_source(str(option.name)), context.params.get(str(option.name))
        if source is None or source.name != "COMMANDLINE":
            continue
        name = [] if option.param_type_name == "argument" else [option.opts[0]]
        for one in value if isinstance(value, list | tuple) else [value]:
            words += name if one is True else [*name, str(one)]
    return shlex.join(words)


# Arguments that are lists, and options that are repeated instead; and one with another name.
_REPEATED = {
    "guides": "guide",
    "n_jobs": "jobs",
    **{f"{kind}_covariate_keys": f"{kind}_covariate" for kind in ("categorical", "continuous")},
}


def as_typed(text: str) -> str:
    """Arguments of the models as the options of the commands: `batch_key` as --batch-key."""
    commands = typer.main.get_group(app).commands.values()
    options = {option.name: option.opts[0] for command in commands for option in command.params}

    def translated(match: re.Match) -> str:
        option = options.get(_REPEATED.get(match["name"], match["name"]), "")
        if not option.startswith("--"):
            return match[0]
        value = (match["value"] or "").strip("'\"")
        return f"{option} {value}" if value else option

    return re.sub(r"`(?P<name>\w+)(=(?P<value>[^`]*))?`", translated, text)
