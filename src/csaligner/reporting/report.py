"""The report: one HTML file that needs nothing else. The only place that formats numbers for people."""

from __future__ import annotations

from html import escape
from pathlib import Path

from csaligner.files import write_text
from csaligner.training.tracking import flat

from . import figures
from .gallery import gallery_html
from .page import html_page
from .palette import METHOD_COLOURS
from .record import CosineSample, FeatureMap, GalleryQuery, Hit, MethodResult, ReportData, SplitCount, check_report
from .summary import (
    DASH,
    HEADLINE_KEYS,
    KEY_METRICS,
    Metric,
    Summary,
    describe,
    format_seconds,
    format_spread,
    format_value,
    headline,
    quote,
    summarise,
)
from .tables import heading_unit, rule_of_bold

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
    "level": "level with",
    "unknown": "undecided against",
}
_DASHES = ("", "5 3", "6 2 1 2", "1 2", "1 3")


def write_report(data: ReportData, path: str | Path) -> None:
    """Writes the page (UTF-8, under 6 MB, atomic). Raises InputError where the data do not fit together."""
    write_text(Path(path), render_report(data))


def render_report(data: ReportData) -> str:
    """The page as text. Every word that came from outside is escaped; nothing on it asks the network."""
    check_report(data)
    summary = summarise(data.results)
    sections = {
        "results": ("Results", _results(data, summary)),
        "map": ("The two modalities, before and after", _maps(data)),
        "cosines": ("Cosines of pairs and non-pairs", _cosines(data)),
        "training": ("Training", _training(data, summary)),
        "gallery": ("Real queries", gallery_html(data)),
        "settings": ("Settings and versions", _settings(data)),
    }
    shown = {key: part for key, part in sections.items() if part[1]}
    links = "".join(f'<a href="#{key}">{title}</a>' for key, (title, _) in shown.items())
    body = "".join(
        f'<section id="{key}" aria-labelledby="h-{key}"><h2 id="h-{key}">{title}</h2>{html}</section>'
        for key, (title, html) in shown.items()
    )
    return html_page(
        data.title,
        f'{_header(data, summary)}<nav aria-label="Sections">{links}</nav>',
        f"<main>{body}</main>{_footer(data)}",
    )


def _header(data: ReportData, summary: Summary) -> str:
    about = [escape(data.dataset)] if data.dataset else []
    about += [
        f"{escape(name)}: {count.n_images:,} images, {count.n_captions:,} captions"
        for name, count in data.splits.items()
    ]
    lead, *rest = headline(summary, data.ours, data.rival)
    more = f'<p class="more">{escape(" ".join(rest))}</p>' if rest else ""
    seeds = sorted({r.seed for r in data.results})
    about.append(f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}")
    return (
        f'<h1>{escape(data.title)}</h1><p class="lead">{escape(lead)}</p>{more}'
        f'<p class="about">{" · ".join(about)}</p>{_tiles(data, summary)}'
    )


def _tiles(data: ReportData, summary: Summary) -> str:
    tiles = []
    for metric in (describe(k) for k in HEADLINE_KEYS):
        cell = summary.cell(data.ours, metric.key)
        if cell is None:
            continue
        against = ""
        other = None if data.rival is None else summary.cell(data.rival, metric.key)
        if data.rival is not None and other is not None:
            verdict = summary.verdict(data.ours, data.rival, metric.key)
            against = (
                f'<span><span class="{verdict}" style="display:inline">{_AGAINST[verdict]}</span> '
                f"{escape(data.rival)}: {quote(metric, other.mean)}</span>"
            )
        tiles.append(
            f'<div class="card tile"><span>{metric.label}</span><b>{quote(metric, cell.mean)}</b>'
            f"{against}<span>{metric.meaning}</span></div>"
        )
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _results(data: ReportData, summary: Summary) -> str:
    known = {m.key for m in KEY_METRICS}
    metrics = [m for m in KEY_METRICS if any(summary.cell(name, m.key) for name in summary.methods)]
    heads = "".join(
        f'<th scope="col"><abbr title="{escape(m.meaning)}">{escape(m.label)}</abbr>'
        f'<span class="unit">{heading_unit(m) or "&nbsp;"}</span></th>'
        for m in metrics
    )
    rows = "".join(
        f'<tr{" class=ours" if name == data.ours else ""}><th scope="row">{escape(name)}</th>'
        + "".join(_cell(summary, name, m) for m in metrics)
        + f"<td>{_time(summary, name)}</td></tr>"
        for name in summary.methods
    )
    split = ", ".join(dict.fromkeys(r.split for r in data.results))
    table = (
        f'<div class="card scroll" tabindex="0" role="region" aria-label="Results by method">'
        f'<table class="main" aria-describedby="how-to-read"><thead><tr>'
        f'<th scope="col">Method</th>{heads}<th scope="col">Time'
        f'<span class="unit">&nbsp;</span></th></tr></thead><tbody>{rows}</tbody></table></div>'
    )
    meanings = "; ".join(f"<b>{escape(m.label)}</b> {escape(m.meaning)}" for m in metrics)
    rest = _all_metrics(summary, [describe(k) for k in summary.keys if k not in known])
    reading = (
        f"Split: {escape(split)}; {rule_of_bold(summary)}. "
        "In small type: 95 % interval over the test images, where measured."
    )
    return f'<p id="how-to-read" class="note">{reading}</p>{table}<p class="note under-table">{meanings}.</p>{rest}'


