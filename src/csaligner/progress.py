"""Progress display: a bar on a terminal or in a notebook, plain lines elsewhere, nothing if quiet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

LINE_EVERY = 10.0  # seconds between plain lines
MEASURED = 3.0  # seconds of work before a rate and the time left are shown


class Update(Protocol):
    """Called as work is done: the steps done, their total, and values, of which the losses are shown."""

    def __call__(self, done: int, total: int, values: Mapping[str, float] | None = None) -> None: ...


Step = Callable[[str], Update]  # begins a step of that name


@contextmanager
def progress(console: Console, title: str, quiet: bool = False) -> Iterator[Update]:
    """Yield an Update that writes to `console` (use stderr to keep stdout clean)."""
    with steps(console, quiet) as step:
        yield step(title)


@contextmanager
def steps(console: Console, quiet: bool = False) -> Iterator[Step]:
    """Yield a function that begins a step of work, by its name, and returns the step's Update."""
    if quiet:
        yield lambda title: _silent
    elif console.is_terminal or (console.is_jupyter and find_spec("ipywidgets")):  # which rich needs there
        with _bar(console) as bar:
            yield lambda title: _Bar(bar, title)
    else:
        yield lambda title: _Lines(console, title)


def _silent(done: int, total: int, values: Mapping[str, float] | None = None) -> None:
    pass


class Rate:
    """Rate of a step from its second update on, since the first may include loading of models, or work of an
    earlier call."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: tuple[int, float] | None = None

    def text(self, done: int, total: int) -> str:
        """Return rate and time left, "" until MEASURED seconds of work are measured."""
        now = self._clock()
        if self._first is None or done < self._first[0]:
            self._first = (done, now)
            return ""
        work, seconds = done - self._first[0], now - self._first[1]
        if work <= 0 or seconds < MEASURED:
            return ""
        rate = work / seconds
        return f"{rate:.1f}/s" + (f", {duration((total - done) / rate)} left" if done < total else "")


def duration(seconds: float) -> str:
    """Return a duration in words: 12 s, 3 min, 1 h 5 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _bar(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=console, transient=True)


class _Bar:
    """One task of a bar; a finished task is removed when the next one begins."""

    def __init__(self, bar: Progress, title: str) -> None:
        for task in bar.task_ids:
            bar.remove_task(task)
        self._bar, self._rate = bar, Rate()
        self._task: TaskID = bar.add_task(title, total=None, rate="", note="")

    def __call__(self, done: int, total: int, values: Mapping[str, float] | None = None) -> None:
        if not total:  # nothing to do
            return
        rate = self._rate.text(done, total)
        self._bar.update(self._task, completed=done, total=total, rate=rate, note=_note(values))


class _Lines:
    """A line at the start, every LINE_EVERY seconds, and at the end."""

    def __init__(self, console: Console, title: str) -> None:
        self._console, self._title, self._rate = console, title, Rate()
        self._last = -LINE_EVERY
        self._started = time.monotonic()

    def __call__(self, done: int, total: int, values: Mapping[str, float] | None = None) -> None:
        if not total:  # nothing to do
            return
        now = time.monotonic() - self._started
        rate = self._rate.text(done, total)
        if done < total and now - self._last < LINE_EVERY:
            return
        self._last = now
        words = [f"{self._title}: {done}/{total}", *([rate] if rate else [])]
        self._console.print(f"{', '.join(words)} {_note(values)}".rstrip(), highlight=False)


def _note(values: Mapping[str, float] | None) -> str:
    losses = {name: value for name, value in (values or {}).items() if name.startswith("loss/")}
    return " ".join(f"{name.removeprefix('loss/')} {value:.3f}" for name, value in losses.items())
