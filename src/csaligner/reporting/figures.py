"""Figures: maps of both modalities, cosine histograms, training curves. matplotlib is imported on first use.

Each panel is an inline SVG, so that narrow screens can stack panels. Panels contain no user-provided text except the
labels of `figure_before_after`; titles and legends are part of the page.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from csaligner.checks import InputError
from csaligner.files import write_atomically
from csaligner.names import Names
from csaligner.wording import count_of

from .palette import LIGHT, METHOD_COLOURS, METHOD_DASHES
from .record import Array, CosineSample, FeatureMap, MethodResult, check_map

PANEL = (5.0, 3.6)  # inches at 72 units each: 360 x 259 in the page
SQUARE = (5.0, 4.6)
MAX_POINTS = 700  # per modality
MAX_PAIRS = 40
MAX_VALIDATION = 4
LOSS_CURVES = ("loss/info_nce", "loss/cauchy_schwarz")
VALIDATION_CURVES = ("val/mean_recall@1", "val/mean_mixed_ndcg@10", "val/gap/centroid", "val/gap/cs")
_RC = {"svg.fonttype": "none", "svg.hashsalt": "csaligner", "font.size": 11, "text.parse_math": False}


@dataclass(frozen=True)
class Projection:
    """A FeatureMap in two dimensions. share: fraction of the variance in the plane. gap: distance of the
    centroids in the full space."""

    label: str
    image: Array
    text: Array
    text_to_image: Array
    share: float
    gap: float


def project(m: FeatureMap) -> Projection:
    """Project to two dimensions with linear PCA, fitted to the union of images and texts; axis signs are fixed.

    Both modalities use the same projection, so a visible gap exists in the full space. One-dimensional features are
    padded with zeros.
    """
    image, text = np.asarray(m.image, dtype=np.float64), np.asarray(m.text, dtype=np.float64)
    union = np.concatenate([image, text])
    mean = union.mean(axis=0)
    if len(union) > len(mean):
        variances, vectors = np.linalg.eigh((union - mean).T @ (union - mean))  # ascending
        variances, axes = variances[::-1], vectors.T[::-1][:2]
    else:  # at most as many variances above 0 as rows
        _, roots, vectors = np.linalg.svd(union - mean, full_matrices=False)
        variances, axes = roots**2, vectors[:2]
    top = np.maximum(variances[:2], 0.0)
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    if len(axes) < 2:
        axes = np.concatenate([axes, np.zeros((2 - len(axes), image.shape[1]))])
    total = float(np.maximum(variances, 0.0).sum())
    pairs = np.arange(len(text)) if m.text_to_image is None else np.asarray(m.text_to_image)
    return Projection(
        label=m.label,
        image=(image - mean) @ axes.T,
        text=(text - mean) @ axes.T,
        text_to_image=pairs,
        share=float(top.sum()) / total if total > 0 else 1.0,
        gap=float(np.linalg.norm(image.mean(axis=0) - text.mean(axis=0))) if m.gap is None else m.gap,
    )


def map_panels(maps: Sequence[Projection], prefix: str, names: Names | None = None) -> list[Markup]:
    """Return one SVG per map, all on the same scale."""
    radius, fill = _radius(maps), (names or Names()).fill
    first, second = (fill("{image}"), fill("{images}")), (fill("{text}"), fill("{texts}"))
    panels = []
    for i, p in enumerate(maps):
        figure, axes = new_figure(SQUARE)
        _draw_map(axes, p, radius)
        alt = (
            f"{p.label}: {count_of(len(p.image), *first)} and {count_of(len(p.text), *second)} on two principal axes; "
            f"centroid distance {p.gap:.3f}"
        )
        panels.append(inline_svg(figure, f"{prefix}{i}", alt))
    return panels


def cosine_panels(samples: Mapping[str, CosineSample], prefix: str) -> dict[str, Markup]:
    """Return histograms of the cosines of pairs and non-pairs, one SVG per method, with common bins."""
    kept = {name: (_finite(s.paired), _finite(s.unpaired)) for name, s in samples.items()}
    kept = {name: s for name, s in kept.items() if len(s[0]) and len(s[1])}
    if not kept:
        return {}
    values = np.concatenate([part for s in kept.values() for part in s])
    low, high = float(values.min()), float(values.max())
    pad = max(0.02, 0.03 * (high - low))
    bins = np.linspace(low - pad, high + pad, 41)
    panels = {}
    for i, (name, (paired, unpaired)) in enumerate(kept.items()):
        figure, axes = new_figure(PANEL)
        for part, colour in ((unpaired, "unpaired"), (paired, "paired")):
            weights = np.full(len(part), 1 / len(part))
            axes.hist(part, bins=bins, weights=weights, histtype="stepfilled", color=LIGHT[colour], alpha=0.35)
            axes.hist(part, bins=bins, weights=weights, histtype="step", color=LIGHT[colour], linewidth=1.3)
            axes.axvline(float(part.mean()), color=LIGHT[colour], linewidth=1, linestyle="--")
        axes.set_xlim(bins[0], bins[-1])
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("cosine")
        alt = f"{name}: cosines of pairs, mean {paired.mean():.3f}, and of non-pairs, mean {unpaired.mean():.3f}"
        panels[name] = inline_svg(figure, f"{prefix}{i}", alt)
    return panels


def curve_keys(results: Sequence[MethodResult]) -> list[str]:
    """Return the keys to plot: every loss term except the total, then the main validation metrics."""
    logged = sorted({k for r in results for row in r.history for k in row})
    losses = [k for k in logged if k.startswith("loss/") and k != "loss/total"]
    checks = [k for k in logged if k.startswith("val/")]
    return sorted(losses, key=_place(LOSS_CURVES)) + sorted(checks, key=_place(VALIDATION_CURVES))[:MAX_VALIDATION]


def _place(order: Sequence[str]) -> Callable[[str], int]:
    return lambda key: order.index(key) if key in order else len(order)


def curve_panels(results: Sequence[MethodResult], colours: Mapping[str, int], prefix: str) -> dict[str, Markup]:
    """Return one SVG per key, with one line per run."""
    panels = {}
    for i, key in enumerate(curve_keys(results)):
        curves = {n: points for n, r in enumerate(results) if (points := _points(r, key))}
        if not curves:
            continue
        figure, axes = new_figure(PANEL)
        for n, points in curves.items():
            which = colours[results[n].name] % len(METHOD_COLOURS)
            axes.plot(
                *zip(*points, strict=True),
                color=LIGHT[METHOD_COLOURS[which]],
                linestyle=METHOD_DASHES[which],
                linewidth=1.4,
                alpha=0.85,
                marker="o" if len(points) == 1 else None,
                markersize=4,
            )
        axes.set_xlabel("step")
        axes.locator_params(axis="x", nbins=5, integer=True)
        axes.grid(axis="y", color=LIGHT["rule"], linewidth=0.7)
        label = f"{key} against the training step, {count_of(len(curves), 'run')}"
        panels[key] = inline_svg(figure, f"{prefix}{i}", label)
    return panels


def _points(result: MethodResult, key: str) -> list[tuple[float, float]]:
    points = [(row["step"], row[key]) for row in result.history if "step" in row and key in row]
    return [p for p in points if math.isfinite(p[0]) and math.isfinite(p[1])]


def figure_before_after(maps: Sequence[FeatureMap], path: str | Path) -> None:
    """Write a PNG of 1200 x 500 pixels: the first and the last map side by side, on the same scale.

    At most 150 kB (64 colours), white background, atomic. Raises InputError for fewer than two maps.
    """
    if len(maps) < 2:
        raise InputError(f"maps: got {len(maps)}, wanted at least two: before and after")
    for m in (maps[0], maps[-1]):
        check_map(m)
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from PIL import Image

    projections = [project(maps[0]), project(maps[-1])]
    margins = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    with mpl.rc_context(_RC):
        figure = Figure(figsize=(12, 5), dpi=100, facecolor="white", layout=margins)
        for axes, p in zip(figure.subplots(1, 2), projections, strict=True):
            _style(axes)
            _draw_map(axes, p, _radius(projections), aspect=1.22)
            axes.set_title(p.label, loc="left", fontsize=15, fontweight="bold", color=LIGHT["ink"], parse_math=False)
            axes.set_title(f"gap {p.gap:.3f}", loc="right", fontsize=13, color=LIGHT["soft"])
        handles = [_dot(LIGHT["image"], "o"), _dot(LIGHT["text"], "^")]
        figure.legend(handles, ["images", "texts"], loc="outside lower center", ncols=2, frameon=False, fontsize=13)
        buffer = io.BytesIO()
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    image = Image.open(buffer).convert("RGB").quantize(64)
    write_atomically(Path(path), lambda temporary: image.save(temporary, format="PNG", optimize=True))


def _radius(maps: Sequence[Projection]) -> float:
    """Return half the side of the panels; covers all points except the outermost 0.2 % of a map."""
    points = [np.abs(np.concatenate([p.image, p.text])).max(axis=1) for p in maps]
    return 1.08 * max([1e-6, *(float(np.quantile(p, 0.998)) for p in points)])


def _draw_map(axes: Any, p: Projection, radius: float, aspect: float = 1.0) -> None:
    rng = np.random.default_rng(0)
    image = rng.permutation(len(p.image))[:MAX_POINTS]
    text = rng.permutation(len(p.text))[:MAX_POINTS]
    chosen = rng.permutation(len(p.text))[:MAX_PAIRS]
    for row in chosen:
        ends = np.stack([p.text[row], p.image[p.text_to_image[row]]])
        axes.plot(ends[:, 0], ends[:, 1], color=LIGHT["soft"], linewidth=0.5, alpha=0.45, zorder=1)
    layers = 8  # alternate, so that neither modality hides the other
    for part in range(layers):
        for points, colour, marker in ((p.image[image], "image", "o"), (p.text[text], "text", "^")):
            some = points[part::layers]
            axes.plot(
                some[:, 0],
                some[:, 1],
                marker,
                color=LIGHT[colour],
                markersize=3.4,
                alpha=0.55,
                markeredgewidth=0,
                zorder=2,
            )
    for points, colour, marker in ((p.image, "image", "o"), (p.text, "text", "^")):
        axes.plot(
            *points.mean(axis=0),
            marker,
            color=LIGHT[colour],
            markersize=11,
            markeredgewidth=2,
            markeredgecolor=LIGHT["card"],
            zorder=3,
        )
    axes.set_xlim(-radius * aspect, radius * aspect)
    axes.set_ylim(-radius, radius)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)


def _dot(colour: str, marker: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, marker=marker, linestyle="", markersize=8, markeredgewidth=0)


def _finite(values: Array) -> Array:
    flat = np.asarray(values, dtype=np.float64).ravel()
    return flat[np.isfinite(flat)]


def new_figure(size: tuple[float, float]) -> tuple[Any, Any]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_RC):
        figure = Figure(figsize=size, dpi=72, facecolor="none", layout="constrained")
        axes = figure.subplots()
        _style(axes)
    return figure, axes


def _style(axes: Any) -> None:
    axes.set_facecolor("none")
    axes.tick_params(colors=LIGHT["soft"], length=3)
    axes.xaxis.label.set_color(LIGHT["soft"])
    for side, spine in axes.spines.items():
        spine.set_color(LIGHT["rule"])
        spine.set_visible(side in ("left", "bottom"))


def inline_svg(figure: Any, prefix: str, alt: str) -> Markup:
    """Return inline SVG with CSS variables for colours, prefixed ids, no metadata and the page's font."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    with mpl.rc_context(_RC):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\sid=")', rf"\g<1>{prefix}-", text)
    text = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{prefix}-", text)
    text = text.replace("xlink:href", "href")
    view = re.search(r'viewBox="([^"]*)"', text)
    assert view is not None
    text = text[text.index(">") + 1 :]
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), text)  # coordinates only
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    names = {value: name for name, value in LIGHT.items()}
    text = re.sub("|".join(names), lambda found: f"var(--{names[found[0]]})", text)
    text = re.sub(r"\n\s*", "\n", text).strip()
    return Markup(f'<svg viewBox="{view[1]}" role="img" aria-label="{escape(alt)}">{text}')
