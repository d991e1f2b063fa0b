"""Scatter plots of methods and heat maps of settings, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from csaligner.wording import count_of

from .figures import inline_svg, new_figure
from .palette import LIGHT
from .record import Array

WIDE = (8.0, 5.2)
Point = tuple[str, float, float, float, bool]
Box = tuple[float, float, float, float]  # left, bottom, right, top, in points


def scatter_panel(points: Sequence[Point], x_label: str, y_label: str, prefix: str = "scatter") -> Markup:
    """Plot points (name, x, y, gap, on the Pareto front); darker = smaller gap. Outliers more than 1.5 interquartile
    ranges below the first quartile are drawn as triangles at the edge, with their values in the label."""
    figure, axes = new_figure(WIDE)
    gaps = np.array([p[3] for p in points])
    span = float(np.ptp(gaps)) or 1.0
    lower = [_fence(np.array([p[axis] for p in points])) for axis in (1, 2)]
    labels = []
    for name, x, y, gap, on_front in points:
        darkness = 0.25 + 0.75 * float(gaps.max() - gap) / span
        at, outside = (max(x, lower[0]), max(y, lower[1])), x < lower[0] or y < lower[1]
        marker = "<" if outside else "o"
        axes.plot(*at, marker, color=LIGHT["method0"], alpha=darkness, markersize=8, markeredgewidth=0, zorder=2)
        if on_front:
            axes.plot(*at, "o", color="none", markeredgecolor=LIGHT["ink"], markersize=12, zorder=3)
        labels.append((f"{name} ({x:.1f}, {y:.1f})" if outside else name, at))
    axes.margins(0.14)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label, color=LIGHT["soft"])
    figure.draw_without_rendering()  # fixes the positions of the points
    _label(axes, labels)
    return inline_svg(figure, prefix, f"{y_label} against {x_label}, {count_of(len(points), 'method')}")


def _fence(values: Array) -> float:
    low, high = np.percentile(values, [25, 75])
    fence = low - 1.5 * (high - low)
    return float(fence if values.min() < fence else values.min())


def _label(axes: Any, labels: Sequence[tuple[str, tuple[float, float]]], size: float = 9) -> None:
    """Place each label at the nearest free position around its point, with a connecting line if it is not adjacent.
    Labels avoid points, the edges of the axes and other labels."""
    to_page = 72 / axes.figure.dpi
    edges = axes.get_window_extent()
    low, high = edges.y0 * to_page, edges.y1 * to_page
    points = [axes.transData.transform(at) * to_page for _, at in labels]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    for (name, at), (x, y) in sorted(zip(labels, points, strict=True), key=lambda pair: -pair[1][1]):
        width, step = 0.56 * size * len(name), size + 2
        places = [
            (side, up)
            for shift in range(2 * len(labels) + 2)
            for up in ({shift * step / 2, -shift * step / 2} if shift else {0.0})
            for side in (8.0 + 2 * shift, -8.0 - 2 * shift - width)
        ]
        boxes = [((x + side, y + up - 4, x + side + width, y + up + size - 3), (side, up)) for side, up in places]
        free = (pair for pair in boxes if low < pair[0][1] < high and not any(_overlap(pair[0], t) for t in taken))
        box, (side, up) = next(free, boxes[0])
        taken.append(box)
        apart = abs(up) > step / 2 or not -width - 12 < side < 12
        axes.annotate(
            name,
            at,
            xytext=(side, up - 3),
            textcoords="offset points",
            color=LIGHT["ink"],
            fontsize=size,
            arrowprops={"arrowstyle": "-", "color": LIGHT["soft"], "linewidth": 0.6, "relpos": (float(side < 0), 0.5)}
            if apart
            else None,
        )


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def heat_panel(
    values: Array, rows: Sequence[str], columns: Sequence[str], labels: tuple[str, str], prefix: str
) -> Markup:
    """Plot values (rows, columns), darker = higher, white = NaN. labels: names of the row and column axes."""
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
