"""The `csaligner` program: the Typer app, its commands (one module per group), and `main`, which reports errors."""

from __future__ import annotations

import io
import os
import sys
import tempfile
import traceback
import warnings

from csaligner.checks import CSAlignerError
from csaligner.files import disk_trouble

from . import compare, data, export, generate, migrate, pipeline, recipe, search, spaces
from .common import PANELS, WrongUsage, app, err, with_local_paths

__all__ = ["app", "compare", "data", "export", "generate", "main", "migrate", "pipeline", "recipe", "search", "spaces"]

INTERRUPTED = 130  # the exit code after Ctrl-C

app.registered_commands.sort(key=lambda command: PANELS.index(str(command.rich_help_panel)))
for registered in app.registered_commands:
    assert registered.callback is not None
    registered.callback = with_local_paths(registered.callback)


def main() -> None:
    """Run the program. Exit code 0: done, 1: failed, 2: wrong usage, 130: interrupted.

    An error is one line on standard error; --debug, anywhere on the command line, shows its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # no error for characters that the terminal's encoding lacks
    arguments, debug = _without_debug(sys.argv[1:])
    said: set[str] = set()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: _warn(str(message), said)
            code = app(arguments, prog_name="csaligner", standalone_mode=False) or 0
        sys.stdout.flush()
    except WrongUsage as error:
        code = 2
        if words := error.format_message():  # empty if the help was printed
            _report(f"{words} (see {error.ctx.command_path if error.ctx else 'csaligner'} --help)")
    except BrokenPipeError:
        code = 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the last flush succeeds
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a library in Rust is not an Exception
        if debug:
            raise
        code = 1
        _report(_one_line(error))
    if code == INTERRUPTED:
        _report("Interrupted. Run the same command again to resume.")
    sys.exit(code)


def _without_debug(arguments: list[str]) -> tuple[list[str], bool]:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = [word for word in arguments[:end] if word != "--debug"]
    return options + arguments[end:], len(options) < end


def _one_line(error: BaseException) -> object:
    """Return the message of an error; write the traceback of an unexpected one to a file."""
    if isinstance(error, OSError):
        return disk_trouble(error, error.filename or "a file", "read or written") or error
    if isinstance(error, CSAlignerError):
        return error
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # torch raises a RuntimeError
        return "out of memory; give fewer workers or a smaller batch_size, or close other programs"
    if isinstance(error, RecursionError):
        return "an input is nested too deeply; give one without deep nesting (--debug shows where it was read)"
    try:
        handle, path = tempfile.mkstemp(prefix="csaligner-error-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            traceback.print_exception(error, file=file)
    except OSError:  # no temporary folder, or a full disk
        return f"unexpected {type(error).__name__}; please report it with the traceback that --debug shows"
    return f"unexpected {type(error).__name__}; please report it with the traceback in {path} (--debug shows it)"


def _warn(message: str, said: set[str]) -> None:
    """Report a warning on one line, once: the same rows are checked under the names of a file and of an argument."""
    what = message.partition(": ")[2] or message
    if what not in said:
        said.add(what)
        err.print(
            f"warning: {CSAlignerError(' '.join(message.split()))}",
            style="yellow",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )


def _report(message: object) -> None:
    line = CSAlignerError(" ".join(str(message).split()))  # without control characters
    err.print(f"csaligner: {line}", style="red", highlight=False, soft_wrap=True, markup=False)
