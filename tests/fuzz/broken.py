"""Self-test of the fuzzer with deliberately faulty readers: python -m tests.fuzz.broken"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from csaligner.checks import InputError

from . import sandbox
from .targets import Target
from .valid import words


def _crash(path: Path) -> None:
    raise KeyError("x")


def _die(path: Path) -> None:
    os.abort()


def _hang(path: Path) -> None:
    while True:
        pass


def _grow(path: Path) -> None:
    len(bytearray(b"x" * (1100 << 20)))


def _refuse(path: Path) -> None:
    raise InputError("one line")


def main() -> None:
    readers: tuple[Callable[[Path], Any], ...] = (_crash, _die, _hang, _grow, Path.read_bytes, _refuse)
    with tempfile.TemporaryDirectory() as scratch:
        template = Path(scratch) / "valid"
        sandbox.prepare(Target(words, Path.read_bytes), template)
        patient = sandbox.SECONDS
        sandbox.IMPORTS = 0.0
        for read in readers:
            sandbox.SECONDS = 2.0 if read is _hang else patient  # allocating a gigabyte takes seconds on a busy machine
            seeds = [0] if read is not Path.read_bytes else [1]
            for outcome in sandbox.fuzz(Target(words, read), seeds, template):
                print(outcome.kind)


if __name__ == "__main__":
    main()
