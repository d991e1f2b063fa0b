"""Every figure with its interval in the prose of the pages, "1.4 (0.2 to 2.6)", is one that a benchmark wrote.

Tables are written from the JSON by benchmarks/tables.py; sentences are not, and go stale when a benchmark runs again.
A figure must stand in a JSON file or in a table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
NUMBER = r"[-+]?\d*\.?\d+"
QUOTED = re.compile(rf"(?<![\w.])({NUMBER})(?: [^\d.;()]{{1,60}})?(?:, | \()({NUMBER}) to ({NUMBER})(?=[);,])")
GENERATED = re.compile(r"<!-- begin.*?<!-- end[^>]*-->|```.*?```", re.DOTALL)
Interval = tuple[float, float, float]


def intervals(content: Any) -> Iterator[Interval]:
    """Yield (value, low, high) of the lists [value, low, high], and of the objects with an interval [low, high]."""
    if isinstance(content, list):
        if len(content) == 3 and all(isinstance(n, int | float) for n in content):
            yield content[0], content[1], content[2]
        for item in content:
            yield from intervals(item)
    elif isinstance(content, dict):
        values = [v for v in content.values() if isinstance(v, int | float)]
        for item in content.values():
            if isinstance(item, list) and len(item) == 2 and all(isinstance(n, int | float) for n in item):
                yield from ((v, item[0], item[1]) for v in values if item[0] <= v <= item[1])
            yield from intervals(item)


@pytest.fixture(scope="module")
def measured() -> list[Interval]:
    files = (ROOT / "benchmarks" / "results").glob("*.json")
    written = [found for file in files for found in intervals(json.loads(file.read_text(encoding="utf-8")))]
    tables = "".join(part for page in PAGES for part in GENERATED.findall(page.read_text(encoding="utf-8")))
    return written + [(float(v), float(low), float(high)) for v, low, high in QUOTED.findall(tables)]


def quoted_in(page: Path) -> list[tuple[str, str, str]]:
    """Return the figures of a page's prose: value, low, high."""
    prose = GENERATED.sub("", page.read_text(encoding="utf-8"))
    return QUOTED.findall(re.sub(r"@\d+", "", prose))


def is_rounded(quoted: tuple[str, ...], found: Interval) -> bool:
    """Return whether the quoted figures are those of a measurement: as they are or times 100, or of b - a for a - b.
    The sign of the value may be a word ("behind by")."""
    value, low, high = (float(word) for word in quoted)
    errors = [0.5 * 10.0 ** -len(word.partition(".")[2]) + 1e-9 for word in quoted]
    for factor in (1, 100):
        middle, *ends = (factor * n for n in found)
        for low_, high_ in (ends, (-ends[1], -ends[0])):
            wrong = (abs(abs(middle) - abs(value)), abs(low_ - low), abs(high_ - high))
            if all(w <= e for w, e in zip(wrong, errors, strict=True)):
                return True
    return False


def test_figures_with_intervals_are_measured(measured: list[Interval]) -> None:
    quoted = {(str(page.relative_to(ROOT)), figure) for page in PAGES for figure in quoted_in(page)}
    assert {(page, q) for page, q in quoted if not any(is_rounded(q, found) for found in measured)} == set()


def test_a_stale_figure_is_found(measured: list[Interval]) -> None:
    quoted = quoted_in(next(p for p in PAGES if p.name == "comparison.md"))
    assert len(quoted) > 10
    stale = [(value, low, f"{float(high) + 0.2:.1f}") for value, low, high in quoted]
    assert sum(any(is_rounded(q, found) for found in measured) for q in stale) < len(stale) / 2
