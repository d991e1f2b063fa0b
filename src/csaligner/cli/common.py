"""What all commands share: the program, its consoles and common options."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Align image and text embeddings as samples of one distribution.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
err = Console(stderr=True)

Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.callback()
def _options(debug: Debug = False) -> None:
    pass  # cli.main looks for --debug itself: it sees the errors
