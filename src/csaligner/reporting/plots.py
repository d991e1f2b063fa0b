"""Drawings of many runs: methods against each other, and grids of settings. As inline SVG, like figures.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .figures import inline_svg, new_figure
from .palette import LIGHT
from .record import Array

WIDE = (8.0, 5.2)
Point = tuple[str, float, float, float, bool]


def scatter_panel(points: Sequence[Point], x_label: str, y_label: str, prefix: str = "scatter") -> str:
    """points: (name, x, y, gap, on the front). A smaller gap is drawn darker."""
    figure, axes = new_figure(WIDE)
    gaps = np.array([p[3] for p in points])
    span = float(np.ptp(gaps)) or 1.0
    for name, x, y, gap, on_front in points:
        darkness = 0.25 + 0.75 * float(gaps.max() - gap) / span
        axes.plot(x, y, "o", color=LIGHT["method0"], alpha=darkness, markersize=8, markeredgewidth=0, zorder=2)
        if on_front:
            axes.plot(x, y, "o", color="none", markeredgecolor=LIGHT["ink"], markersize=12, zorder=3)
        axes.annotate(name, (x, y), xytext=(8, -3), textcoords="offset points", color=LIGHT["ink"], fontsize=9)
    axes.margins(0.12)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label, color=LIGHT["soft"])
    return inline_svg(figure, prefix, f"{y_label} against {x_label}, {len(points)} methods")


def heat_panel(values: Array, rows: Sequence[str], columns: Sequence[str], labels: tuple[str, str], prefix: str) -> str:
    """values: (rows, columns), higher drawn darker; NaN is left white. labels: of the rows and of the columns."""
    figure, axes = new_figure((1.2 + 0.75 * len(columns), 1.0 + 0.5 * len(rows)))
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    for i in range(len(rows)):
        for j in range(len(columns)):
            if not np.isfinite(values[i, j]):
                continue
            share = (values[i, j] - low) / ((high - low) or 1.0)
            axes.add_patch(_cell(j, i, 0.08 + 0.82 * share))
            ink = LIGHT["card"] if share > 0.6 else LIGHT["ink"]
            text = f"{values[i, j]:.3g}"
            axes.text(j, i, text, ha="center", va="center", color=ink, fontsize=9)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel(labels[1])
    axes.set_ylabel(labels[0], color=LIGHT["soft"])
    return inline_svg(figure, prefix, f"{labels[0]} by {labels[1]}")


def _cell(x: int, y: int, alpha: float) -> object:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=LIGHT["method0"], alpha=alpha, linewidth=0)
