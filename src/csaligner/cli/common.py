"""The Typer app, its consoles, and the options and helpers that the commands share."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

import csaligner
from csaligner.checks import InputError
from csaligner.urls import is_url, require_local

DATA, SEARCH, TRAIN, MEASURE, GENERATE, EXPORT = PANELS = ("Data", "Search", "Train", "Measure", "Generate", "Export")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Align image and text embeddings as samples of one distribution.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
err = Console(stderr=True)
OUTPUTS = {"out", "html", "save"}  # options that name what is written
WrongUsage: Any = typer.BadParameter.__base__  # click's UsageError, or typer's own copy of it

Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Show no progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"csaligner {csaligner.__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
]


@app.callback()
def _options(debug: Debug = False, version: Version = False) -> None:
    pass  # cli.main handles --debug: it catches the errors


def renamed(new_names: dict[str, str]) -> type[TyperCommand]:
    """Return a command class that also accepts old option names, {"--old": "--new"}, not shown in the help."""

    class Renamed(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            return super().parse_args(ctx, [_with_new_name(word, new_names) for word in args])

    return Renamed


def _with_new_name(word: str, new_names: dict[str, str]) -> str:
    name, equals, value = word.partition("=")
    return new_names.get(name, name) + equals + value


def with_local_paths(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that refuses a URL in each option that is a Path; those that take one are strings."""

    @functools.wraps(command)
    def checked(**given: Any) -> None:
        for name, value in given.items():
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, Path):
                    require_local(name, each, output=name in OUTPUTS)
        command(**given)

    return checked


def print_json(value: Any, indent: int | None = 2) -> None:
    """Print `value` as JSON; escape non-ASCII characters unless the terminal uses UTF."""
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower()
    print(json.dumps(value, indent=indent, ensure_ascii=not encoding.startswith("utf")))


def as_text(words: str) -> str:
    """Return `words` with bytes that are not valid text replaced, since tokenizers reject them."""
    return words.encode("utf-8", errors="replace").decode("utf-8")


@contextmanager
def folder_to_write(out: str, manifest: str, *, shared: bool = False, new: bool = False) -> Iterator[Path]:
    """Give the folder to write to; of a URL a copy, which is uploaded at the end. shared: other processes write to it
    too, or read it. new: there must be nothing at the URL."""
    if not is_url(out):
        yield Path(out)
        return
    from csaligner.remote import working_copy

    if shared:
        raise InputError(f"out: several processes cannot make {out}; give a folder that they share, and copy it there")
    with working_copy(out, manifest, new=new) as folder:
        yield folder
