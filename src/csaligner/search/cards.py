"""Search results as cards: one per image, with the caption that matched; texts without an image, once each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from csaligner.datasets.images.source import file_of, from_uri
from csaligner.types import Modality

from .index import Encoded, Hit, Index, Query, SearchOptions
from .lance_table import Row

Matched = Modality | Literal["both"]
HITS_PER_CARD = 6  # read at first, since an image and its captions are several hits
MORE = 4  # factor of the next attempt, if these are too few


@dataclass(frozen=True)
class Card:
    """One image or text.

    score, cosine: of its best hit; hit, matched: id and modality of that hit (a caption, for an image found by its
    caption), or both for a fused item. path: the image, or the file of a text, "" if there is none. text: of an image
    its best matching caption, else its first. owners, images: ids and paths of the images that a text describes.
    missing: the file no longer exists.
    """

    id: str
    modality: Modality
    score: float
    path: str
    text: str
    images: tuple[str, ...] = ()
    missing: bool = False
    cosine: float = 0.0
    matched: Matched = "text"
    owners: tuple[str, ...] = ()
    hit: str = ""


def search_cards(
    index: Index, query: Query, k: int = 10, options: SearchOptions | None = None, *, offset: int = 0
) -> list[Card]:
    """Return the k best cards after the first `offset`, best first.

    A caption belongs to the card of its image, unless options.only is "texts". Then each text is a card, and equal
    texts are one.

    query: a text (str), an image (Path or PIL image) or both (FusedQuery).
    """
    return cards_of_encoded(index, index.encode(query), k, options, offset=offset)


def cards_of_encoded(
    index: Index, query: Encoded, k: int = 10, options: SearchOptions | None = None, *, offset: int = 0
) -> list[Card]:
    """search_cards by an encoded query."""
    options = options or SearchOptions()
    end = offset + k
    total, wanted = len(index), end * HITS_PER_CARD
    while True:
        hits = index.search_encoded(query, wanted, options)
        cards = group_hits(index, hits, texts=options.only == "texts")
        if len(cards) >= end or len(hits) < wanted or wanted >= total:
            return cards[offset:end]
        wanted *= MORE


def group_hits(index: Index, hits: Sequence[Hit], *, texts: bool = False) -> list[Card]:
    """Group hits, best first, into cards in the order of their best hits. texts: captions stay texts of their own."""
    owners = index.items.by_id(sorted({hit.owner for hit in hits if hit.owner}))
    rows = {row.id: row for row in owners if row.modality == "image"}
    cards: dict[tuple[Modality, str], Card] = {}
    for hit in hits:
        owned = hit.owner in rows
        image = hit.id if hit.modality == "image" else hit.owner if owned and not texts else None
        key: tuple[Modality, str] = ("text", hit.text) if image is None else ("image", image)
        known = cards.get(key)
        if known is None:
            cards[key] = _card(hit, image, rows)
        elif image is not None:
            cards[key] = replace(known, text=known.text or _text(hit))
        elif owned:
            images, owned_by = (*known.images, rows[hit.owner].path), (*known.owners, hit.owner)
            cards[key] = replace(known, images=images, owners=owned_by)
    captions = {hit.id: hit.caption for hit in hits if hit.modality == "image"}
    captions |= {row.id: row.caption for row in rows.values()}
    return [replace(c, text=c.text or captions.get(c.id, "")) for c in cards.values()]


def _text(hit: Hit) -> str:
    """Return the text of a card: of a fused item its first caption."""
    return hit.caption if hit.fused else hit.text


def _card(hit: Hit, image: str | None, rows: Mapping[str, Row]) -> Card:
    """Return the card that a hit opens. image: id of the image that it belongs to; rows: owners by id."""
    matched: Matched = "both" if hit.fused else hit.modality
    found = Card(hit.id, "text", hit.score, hit.path, _text(hit), (), hit.missing, hit.cosine, matched, (), hit.id)
    if image is None:
        if hit.owner not in rows:
            return found
        return replace(found, path="", images=(rows[hit.owner].path,), owners=(hit.owner,))
    path = rows[image].path if image in rows else hit.path
    missing = hit.missing if hit.modality == "image" else bool(path) and not file_of(from_uri(path)).exists()
    return replace(found, id=image, modality="image", path=path, missing=missing)
