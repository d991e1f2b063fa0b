"""Child process with memory and time limits that reads an input and reports the outcome."""

from __future__ import annotations

import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from csaligner.checks import CSAlignerError

from .mutate import mutate
from .targets import Target

MEMORY = 1 << 30  # bytes in addition to those before
RESERVED = 4 << 30  # bytes of address space reserved by allocators
IMPORTS = 10.0  # seconds, for imports before the first input
SECONDS = 10.0  # seconds per input


@dataclass(frozen=True)
class Outcome:
    """kind: read, refused (one-line error), or a failure: crash, memory, hang, died. text: the error line or the
    traceback. seed: reproduces the input."""

    kind: str
    text: str
    seed: int
    mutation: str = ""

    @property
    def good(self) -> bool:
        return self.kind in ("read", "refused")


def outcome_of(read: Any, path: Path) -> tuple[str, str]:
    before = peak()
    try:
        read(path)
        kind, text = "read", ""
    except CSAlignerError as error:
        kind, text = "refused", str(error)
        if not text or not text.isprintable():
            kind = "crash"
            text = f"not one printable line: {text!r}"
    except BaseException as error:
        kind = "memory" if isinstance(error, MemoryError) else "crash"
        text = "".join(traceback.format_exception(error)[-7:])
    if peak() - before > MEMORY:
        return "memory", f"{(peak() - before) >> 20} MiB more; {text}"
    return kind, text


def fuzz(target: Target, seeds: list[int], template: Path) -> Iterator[Outcome]:
    """Return an outcome per seed: a mutated copy of the valid input in `template`, read in a child process."""
    left = list(seeds)
    while left:
        done = 0
        for outcome in _batch(target, left, template):
            done += 1
            yield outcome
        left = left[done:]


def _batch(target: Target, seeds: list[int], template: Path) -> Iterator[Outcome]:
    """Return outcomes until the child ends or is killed; the last one gives the reason."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(out)
        with os.fdopen(into, "wb", buffering=0) as pipe:
            _child(target, seeds, template, pipe)
    os.close(into)
    with os.fdopen(out, "rb") as pipe:
        for number, seed in enumerate(seeds):
            ready = wait(pipe, child, SECONDS + IMPORTS * (number == 0) * (1 + target.heavy))
            line = pipe.readline() if ready else b""
            if not line:
                if not ready:
                    os.kill(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
                yield Outcome("died" if ready else "hang", f"status {status}", seed)
                return
            yield Outcome(**json.loads(line))
    os.waitpid(child, 0)


def wait(pipe: BinaryIO, child: int, seconds: float) -> bool:
    """Wait for output, at most the time limit of CPU time, or six times as long of wall time."""
    start, end = _worked(child), time.monotonic() + 6 * seconds
    while not select.select([pipe], [], [], 0.5)[0]:
        if _worked(child) - start > seconds or time.monotonic() > end:
            return False
    return True


def _worked(child: int) -> float:
    fields = Path(f"/proc/{child}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _child(target: Target, seeds: list[int], template: Path, pipe: BinaryIO) -> None:
    limit = size_of_process() + MEMORY + RESERVED
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        for seed in seeds:
            with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
                path, mutation = mutated(target, seed, template, Path(scratch))
                kind, text = outcome_of(target.read, path)
            record = {"kind": kind, "text": text[-3000:], "seed": seed, "mutation": mutation}
            pipe.write(json.dumps(record).encode() + b"\n")
        os._exit(0)
    finally:
        os._exit(3)


def mutated(target: Target, seed: int, template: Path, scratch: Path) -> tuple[Path, str]:
    """Return the mutated input of a seed, in `scratch`."""
    name = (template / ".path").read_text(encoding="utf-8")
    shutil.copytree(template, scratch / "input", symlinks=True)
    (scratch / "input" / ".path").unlink()
    path = (scratch / "input" / name).resolve() if name != "." else scratch / "input"
    return path, mutate(path, random.Random(seed))


def prepare(target: Target, template: Path) -> None:
    """Create the valid input of a target in a child process, so that this process stays single-threaded."""
    template.mkdir(parents=True)
    child = os.fork()
    if child == 0:
        try:
            path = target.make(template)
            (template / ".path").write_text(os.path.relpath(path, template), encoding="utf-8")
            kind, text = outcome_of(
                target.read, shutil.copytree(template, template.with_suffix(".try")) / _name(template)
            )
            if kind != "read":
                print(f"{template.name}: the valid input is not read: {text}", file=sys.stderr)
            os._exit(0 if kind == "read" else 1)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"{template.name}: no valid input could be made")


def _name(template: Path) -> str:
    return (template / ".path").read_text(encoding="utf-8")


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def size_of_process() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
