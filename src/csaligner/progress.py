"""Progress display: a bar on a terminal or in a notebook, plain lines elsewhere, nothing if quiet."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY = 10.0  # seconds between plain lines


class Update(Protocol):
    """Called as work is done: the steps done, their total, and values, of which the losses are shown."""

    def __call__(self, done: int, total: int, values: Mapping[str, float] | None = None) -> None: ...


@contextmanager
def progress(console: Console, title: str, quiet: bool = False) -> Iterator[Update]:
    """Yield an Update that writes to `console` (use stderr to keep stdout clean)."""
    if quiet:
        yield lambda done, total, values=None: None
    elif console.is_terminal or (console.is_jupyter and find_spec("ipywidgets")):  # which rich needs there
        with _bar(console) as bar:
            task = bar.add_task(title, total=None, rate="", note="")
            started = time.monotonic()

            def draw(done: int, total: int, values: Mapping[str, float] | None = None) -> None:
                rate = done / max(1e-9, time.monotonic() - started)
                bar.update(task, completed=done, total=total, rate=f"{rate:.1f}/s", note=_note(values))

            yield draw
    else:
        yield _Lines(console, title)


def _bar(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=console, transient=True)


class _Lines:
    """A line at the start, every LINE_EVERY seconds, and at the end."""

    def __init__(self, console: Console, title: str) -> None:
        self._console, self._title = console, title
        self._started = time.monotonic()
        self._last = -LINE_EVERY

    def __call__(self, done: int, total: int, values: Mapping[str, float] | None = None) -> None:
        now = time.monotonic() - self._started
        if done < total and now - self._last < LINE_EVERY:
            return
        self._last = now
        rate = done / max(1e-9, now)
        left = (total - done) / rate if rate else 0.0
        self._console.print(
            f"{self._title}: {done}/{total}, {rate:.1f}/s, {left:.0f} s left {_note(values)}".rstrip(),
            highlight=False,
        )


def _note(values: Mapping[str, float] | None) -> str:
    losses = {name: value for name, value in (values or {}).items() if name.startswith("loss/")}
    return " ".join(f"{name.removeprefix('loss/')} {value:.3f}" for name, value in losses.items())
