"""The program `csaligner`: it parses words, calls csaligner.runs, and prints. One module per group of commands."""

from __future__ import annotations

import sys

from csaligner.checks import CSAlignerError
from csaligner.files import disk_trouble

from . import compare, data, export, generate, pipeline, recipe, search
from .common import app, err

__all__ = ["app", "compare", "data", "export", "generate", "main", "pipeline", "recipe", "search"]

INTERRUPTED = 130  # the exit code of a program that Ctrl-C ended


def main() -> None:
    """Exit code 0: done, 1: failed, 2: wrong usage, 130: interrupted. Errors are one line; --debug shows more."""
    debug = "--debug" in sys.argv
    try:
        app()
    except (CSAlignerError, OSError) as error:
        if debug:
            raise
        named = getattr(error, "filename", None) or "a file"
        words = " ".join(str(disk_trouble(error, named, "read or written") or error).split())
        err.print(f"csaligner: {words}", style="red", highlight=False, soft_wrap=True, markup=False)
        sys.exit(1)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            err.print("csaligner: interrupted; the same command goes on from here", highlight=False)
        raise
