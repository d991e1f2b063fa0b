"""Drawings of many methods: every name is there, and one that is far off does not crowd the others."""

from __future__ import annotations

import re
from itertools import pairwise

from csaligner.reporting.plots import scatter_panel

NEAR = [(f"near{i}", 70.0 + i, 90.0 + i / 2, 0.1, i % 2 == 0) for i in range(6)]


def ticks(svg: str) -> list[float]:
    """The numbers along the axes."""
    return [float(t.replace("\u2212", "-")) for t in re.findall(r">([\u2212-]?\d+(?:\.\d+)?)<", svg)]


def test_a_method_far_off_stands_at_the_edge_with_its_values() -> None:
    svg = scatter_panel([*NEAR, ("raw", 1.0, 0.0, 0.9, False)], "R@1", "mixed")
    assert "raw (1.0, 0.0)" in svg
    assert min(ticks(svg)) > 50
    assert all(f">{name}<" in svg for name, *_ in NEAR)


def test_without_outliers_nothing_moves() -> None:
    svg = scatter_panel(NEAR, "R@1", "mixed")
    assert "near0 (" not in svg


def test_methods_at_one_point_keep_readable_names() -> None:
    svg = scatter_panel([(f"same{i}", 70.0, 90.0, 0.1, False) for i in range(3)], "R@1", "mixed")
    places = {re.search(rf"<text[^>]*>same{i}<", svg) for i in range(3)}
    assert len({match.group() for match in places if match}) == 3
    heights = [re.search(r"(?:translate\([\d.]+ ([\d.]+)|y=\"([\d.]+))", m.group()) for m in places if m]
    values = sorted(float(next(g for g in h.groups() if g)) for h in heights if h)
    assert len(values) == 3
    assert all(b - a >= 9 for a, b in pairwise(values))
