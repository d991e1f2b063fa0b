"""The queries of a report and what each method returned, as HTML."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from .page import module
from .record import GalleryQuery, Hit, QueryKind, ReportData

BUDGET = 4_000_000  # characters of HTML for all queries together
_KINDS: Mapping[QueryKind, tuple[str, str]] = {
    "text-to-image": ("Text to image", "The index holds images only."),
    "mixed": (
        "One index of images and texts",
        "Images and texts compete for the same ranks. A method with a gap answers a text query with texts.",
    ),
}


def gallery_html(data: ReportData) -> Markup:
    """All queries by kind, best hits first. Queries beyond the size budget are counted, not shown."""
    card = module("gallery.html").query_card
    parts: list[Markup] = []
    used = skipped = 0
    for kind, (title, note) in _KINDS.items():
        cards: list[Markup] = []
        for query in (q for q in data.gallery if q.kind == kind):
            html = card(query, [(name, _score(query, list(hits)), list(hits)) for name, hits in query.results.items()])
            if used + len(html) > BUDGET:
                skipped += 1
                continue
            used += len(html)
            cards.append(html)
        if cards:
            parts.append(Markup('<h3>{}</h3><p class="note">{}</p>').format(title, note))
            parts += cards
    if skipped:
        parts.append(
            Markup('<p class="note">{} more queries are not shown, to keep this page small.</p>').format(skipped)
        )
    return Markup("").join(parts)


def _score(query: GalleryQuery, hits: list[Hit]) -> str:
    """The rank of the first relevant item of the other modality: one of the query's own modality is easy to find."""
    wanted = "image" if query.query_text is not None else "text"
    first = next((i for i, h in enumerate(hits, 1) if h.correct and h.modality == wanted), None)
    return f"no relevant {wanted} in {len(hits)}" if first is None else f"relevant {wanted} at {first}"
