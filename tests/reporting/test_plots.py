"""Plots of many methods: labels and outliers."""

from __future__ import annotations

import re
from itertools import combinations

from csaligner.reporting.plots import scatter_panel

NEAR = [(f"near{i}", 70.0 + i, 90.0 + i / 2, 0.1, i % 2 == 0) for i in range(6)]


def ticks(svg: str) -> list[float]:
    """Return the tick values of the axes."""
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
    """Labels do not overlap, even for points at the same place."""
    names = [f"same-method-{i:02}" for i in range(12)]
    svg = scatter_panel([(name, 70.0, 90.0, 0.1, False) for name in names], "R@1", "mixed")
    places = []
    for name in names:
        found = re.search(rf'<text[^>]*(?:translate\(([\d.]+) ([\d.]+)|x="([\d.]+)" y="([\d.]+))[^>]*>{name}<', svg)
        assert found
        x, y = (float(value) for value in found.groups() if value)
        places.append((x, y))
    for (x, y), (other_x, other_y) in combinations(places, 2):
        assert abs(y - other_y) >= 9 or abs(x - other_x) >= 5 * len(names[0])
