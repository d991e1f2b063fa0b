"""Progress in plain lines and on a terminal: steps and estimates."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from csaligner.progress import Rate, duration, progress, steps


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_no_estimate_before_it_is_measured_and_then_a_good_one() -> None:
    clock = Clock()
    rate = Rate(clock)
    clock.now = 40.0  # models are loaded before the first update
    assert rate.text(32, 1000) == ""
    clock.now = 41.0
    assert rate.text(40, 1000) == ""
    clock.now = 50.0
    assert rate.text(132, 1000) == "10.0/s, 1 min left"
    clock.now = 127.0
    assert rate.text(902, 1000) == "10.0/s, 10 s left"
    clock.now = 136.8
    assert rate.text(1000, 1000) == "10.0/s"


def test_work_of_an_earlier_call_does_not_count() -> None:
    clock = Clock()
    rate = Rate(clock)
    rate.text(900, 1000)
    clock.now = 10.0
    assert rate.text(910, 1000) == "1.0/s, 2 min left"


@pytest.mark.parametrize(("seconds", "words"), [(4.6, "5 s"), (59, "59 s"), (90, "2 min"), (3900, "1 h 5 min")])
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_steps_are_named_in_plain_lines() -> None:
    out = io.StringIO()
    with steps(Console(file=out)) as step:
        for name in ("1/2 embedding", "2/2 indexing"):
            update = step(name)
            update(1, 3)
            update(3, 3, {"loss/total": 0.5, "val/score": 1})
    lines = out.getvalue().splitlines()
    assert lines == [
        "1/2 embedding: 1/3",
        "1/2 embedding: 3/3 total 0.500",
        "2/2 indexing: 1/3",
        "2/2 indexing: 3/3 total 0.500",
    ]


def test_a_bar_shows_the_step() -> None:
    out = io.StringIO()
    with steps(Console(file=out, force_terminal=True, width=100)) as step:
        step("1/2 embedding")(1, 2)
        step("2/2 indexing")(1, 2)
    assert "1/2 embedding" in out.getvalue()
    assert re.search(r"2/2 indexing.*1/2", out.getvalue())


def test_quiet_shows_nothing() -> None:
    out = io.StringIO()
    with progress(Console(file=out), "work", quiet=True) as update:
        update(1, 1)
    assert not out.getvalue()
