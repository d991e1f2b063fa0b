"""Example queries of a report with the results of each method, as HTML."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from markupsafe import Markup

from .page import module
from .record import GalleryQuery, Hit, QueryKind, ReportData

BUDGET = 4_000_000  # characters of HTML for all queries together
_RULE = (
    "The queries are those whose right item changes its rank in the mixed index most between {} and {}: the largest "
    "gains, the median, and the largest losses, in this order."
)
_KINDS: Mapping[QueryKind, tuple[str, str]] = {
    "text-to-image": ("{Text} to {image}", "The index contains only {images}."),
    "mixed": (
        "One index of {images} and {texts}",
        "{Images} and {texts} compete for the same ranks. A method with a gap returns mostly {texts} for a {text} "
        "query.",
    ),
}


def gallery_html(data: ReportData) -> Markup:
    """Return all queries, grouped by type, best hits first. Queries beyond the size limit are counted only."""
    card, fill = module("gallery.html").query_card, data.names.fill
    names = list(next(iter(data.gallery)).results) if data.gallery else []
    parts = [Markup('<p class="note">{}</p>').format(_RULE.format(names[0], names[-1]))] if len(names) > 1 else []
    used = skipped = 0
    for kind, (title, note) in _KINDS.items():
        cards: list[Markup] = []
        for query in (q for q in data.gallery if q.kind == kind):
            rows = [(name, _score(query, list(hits), fill), list(hits)) for name, hits in query.results.items()]
            html = card(query, rows, fill)
            if used + len(html) > BUDGET:
                skipped += 1
                continue
            used += len(html)
            cards.append(html)
        if cards:
            parts.append(Markup('<h3>{}</h3><p class="note">{}</p>').format(fill(title), fill(note)))
            parts += cards
    if skipped:
        parts.append(
            Markup('<p class="note">{} more queries are not shown, to limit the size of this page.</p>').format(skipped)
        )
    return Markup("").join(parts)


def _score(query: GalleryQuery, hits: list[Hit], fill: Callable[[str], str]) -> str:
    """Return the rank of the first relevant item of the other modality, as text."""
    wanted = "image" if query.query_text is not None else "text"
    first, name = (
        next((i for i, h in enumerate(hits, 1) if h.correct and h.modality == wanted), None),
        fill(f"{{{wanted}}}"),
    )
    return f"no relevant {name} in top {len(hits)}" if first is None else f"relevant {name} at rank {first}"
