"""Sweep page: heat maps of the grids, and the automatic settings compared with the best point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csaligner.evaluation.score import MEAN_NDCG, MEAN_RECALL, SCORE

from .page import Panel, write_page
from .plots import heat_panel
from .record import Array
from .summary import CENTROID, Metric, describe

KEYS = (
    SCORE,
    MEAN_RECALL,
    MEAN_NDCG,
    "mixed_ndcg@10",
    "mixed_ndcg@10/image_query",
    CENTROID,
    "gap/cs",
    "centred_gap/cs",
)
AXES = {  # key of the config -> words on an axis
    "objective.bandwidth": "bandwidth sigma",
    "objective.terms.cauchy_schwarz": "weight lambda of D_CS",
    "objective.logit_scale": "logit scale (1/temperature)",
}
HeatMap = tuple[Array, Sequence[str], Sequence[str], tuple[str, str]]


@dataclass(frozen=True)
class SweepPage:
    """maps: (grid, metric) -> values, row labels, column labels, names of both. chosen: label -> (metrics,
    settings)."""

    dataset: str
    maps: Mapping[tuple[str, str], HeatMap]
    chosen: Mapping[str, tuple[Mapping[str, float], Mapping[str, str]]]


def write_sweep(pages: Sequence[SweepPage], path: Path) -> None:
    """Write the page (UTF-8, atomically); it loads nothing from the network."""
    values = {
        "title": "csaligner sweep",
        "intro": "One training run per point. Darker is higher; for the gap, lighter is better. "
        "Recall and nDCG are means over image and caption queries.",
        "names": [page.dataset for page in pages],
        "metrics": [describe(key) for key in KEYS],
        "sections": [_section(page, number) for number, page in enumerate(pages)],
    }
    write_page("sweep.html", values, path)


def _section(page: SweepPage, number: int) -> dict[str, Any]:
    panels = [
        _panel(describe(metric), grid, heat, f"heat{number}-{k}")
        for k, ((grid, metric), heat) in enumerate(page.maps.items())
    ]
    rows = [
        (name, values, ", ".join(f"{_words(key)} {value}" for key, value in settings.items()))
        for name, (values, settings) in page.chosen.items()
    ]
    return {"name": page.dataset, "panels": panels, "rows": rows}


def _panel(metric: Metric, grid: str, heat: HeatMap, prefix: str) -> Panel:
    values, rows, columns, keys = heat
    percent = metric.unit == "percent"
    words = (_words(keys[0]), _words(keys[1]))
    svg = heat_panel(values * (100 if percent else 1), rows, columns, words, prefix)
    return Panel(f"{metric.label} (%)" if percent else metric.label, svg, grid)


def _words(key: str) -> str:
    return AXES.get(key, key.rpartition(".")[2].replace("_", " "))
