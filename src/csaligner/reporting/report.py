"""Report page of a run: one self-contained HTML file."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from csaligner.files import write_text
from csaligner.names import Names
from csaligner.training.tracking import flat

from . import figures
from .gallery import gallery_html
from .page import Panel, render
from .palette import METHOD_COLOURS
from .record import CosineSample, FeatureMap, GalleryQuery, Hit, MethodResult, ReportData, SplitCount, check_report
from .summary import (
    DASH,
    HEADLINE_KEYS,
    KEYS,
    Summary,
    describe,
    format_seconds,
    headline,
    quote,
    summarise,
)
from .tables import has_bold, rule_of_bold

__all__ = [
    "CosineSample",
    "FeatureMap",
    "GalleryQuery",
    "Hit",
    "MethodResult",
    "ReportData",
    "SplitCount",
    "render_report",
    "write_report",
]
_AGAINST = {
    "better": "better than",
    "worse": "worse than",
    "level": "no clear difference from",
    "unknown": "difference unknown from",
}
_DASHES = ("", "5 3", "6 2 1 2", "1 2", "1 3")
_CIRCLE = Markup('<circle cx="13" cy="6" r="5" fill="currentColor"/>')
_TRIANGLE = Markup('<path d="M13 0 7 12H19Z" fill="currentColor"/>')
_BOX = Markup('<rect x="4" width="18" height="12" fill="currentColor" opacity=".7"/>')


def write_report(data: ReportData, path: str | Path) -> None:
    """Write the page (UTF-8, under 6 MB, atomically). Raises InputError if the data are inconsistent."""
    write_text(Path(path), render_report(data))


def render_report(data: ReportData) -> str:
    """Render the page. Input strings are escaped; the page loads nothing from the network."""
    check_report(data)
    summary = summarise(data.results)
    values: dict[str, Any] = {"fill": data.names.fill}
    values |= _header(data, summary) | _results(data, summary) | _drawings(data, summary) | _settings(data)
    sections = {
        "results": ("Results", True),
        "map": ("The two modalities, before and after", values["maps"]),
        "cosines": ("Cosines of pairs and non-pairs", values["cosines"]),
        "training": ("Training", values["curves"]),
        "gallery": ("Example queries", values["gallery"]),
        "settings": ("Settings and versions", values["versions"] or values["settings"]),
    }
    values["sections"] = {key: title for key, (title, shown) in sections.items() if shown}
    return render("report.html", values)


def _header(data: ReportData, summary: Summary) -> dict[str, Any]:
    about = [data.dataset] if data.dataset else []
    about += [f"{name}: {data.names.counts(count.n_images, count.n_captions)}" for name, count in data.splits.items()]
    seeds = sorted({r.seed for r in data.results})
    about.append(f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}")
    lead, *rest = data.findings or _finding(data, summary)
    return {
        "title": data.title,
        "lead": lead,
        "more": "" if data.findings else " ".join(rest),
        "findings": rest if data.findings else [],
        "about": about,
        "tiles": _tiles(data, summary),
        "attribution": data.attribution,
        "selection": data.selection,
    }


def _finding(data: ReportData, summary: Summary) -> list[str]:
    if not data.rejected:
        return headline(summary, data.ours, data.rival, data.names)
    first = f"Training did not clearly help and was not kept: {data.ours} is here the untrained {data.rival}."
    return [first, *headline(summary, data.ours, None, data.names)]


def _tiles(data: ReportData, summary: Summary) -> list[dict[str, Any]]:
    tiles = []
    for metric in (describe(k, data.names) for k in HEADLINE_KEYS):
        cell = summary.cell(data.ours, metric.key)
        if cell is None:
            continue
        tile: dict[str, Any] = {"metric": metric, "value": quote(metric, cell.mean), "verdict": ""}
        other = None if data.rival is None or data.rejected else summary.cell(data.rival, metric.key)
        if data.rival is not None and other is not None:
            verdict = summary.verdict(data.ours, data.rival, metric.key)
            tile |= {"verdict": verdict, "against": _AGAINST[verdict], "rival": data.rival}
            tile["rival_value"] = quote(metric, other.mean)
        tiles.append(tile)
    return tiles


def _results(data: ReportData, summary: Summary) -> dict[str, Any]:
    table = _table("", summary, data.names)
    more = [_table(title, summarise(results), data.names) for title, results in data.more.items()]
    bold = any(has_bold(t["summary"], [m.key for m in t["metrics"]]) for t in (table, *more))
    equal = (data.rival, data.ours) if data.rejected and data.rival is not None else ()
    return {
        "table": table,
        "more_tables": more,
        "ours": data.ours,
        "other_metrics": [describe(k, data.names) for k in summary.keys if k not in KEYS],
        "split": ", ".join(dict.fromkeys(r.split for r in data.results)),
        "rule_of_bold": rule_of_bold(summary, bold=bold, equal=equal),
    }


def _table(title: str, summary: Summary, names: Names) -> dict[str, Any]:
    metrics = [describe(k, names) for k in KEYS if any(summary.cell(name, k) for name in summary.methods)]
    return {"title": title, "summary": summary, "metrics": metrics, "time": partial(_time, summary)}


def _time(summary: Summary, method: str) -> str:
    seconds = summary.seconds.get(method)
    return DASH if seconds is None else format_seconds(seconds)


def _drawings(data: ReportData, summary: Summary) -> dict[str, Any]:
    projections = [figures.project(m) for m in data.maps]
    maps = [
        Panel(p.label, svg, f"gap {p.gap:.3f} · {100 * p.share:.0f} % of the variance shown")
        for p, svg in zip(
            projections, figures.map_panels(projections, "map", data.names) if projections else [], strict=True
        )
    ]
    order = {name: i for i, name in enumerate(m for m in summary.methods if _trained(data, m))}
    lines = [
        (METHOD_COLOURS[i % len(METHOD_COLOURS)], name, _line(_DASHES[i % len(_DASHES)])) for name, i in order.items()
    ]
    fill = data.names.fill
    return {
        "maps": maps,
        "map_legend": [
            ("image", fill("{images}"), _CIRCLE),
            ("text", fill("{texts}"), _TRIANGLE),
            ("soft", "some pairs", _line("")),
        ],
        "cosines": _panels(figures.cosine_panels(data.cosines, "cos")),
        "cosine_legend": [
            ("paired", fill("{image} and its own {caption}"), _BOX),
            ("unpaired", fill("{image} and another {caption}"), _BOX),
        ],
        "curves": _panels(figures.curve_panels(data.results, order, "curve")),
        "training_legend": lines,
        "gallery": gallery_html(data),
    }


def _panels(drawings: dict[str, Markup]) -> list[Panel]:
    return [Panel(title, svg) for title, svg in drawings.items()]


def _line(dashes: str) -> Markup:
    return Markup('<path d="M0 6H26" stroke="currentColor" stroke-width="2" stroke-dasharray="{}"/>').format(dashes)


def _trained(data: ReportData, method: str) -> bool:
    return any(r.name == method and r.history for r in data.results)


def _settings(data: ReportData) -> dict[str, Any]:
    facts: dict[str, str] = {"commit": data.commit} if data.commit else {}
    if data.seed is not None:
        facts["seed"] = str(data.seed)
    facts.update({name: str(version) for name, version in data.versions.items()})
    return {"versions": facts, "settings": {key: str(value) for key, value in flat(data.config).items()}}
