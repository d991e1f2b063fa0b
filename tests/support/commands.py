"""Runs `csaligner` in this process, to save the start-up time of Python."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from csaligner import cli


def csaligner(*words: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `csaligner` in `folder`; returns exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    command = ["csaligner", *map(str, words)]
    before, arguments = Path.cwd(), sys.argv
    try:
        os.chdir(folder or before)
        sys.argv = command
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stop:
            cli.main()
    finally:
        os.chdir(before)
        sys.argv = arguments
    return subprocess.CompletedProcess(command, int(stop.value.code or 0), out.getvalue(), err.getvalue())
