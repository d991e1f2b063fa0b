"""The program `csaligner`: it parses words, calls csaligner.pipeline, and prints. One module per group of commands."""

from __future__ import annotations

import sys
from typing import Any

import typer

from csaligner.checks import CSAlignerError
from csaligner.files import disk_trouble

from . import compare, data, export, generate, pipeline, recipe, search
from .common import app, err

__all__ = ["app", "compare", "data", "export", "generate", "main", "pipeline", "recipe", "search"]

INTERRUPTED = 130  # the exit code of a program that Ctrl-C ended
WrongUsage: Any = typer.BadParameter.__base__  # UsageError of click, or of what typer took over from it


def main() -> None:
    """Exit code 0: done, 1: failed, 2: wrong usage, 130: interrupted. Errors are one line; --debug shows more."""
    debug = "--debug" in sys.argv
    try:
        code = app(prog_name="csaligner", standalone_mode=False) or 0
    except WrongUsage as error:
        code = 2
        if words := error.format_message():  # none where the help was printed instead
            _say(f"{words} (see {error.ctx.command_path if error.ctx else 'csaligner'} --help)")
    except (CSAlignerError, OSError) as error:
        if debug:
            raise
        named = getattr(error, "filename", None) or "a file"
        code = 1
        _say(disk_trouble(error, named, "read or written") or error)
    if code == INTERRUPTED:
        _say("interrupted; the same command goes on from here")
    sys.exit(code)


def _say(words: object) -> None:
    line = CSAlignerError(" ".join(str(words).split()))  # what a terminal would obey is taken out
    err.print(f"csaligner: {line}", style="red", highlight=False, soft_wrap=True, markup=False)
