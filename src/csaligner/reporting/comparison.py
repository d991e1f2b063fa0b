"""The page of a comparison: for each data set a figure and a table of all methods, with what was chosen for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from .page import write_page
from .plots import scatter_panel
from .record import MethodResult
from .summary import (
    CENTROID,
    DASH,
    MEAN_RECALL,
    MIXED_RECALL,
    Cell,
    Metric,
    Summary,
    describe,
    format_spread,
    format_value,
    summarise,
)
from .tables import heading_unit

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
    """results: one entry for each method and seed. about: a line on each method. settings: what was tuned for it, in
    words. left_out: method -> why it was not run here."""

    name: str
    results: Sequence[MethodResult]
    about: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)


def pareto_front(summary: Summary, keys: Sequence[str] = FRONT_KEYS) -> list[str]:
    """Methods that no other one matches or beats on the mean of every key and beats on at least one."""
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
    """Writes the page (UTF-8, atomic); nothing on it asks the network."""
    write_page(title, intro, {data.name: _section(data) for data in datasets}, path)


def _section(data: DatasetComparison) -> str:
    summary = summarise(data.results)
    front = pareto_front(summary)
    names = ", ".join(front)
    left = "".join(f"<li>{escape(k)}: {escape(why)}</li>" for k, why in data.left_out.items())
    left = f'<details><summary>Left out</summary><ul class="note">{left}</ul></details>' if left else ""
    return (
        f"<p>No other method is at least as good on recall, mixed recall and gap together as these: "
        f"{escape(names)}.</p>"
        f'<figure class="card wide">{_scatter(summary, front)}<figcaption><b>Recall against mixed search</b>'
        "Up and to the right is better; the darker a point, the smaller the gap. A ring marks the front.</figcaption>"
        f'</figure><div class="card scroll">{_table(data, summary, front)}</div>{left}'
    )


def _scatter(summary: Summary, front: Sequence[str]) -> str:
    points = []
    for method in summary.methods:
        x, y, gap = (summary.cell(method, key) for key in FRONT_KEYS)
        if x and y and gap:
            points.append((method, 100 * x.mean, 100 * y.mean, gap.mean, method in front))
    return scatter_panel(points, "mean R@1 (%)", "mixed image-recall@10 (%)")


def _table(data: DatasetComparison, summary: Summary, front: Sequence[str]) -> str:
    metrics = [describe(key) for key in TABLE_KEYS if any(summary.cell(m, key) for m in summary.methods)]
    head = "".join(
        f'<th scope="col">{escape(m.label)}<span class="unit">{heading_unit(m)}</span></th>' for m in metrics
    )
    rows = []
    for method in summary.methods:
        cells = "".join(_cell(metric, summary.cell(method, metric.key)) for metric in metrics)
        note = " · ".join(filter(None, (data.about.get(method, ""), data.settings.get(method, ""))))
        mark = ' class="ours"' if method in front else ""
        small = f'<small class="note">{escape(note)}</small>' if note else ""
        rows.append(f'<tr{mark}><th scope="row">{escape(method)} {small}</th>{cells}</tr>')
    return (
        f'<table class="main"><thead><tr><th scope="col">method</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _cell(metric: Metric, cell: Cell | None) -> str:
    if cell is None:
        return f"<td>{DASH}</td>"
    spread = "" if cell.sd is None else f"<small>\u00b1 {format_spread(metric, cell.mean, cell.sd)}</small>"
    return f"<td>{format_value(metric, cell.mean)}{spread}</td>"
