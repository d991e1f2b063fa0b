"""The page of a sweep: heat maps of the grids, and what chose itself beside the best point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from .page import write_page
from .plots import heat_panel
from .record import Array
from .summary import CENTROID, MEAN_RECALL, MIXED_RECALL, describe, format_value
from .tables import heading_unit

KEYS = (MEAN_RECALL, MIXED_RECALL, CENTROID, "gap/cs")
HeatMap = tuple[Array, Sequence[str], Sequence[str], tuple[str, str]]


@dataclass(frozen=True)
class SweepPage:
    """maps: (grid, metric) -> values, row labels, column labels, names of both. chosen: label -> (metrics,
    settings)."""

    dataset: str
    maps: Mapping[tuple[str, str], HeatMap]
    chosen: Mapping[str, tuple[Mapping[str, float], Mapping[str, str]]]


def write_sweep(pages: Sequence[SweepPage], path: Path) -> None:
    """Writes the page (UTF-8, atomic); nothing on it asks the network."""
    intro = "One training run for each point. Darker is higher; for the gap, lighter is better."
    write_page("csaligner sweep", intro, {p.dataset: _section(p, n) for n, p in enumerate(pages)}, path)


def _section(page: SweepPage, number: int) -> str:
    panels = []
    for k, ((grid, metric), (values, rows, columns, labels)) in enumerate(page.maps.items()):
        drawing = heat_panel(values, rows, columns, labels, f"heat{number}-{k}")
        panels.append(
            f'<figure class="card"><figcaption><b>{escape(describe(metric).label)}</b>{escape(grid)}</figcaption>'
            f"{drawing}</figure>"
        )
    return f'<div class="grid">{"".join(panels)}</div><div class="card scroll">{_table(page)}</div>'


def _table(page: SweepPage) -> str:
    metrics = [describe(key) for key in KEYS]
    head = "".join(
        f'<th scope="col">{escape(m.label)}<span class="unit">{heading_unit(m)}</span></th>' for m in metrics
    )
    rows = []
    for name, (values, settings) in page.chosen.items():
        note = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in settings.items())
        cells = "".join(f"<td>{format_value(m, values[m.key])}</td>" for m in metrics)
        rows.append(f'<tr><th scope="row">{escape(name)} <small class="note">{escape(note)}</small></th>{cells}</tr>')
    return f'<table><thead><tr><th scope="col">setting</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
