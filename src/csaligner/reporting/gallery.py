"""The part of the page that shows real queries and what came back."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html import escape

from csaligner.checks import CSAlignerError
from csaligner.types import ImageSource

from .record import GalleryQuery, Hit, QueryKind, ReportData

THUMBNAIL = 96
BUDGET = 4_000_000  # characters of HTML for all queries together
_KINDS: Mapping[QueryKind, tuple[str, str]] = {
    "text-to-image": ("Text to image", "The index holds pictures only."),
    "mixed": (
        "One index of pictures and texts",
        "Pictures and texts compete for the same places. A method with a gap answers a text with texts.",
    ),
}


def gallery_html(data: ReportData) -> str:
    """All queries by kind, best hits first. What would make the page too big is counted, not shown."""
    thumbnails = _Thumbnails()
    parts: list[str] = []
    used = left_out = 0
    for kind, (title, note) in _KINDS.items():
        cards: list[str] = []
        for query in (q for q in data.gallery if q.kind == kind):
            card = _query(query, thumbnails)
            if used + len(card) > BUDGET:
                left_out += 1
                continue
            used += len(card)
            cards.append(card)
        if cards:
            parts.append(f'<h3>{title}</h3><p class="note">{note}</p>{"".join(cards)}')
    if left_out:
        parts.append(f'<p class="note">{left_out} more queries were left out to keep this page small.</p>')
    return "".join(parts)


def _query(query: GalleryQuery, thumbnails: _Thumbnails) -> str:
    if query.query_text is not None:
        head = f"<span>\u201c{escape(query.query_text)}\u201d</span>"
    else:
        head = thumbnails.tag(query.query_image, "the query picture") + "<span>a picture as the query</span>"
    rows = "".join(
        f'<div class="method"><h5>{escape(name)} <small>{_score(query, hits)}</small></h5>'
        f'<ol class="hits">{"".join(_hit(h, thumbnails, query.kind) for h in hits)}</ol></div>'
        for name, hits in ((name, list(hits)) for name, hits in query.results.items())
    )
    return f'<article class="card query {query.kind}"><h4>{head}</h4>{rows}</article>'


def _score(query: GalleryQuery, hits: list[Hit]) -> str:
    """Where the first right answer of the other modality stands: a right answer of the query's own is easy."""
    wanted = "image" if query.query_text is not None else "text"
    first = next((i for i, h in enumerate(hits, 1) if h.correct and h.modality == wanted), None)
    return f"no right {wanted} in {len(hits)}" if first is None else f"right {wanted} at {first}"


def _hit(hit: Hit, thumbnails: _Thumbnails, kind: QueryKind) -> str:
    caption = escape(hit.caption)
    picture = thumbnails.tag(hit.thumbnail, hit.caption) if hit.modality == "image" else ""
    inside = picture or f"<q>{caption}</q>"
    under = caption if picture else ""
    tick = '<span class="tick" title="right">\u2713<span hidden> right</span></span>' if hit.correct else ""
    badge = f'<span class="badge">{hit.modality}</span>' if kind == "mixed" else ""
    classes = f"hit {hit.modality}" + (" right" if hit.correct else "")
    return (
        f'<li class="{classes}" title="{caption}, score {hit.score:.3f}">'
        f'<span class="tilebox">{inside}{badge}{tick}</span>'
        f'<span class="under">{under}</span></li>'
    )


class _Thumbnails:
    """Pictures at 96 px as data URIs, each made once. A picture that cannot be read becomes no picture."""

    def __init__(self) -> None:
        self._made: dict[bytes | ImageSource, str] = {}

    def tag(self, source: bytes | ImageSource | None, alt: str) -> str:
        if source is None:
            return ""
        if source not in self._made:
            self._made[source] = _data_uri(source)
        uri = self._made[source]
        return f'<img src="{uri}" alt="{escape(alt)}" width="72" height="72" loading="lazy">' if uri else ""


def _data_uri(source: bytes | ImageSource) -> str:
    from PIL import Image

    try:
        if isinstance(source, bytes):
            picture: Image.Image = Image.open(io.BytesIO(source))
        else:
            from csaligner.datasets.images.load import load_image

            picture = load_image(source, size=2 * THUMBNAIL)
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, "white")
        flat = Image.alpha_composite(ground, picture).convert("RGB")
        flat.thumbnail((THUMBNAIL, THUMBNAIL))
    except (OSError, ValueError, SyntaxError, CSAlignerError, Image.DecompressionBombError):
        return ""
    choices = []
    for form in ("JPEG", "PNG"):
        buffer = io.BytesIO()
        small = flat.quantize(64) if form == "PNG" else flat
        small.save(buffer, format=form, quality=85, optimize=True)
        choices.append((len(buffer.getvalue()), form.lower(), buffer.getvalue()))
    _, form, encoded = min(choices)
    return f"data:image/{form};base64,{base64.b64encode(encoded).decode()}"