def _all_metrics(summary: Summary, metrics: list[Metric]) -> str:
    if not metrics:
        return ""
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in summary.methods)
    rows = "".join(
        f'<tr><th scope="row"><code>{escape(m.key)}</code>{" (%)" if m.unit == "percent" else ""}</th>'
        + "".join(_cell(summary, name, m, bold=False) for name in summary.methods)
        + "</tr>"
        for m in metrics
    )
    return (
        '<details><summary>All other metrics</summary><div class="card scroll" tabindex="0" role="region" '
        f'aria-label="All other metrics"><table><thead><tr><th scope="col">Metric</th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></details>"
    )


def _cell(summary: Summary, method: str, metric: Metric, bold: bool = True) -> str:
    cell = summary.cell(method, metric.key)
    if cell is None:
        return f'<td title="not measured">{DASH}</td>'
    text = format_value(metric, cell.mean)
    if bold and summary.best(metric.key) == method:
        text = f"<strong>{text}</strong>"
    if cell.sd is not None:
        text += f"<small>± {format_spread(metric, cell.mean, cell.sd)}</small>"
    if cell.low is not None and cell.high is not None:
        text += f"<small>{format_value(metric, cell.low)} to {format_value(metric, cell.high)}</small>"
    return f"<td>{text}</td>"


def _time(summary: Summary, method: str) -> str:
    seconds = summary.seconds.get(method)
    return DASH if seconds is None else format_seconds(seconds)


def _maps(data: ReportData) -> str:
    if not data.maps:
        return ""
    projections = [figures.project(m) for m in data.maps]
    panels = "".join(
        f'<figure class="card"><figcaption><b>{escape(p.label)}</b>gap {p.gap:.3f} · the plane shows '
        f"{100 * p.share:.0f} % of the variance</figcaption>{svg}</figure>"
        for p, svg in zip(projections, figures.map_panels(projections, "map"), strict=True)
    )
    legend = _legend(
        [
            ("image", "images", _CIRCLE),
            ("text", "texts", _TRIANGLE),
            ("soft", "some pairs", _line("")),
        ]
    )
    wide = "" if len(projections) % 3 == 0 else " wide"
    return (
        "<p>Each point is one test image or caption. Every panel is a linear projection (PCA, two axes) "
        "fitted to its own images and texts together, so both modalities are seen from the same side. All "
        "panels have one scale: a length means the same distance everywhere. Large marks are the centroids; "
        f'the gap is their distance in the full space.</p>{legend}<div class="grid{wide}">{panels}</div>'
    )


_CIRCLE = '<circle cx="13" cy="6" r="5" fill="currentColor"/>'
_TRIANGLE = '<path d="M13 0 7 12H19Z" fill="currentColor"/>'
_BOX = '<rect x="4" width="18" height="12" fill="currentColor" opacity=".7"/>'


def _line(dashes: str) -> str:
    return f'<path d="M0 6H26" stroke="currentColor" stroke-width="2" stroke-dasharray="{dashes}"/>'


def _legend(entries: list[tuple[str, str, str]]) -> str:
    items = "".join(
        f'<li><svg viewBox="0 0 26 12" style="color:var(--{colour})" aria-hidden="true">{mark}</svg>'
        f"{escape(label)}</li>"
        for colour, label, mark in entries
    )
    return f'<ul class="legend">{items}</ul>'


def _cosines(data: ReportData) -> str:
    panels = figures.cosine_panels(data.cosines, "cos")
    if not panels:
        return ""
    shown = "".join(
        f'<figure class="card"><figcaption><b>{escape(name)}</b></figcaption>{svg}</figure>'
        for name, svg in panels.items()
    )
    legend = _legend([("paired", "image and its own caption", _BOX), ("unpaired", "image and another caption", _BOX)])
    return (
        "<p>The further apart the two heaps, the better pairs can be told from non-pairs. Both heaps have "
        f'the same area; dashed lines are the means.</p>{legend}<div class="grid">{shown}</div>'
    )


def _training(data: ReportData, summary: Summary) -> str:
    order = {name: i for i, name in enumerate(m for m in summary.methods if _trained(data, m))}
    panels = figures.curve_panels(data.results, order, "curve")
    if not panels:
        return ""
    legend = _legend(
        [(METHOD_COLOURS[i % len(METHOD_COLOURS)], name, _line(_DASHES[i % len(_DASHES)])) for name, i in order.items()]
    )
    shown = "".join(
        f'<figure class="card"><figcaption><b>{escape(key)}</b></figcaption>{svg}</figure>'
        for key, svg in panels.items()
    )
    words = "<p>One line a run. Loss terms are drawn without their weights.</p>"
    return f'{words}{legend}<div class="grid">{shown}</div>'


def _trained(data: ReportData, method: str) -> bool:
    return any(r.name == method and r.history for r in data.results)


def _settings(data: ReportData) -> str:
    facts: dict[str, str] = {"commit": data.commit} if data.commit else {}
    if data.seed is not None:
        facts["seed"] = str(data.seed)
    facts.update({name: str(version) for name, version in data.versions.items()})
    parts = []
    settings = {key: str(value) for key, value in flat(data.config).items()}
    for title, rows in (("Versions", facts), ("Resolved settings", settings)):
        if rows:
            body = "".join(f'<tr><th scope="row">{escape(k)}</th><td>{escape(v)}</td></tr>' for k, v in rows.items())
            table = f'<table class="kv"><tbody>{body}</tbody></table>'
            parts.append(f'<details><summary>{title}</summary><div class="card scroll">{table}</div></details>')
    return "".join(parts)


def _footer(data: ReportData) -> str:
    pictures = f"<p>Pictures: {escape(data.attribution)}</p>" if data.attribution else ""
    words = "<p>Written by csaligner. This file is complete: it loads nothing from elsewhere.</p>"
    return f"<footer>{pictures}{words}</footer>"
