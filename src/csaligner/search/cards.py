"""Search results as cards: one per image, with the caption that matched; texts without an image, once each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from csaligner.datasets.images.source import file_of, from_uri
from csaligner.types import Modality

from .index import Hit, Index, Query, SearchOptions

HITS_PER_CARD = 6  # read at first, since an image and its captions are several hits
MORE = 4  # factor of the next attempt, if these are too few


@dataclass(frozen=True)
class Card:
    """One image or text. score: the best of its hits. path: the image, or the file of a text, "" if there is none.
    text: of an image its best matching caption, else its first. images: paths of the images that a text describes.
    missing: the file no longer exists."""

    id: str
    modality: Modality
    score: float
    path: str
    text: str
    images: tuple[str, ...] = ()
    missing: bool = False


def search_cards(index: Index, query: Query, k: int = 10, options: SearchOptions | None = None) -> list[Card]:
    """Return the k best cards, best first.

    A caption belongs to the card of its image, unless options.only is "texts". Then each text is a card, and equal
    texts are one.
    """
    options = options or SearchOptions()
    total, wanted = len(index), k * HITS_PER_CARD
    while True:
        hits = index.search(query, wanted, options)
        cards = _cards(index, hits, texts=options.only == "texts")
        if len(cards) >= k or len(hits) < wanted or wanted >= total:
            return cards[:k]
        wanted *= MORE


def _cards(index: Index, hits: Sequence[Hit], *, texts: bool) -> list[Card]:
    owners = index.items.by_id(sorted({hit.owner for hit in hits if hit.owner}))
    paths = {row.id: row.path for row in owners if row.modality == "image"}
    cards: dict[tuple[str, str], Card] = {}
    for hit in hits:
        image = hit.id if hit.modality == "image" else hit.owner if hit.owner in paths and not texts else None
        key = ("text", hit.text) if image is None else ("image", image)
        described = (paths[hit.owner],) if image is None and hit.owner in paths else ()
        known = cards.get(key)
        if known is not None:
            cards[key] = replace(known, text=known.text or hit.text, images=(*known.images, *described))
        elif image is None:
            cards[key] = Card(
                hit.id, "text", hit.score, "" if described else hit.path, hit.text, described, hit.missing
            )
        else:
            path = paths.get(image, hit.path)
            missing = hit.missing if hit.modality == "image" else not file_of(from_uri(path)).exists()
            cards[key] = Card(image, "image", hit.score, path, hit.text, (), missing)
    captions = {hit.id: hit.caption for hit in hits if hit.modality == "image"}
    return [replace(card, text=card.text or captions.get(card.id, "")) for card in cards.values()]
