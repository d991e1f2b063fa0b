"""Comparison page: a figure and a table of all methods with their tuned settings, per dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from .page import write_page
from .plots import scatter_panel
from .record import MethodResult
from .summary import CENTROID, MEAN_RECALL, MIXED_RECALL, Summary, describe, summarise

TABLE_KEYS = (
    MEAN_RECALL,
    MIXED_RECALL,
    CENTROID,
    "gap/cs",
    "gap/frechet",
    "gap/probe_accuracy",
    "modality_bias@10",
    "clustering/ami_category",
)
FRONT_KEYS = (MEAN_RECALL, MIXED_RECALL, CENTROID)


@dataclass(frozen=True)
class DatasetComparison:
    """results: one entry per method and seed. about: method -> one-line description. settings: method -> tuned settings
    as text. left_out: skipped method -> reason."""

    name: str
    results: Sequence[MethodResult]
    about: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)


def pareto_front(summary: Summary, keys: Sequence[str] = FRONT_KEYS) -> list[str]:
    """Return the methods on the Pareto front of the means of `keys`."""
    metrics = [describe(key) for key in keys]
    points = {}
    for method in summary.methods:
        cells = [summary.cell(method, key) for key in keys]
        if all(cells):
            points[method] = tuple(m.goodness(c.mean) for m, c in zip(metrics, cells, strict=True) if c)
    return [
        method
        for method, own in points.items()
        if not any(other != own and all(a >= b for a, b in zip(other, own, strict=True)) for other in points.values())
    ]


def write_comparison(title: str, intro: str, datasets: Sequence[DatasetComparison], path: Path) -> None:
    """Write the page (UTF-8, atomically); it loads nothing from the network."""
    names = [data.name for data in datasets]
    sections = [_section(data) for data in datasets]
    write_page("comparison.html", {"title": title, "intro": intro, "names": names, "sections": sections}, path)


def _section(data: DatasetComparison) -> dict[str, Any]:
    summary = summarise(data.results)
    front = pareto_front(summary)
    return {
        "name": data.name,
        "summary": summary,
        "front": front,
        "scatter": _scatter(summary, front),
        "metrics": [describe(key) for key in TABLE_KEYS if any(summary.cell(m, key) for m in summary.methods)],
        "notes": {
            method: " · ".join(filter(None, (data.about.get(method, ""), data.settings.get(method, ""))))
            for method in summary.methods
        },
        "skipped": data.left_out,
    }


def _scatter(summary: Summary, front: Sequence[str]) -> Markup:
    points = []
    for method in summary.methods:
        x, y, gap = (summary.cell(method, key) for key in FRONT_KEYS)
        if x and y and gap:
            points.append((method, 100 * x.mean, 100 * y.mean, gap.mean, method in front))
    return scatter_panel(points, "mean R@1 (%)", "mixed image-recall@10 (%)")
