"""Drawing of SVG files in processes of their own, which a drawing may crash or exhaust.

A process is kept for the next drawing, and replaced if a drawing ends it.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from csaligner.checks import CSAlignerError

from .draw_worker import ANSWER, REQUEST

SECONDS = 5  # of processor time for one drawing, one more for rounding; not on Windows
MEMORY = 1 << 30  # bytes of address space of a process; Linux only
PATIENCE = 60.0  # seconds on the clock, on every system
DPI = 96.0  # CSS pixels per inch, for the units "pt", "mm" and "in"
MOST = max(2, min(4, os.cpu_count() or 1))  # processes; more threads than these wait
REMEMBERED = 10_000  # drawings that ended a process, which are not tried again
PROGRAM = Path(__file__).with_name("draw_worker.py")


class DrawingError(ValueError):
    """A drawing that cannot be drawn; the message is the reason."""


def draw(drawing: str, size: int) -> bytes:
    """Return a PNG of an SVG, its longer side `size` pixels. Thread-safe.

    Raises DrawingError if the renderer refuses it, crashes, or exceeds SECONDS or MEMORY; ImportError without the
    renderer; CSAlignerError if no process can be started.
    """
    return _workers.draw(drawing.encode("utf-8", "replace"), size)


class _EndedError(Exception):
    """A process that ended before it answered. slow: because of the limits of time, not by a crash."""

    def __init__(self, slow: bool) -> None:
        super().__init__()
        self.slow = slow

    def __str__(self) -> str:
        if self.slow:
            return f"takes more than {SECONDS} seconds to draw"
        return f"crashes the renderer, or needs more than {MEMORY >> 20} MB of memory"


class _Worker:
    """A process that draws. drawn: number of its answers."""

    def __init__(self) -> None:
        self.drawn = 0
        command = [sys.executable, "-I", "-S", str(PROGRAM), _renderer(), str(MEMORY), str(DPI)]
        pipe = subprocess.PIPE
        try:  # unbuffered: a forked process must not flush what this one has written
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, bufsize=0)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise CSAlignerError(f"drawing: the process that draws SVG files cannot be started ({reason})") from None

    def draw(self, drawing: bytes, size: int) -> bytes | str:
        """Return the PNG, or the reason of the renderer. Raises _EndedError."""
        expired = threading.Event()
        timer = threading.Timer(PATIENCE, self._expire, [expired])
        timer.daemon = True
        timer.start()
        try:
            content = self._ask(drawing, size)
        finally:
            timer.cancel()
        if content is None:
            code = self.end()
            raise _EndedError(expired.is_set() or code == -getattr(signal, "SIGXCPU", signal.SIGTERM))
        self.drawn += 1
        return content

    def _expire(self, expired: threading.Event) -> None:
        expired.set()
        self._process.kill()

    def _ask(self, drawing: bytes, size: int) -> bytes | str | None:
        """Send a drawing and return the answer, None if there is none."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        rest = memoryview(REQUEST.pack(len(drawing), size, SECONDS) + drawing)
        with suppress(BrokenPipeError):  # it has ended: there is no answer either
            while rest:
                rest = rest[self._process.stdin.write(rest) or 0 :]
        head = _read(self._process.stdout, ANSWER.size)
        if head is None:
            return None
        good, length = ANSWER.unpack(head)
        content = _read(self._process.stdout, length)
        return content if good or content is None else content.decode("utf-8", "replace")

    def end(self) -> int:
        """End the process, wait for it and return its exit code."""
        self.close()
        try:
            return self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def close(self) -> None:
        """Close the pipes, which ends an idle process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def abandon(self) -> None:
        """Close the pipes of a process of the process that this one was forked from."""
        self.close()
        self._process.returncode = 0  # another process waits for it


class _Workers:
    """The processes of this process; one thread uses each at a time."""

    def __init__(self) -> None:
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._free = threading.BoundedSemaphore(MOST)
        self._refused: dict[bytes, str] = {}  # by SHA-256 of size and drawing

    def draw(self, drawing: bytes, size: int) -> bytes:
        key = hashlib.sha256(b"%d " % size + drawing).digest()
        if key in self._refused:
            raise DrawingError(self._refused[key])
        try:
            with self._free:
                found = self._draw(drawing, size)
        except _EndedError as error:
            if len(self._refused) < REMEMBERED:
                self._refused[key] = str(error)
            raise DrawingError(str(error)) from None
        if isinstance(found, str):
            raise DrawingError(found)
        return found

    def _draw(self, drawing: bytes, size: int) -> bytes | str:
        """Ask an idle or a new process; ask a new one again if an old one crashes, perhaps after earlier drawings."""
        try:
            worker = self._idle.pop()
        except IndexError:
            worker = _Worker()
        while True:
            self._busy.add(worker)
            try:
                found = worker.draw(drawing, size)
            except _EndedError as error:
                if error.slow or not worker.drawn:
                    raise
            except BaseException:  # interrupted: its answer would be taken for that of the next drawing
                worker.end()
                raise
            else:
                self._idle.append(worker)
                return found
            finally:
                self._busy.discard(worker)
            worker = _Worker()

    def end(self) -> None:
        """End the idle processes; a busy one ends with its pipes, when this process does."""
        while self._idle:
            self._idle.pop().end()

    def abandon(self) -> None:
        for worker in (*self._idle, *self._busy):
            worker.abandon()


def _renderer() -> str:
    """Return the folder that contains the renderer. Raises ImportError without one."""
    found = find_spec("resvg_py")
    if found is None or found.origin is None:
        raise ImportError("resvg_py")
    return str(Path(found.origin).parents[1])


def _read(pipe: IO[bytes], length: int) -> bytes | None:
    """Return `length` bytes, None if the pipe ends before."""
    parts = []
    while length:
        part = pipe.read(min(length, 1 << 20))
        if not part:
            return None
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _after_fork() -> None:
    global _workers  # noqa: PLW0603
    _workers.abandon()
    _workers = _Workers()


@atexit.register
def _at_exit() -> None:
    _workers.end()


_workers = _Workers()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
