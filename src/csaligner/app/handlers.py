"""Handlers of the API routes; they run in a thread pool."""

from __future__ import annotations

import io
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from PIL import Image

from csaligner.adapters.fusion import WEIGHT, check_image_weight
from csaligner.checks import InputError, check_choice
from csaligner.datasets.images.load import ImageError
from csaligner.datasets.images.source import file_of, from_uri
from csaligner.search.calibration import MODALITIES
from csaligner.search.cards import Card, cards_of_encoded
from csaligner.search.index import Index, SearchOptions
from csaligner.search.lance_table import FUSED, Row
from csaligner.search.query import Encoded, FusedQuery
from csaligner.search.unanswered import Unanswered
from csaligner.search.weak import WeakLimits
from csaligner.types import Modality

from .collection import collection_map, collection_name, example_texts, file_within
from .guard import LOOPBACK_NAMES, host_name, is_loopback
from .pictures import MAX_UPLOAD, SIZES, Original, original, read_upload, source_of, thumbnail

if TYPE_CHECKING:
    from .server import ServeSettings

MOST_HITS, MOST_RESULTS, MOST_WORDS = 60, 1000, 2000  # per page, over all pages, characters of a query
DEFAULT_HITS = 20
FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")  # set by a proxy

Generator = Callable[[str, int], Image.Image]  # prompt, seed -> generated image


class Handlers:
    """Handlers of an index. ready: set when the encoders are loaded, so that a search is fast."""

    def __init__(self, index: Index, settings: ServeSettings) -> None:
        self.index, self.settings = index, settings
        self.name = settings.name or collection_name(index)
        self.ready = threading.Event()
        self._unanswered = Unanswered(index)
        self._limits = WeakLimits(index, self._unanswered)
        self._trouble = ""
        self._loading = threading.Lock()  # never released: load() runs once
        self.map = lru_cache(None)(lambda space: [list(asdict(p).values()) for p in collection_map(index, space)])

    def load(self) -> None:
        """Load the encoders in the background, once."""
        if self._loading.acquire(blocking=False):
            threading.Thread(target=self._load, daemon=True).start()

    def _load(self) -> None:
        for modality in MODALITIES[::-1]:  # texts first: faster to load, and more frequent
            self._warm(modality)
        self.ready.set()

    def _warm(self, modality: Modality) -> None:
        try:
            self.index.warm(modality)
            self._limits.limit(modality)
        except Exception as error:  # an encoder may raise any exception; a search raises it again
            self._trouble = self._trouble or " ".join(str(error).split())[:500]

    def about(self, _: Any) -> dict[str, Any]:
        """Describe the collection."""
        self.load()
        return {
            "name": self.name,
            "counts": self.index.counts,
            "fused": self.index.items.count(FUSED),
            "spaces": self.index.spaces,
            "bias": self.index.bias,
            "examples": example_texts(self.index),
            "note": self.index.note,
            "generate": self.settings.generate is not None,
            "max_upload": MAX_UPLOAD,
        }

    def status(self, _: Any) -> dict[str, Any]:
        """Report whether the encoders are loaded."""
        self.load()
        return {"ready": self.ready.is_set(), "error": self._trouble}

    def search(self, request: Any) -> dict[str, Any]:
        """Search by text."""
        words = _words(request)
        return self._answer(request, lambda: self.index.encode(words))

    def search_image(self, request: Any, body: bytes) -> dict[str, Any]:
        """Search by an uploaded image, with words if there are any."""
        words, share = _words(request), _image_weight(request)
        image = read_upload(body, self.index.model.image_size)
        query = FusedQuery(words, image, share) if words.strip() else image
        return self._answer(request, lambda: self.index.encode(query))

    def similar(self, request: Any) -> dict[str, Any]:
        """Search with an item of the index as the query."""
        row = self._row(request)
        if row.modality == "text":
            return self._answer(request, lambda: self.index.encode(row.text))
        try:
            features = self.index.model.features_image([source_of(self._shown(row))])[0]
        except ImageError:  # its message contains the path, which is private
            raise ImageError(f"{row.id}: cannot be read as an image") from None
        if row.kind != FUSED:
            return self._answer(request, lambda: Encoded({"image": features}))
        words, weight = self.index.features(row.caption), self.index.manifest.fused or 0.0
        return self._answer(request, lambda: Encoded({"image": features, "text": words}, weight))

    def item(self, request: Any) -> dict[str, Any]:
        """Return an item of the index; its path only to this machine."""
        row = self._row(request)
        found = {
            "id": row.id,
            "modality": row.modality,
            "text": row.text,
            "caption": row.caption,
            "owner": row.owner,
            "image": row.owner or (row.id if row.modality == "image" else ""),
            "file": file_within(row.path, (row.source,)),
        }
        return found | ({"path": row.path} if row.path and self._shows_paths(request) else {})

    def points(self, request: Any) -> dict[str, Any]:
        """Return the map of the collection."""
        space = request.query_params.get("space", "aligned")
        check_choice("space", space, self.index.spaces)
        return {"points": self.map(space)}

    def generate(self, request: Any) -> bytes:
        """Generate an image from a text."""
        if self.settings.generate is None:
            raise InputError("no decoder is loaded; start with --decoder")
        words = request.query_params.get("q", "").strip()[:MOST_WORDS]
        if not words:
            raise InputError("the prompt is empty; enter a text")
        buffer = io.BytesIO()
        self.settings.generate(words, _number(request, "seed", 0, 2**31 - 1)).save(buffer, "PNG")
        return buffer.getvalue()

    def thumb(self, request: Any) -> bytes:
        """Return a thumbnail of an image, or of the image that a caption describes."""
        size = _number(request, "size", SIZES[0], SIZES[-1])
        return thumbnail(self._shown(self._row(request)), next(s for s in SIZES if s >= size))

    def original(self, request: Any) -> Original:
        """Return the original file of an image."""
        row = self._row(request)
        if row.modality != "image":
            raise ImageError("this item is not an image")
        return original(self._shown(row))

    def _answer(self, request: Any, encode: Callable[[], Encoded]) -> dict[str, Any]:
        started = time.perf_counter()
        params = request.query_params
        options = SearchOptions(only=params.get("only") or None, space=params.get("space", "aligned"))
        k = _number(request, "k", DEFAULT_HITS, MOST_HITS, least=1)
        offset = _number(request, "offset", 0, MOST_RESULTS - k)
        query = encode()
        cards = cards_of_encoded(self.index, query, k + 1, options, offset=offset)
        limit = self._limits.limit(query.kind, options)
        sources = self.index.manifest.sources
        first = cards[0].score if cards and not offset else None
        chance = None if first is None else self._unanswered.chance(first, query.kind, options)
        return {
            "results": [_for_page(card, limit, sources) for card in cards[:k]],
            "offset": offset,
            "more": len(cards) > k and offset + k < MOST_RESULTS,
            "weak_limit": round(limit, 4) if math.isfinite(limit) else None,
            "chance": None if chance is None else round(chance, 4),
            "seconds": time.perf_counter() - started,
        }

    def _row(self, request: Any) -> Row:
        row = self.index.row(request.query_params.get("id", ""))
        if row is None:
            raise ImageError("the index has no item with this id")
        return row

    def _shown(self, row: Row) -> Row:
        """Return the row if its image may be shown. Raises ImageError for a file that an index from elsewhere names."""
        path = file_of(from_uri(row.path)).resolve()
        if not self.index.trusted and not path.is_relative_to(self.index.path.resolve()):
            raise ImageError(f"{row.id}: is not shown, since the index was not made on this machine (serve --trust)")
        return row

    def _shows_paths(self, request: Any) -> bool:
        """Return whether the request comes from this machine, not through a proxy."""
        headers, settings = request.headers, self.settings
        if not is_loopback(settings.host) or settings.allow_hosts or settings.root_path:
            return False
        local = host_name(headers.get("host", "")) in LOOPBACK_NAMES
        return local and not any(name in headers for name in FORWARDED)


def _for_page(card: Card, limit: float, sources: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a result, without local paths."""
    image = card.id if card.modality == "image" else card.owners[0] if card.owners else ""
    return {
        "id": card.id,
        "modality": card.modality,
        "score": round(card.score, 4),
        "cosine": round(card.cosine, 4),
        "weak": card.score <= limit,
        "matched": card.matched,
        "hit": card.hit,
        "text": card.text,
        "image": image,
        "images": len(card.owners),
        "file": file_within(card.images[0] if card.images else card.path, sources),
        "missing": card.missing,
    }


def _words(request: Any) -> str:
    words: str = request.query_params.get("q", "")
    if unknown := sorted({"query", "text", "words"} & set(request.query_params)):
        raise InputError(f"{unknown[0]}: is not a parameter; the query is q")
    if len(words) > MOST_WORDS:
        raise InputError(f"the query has {len(words)} characters; the limit is {MOST_WORDS}")
    return words


def _image_weight(request: Any) -> float:
    """Return the weight of the image in a query of words and an image."""
    value = request.query_params.get("image_weight", str(WEIGHT))
    try:
        weight = float(value[:40])
    except ValueError:
        raise InputError(
            f"image_weight: got {value[:40]!r}, wanted a number from 0 (text only) to 1 (image only)"
        ) from None
    check_image_weight(weight)
    return weight


def _number(request: Any, name: str, default: int, most: int, *, least: int = 0) -> int:
    value = request.query_params.get(name, str(default))
    if not (value.isascii() and value.isdecimal()) or not least <= int(value[:12]) <= most:
        raise InputError(f"{name}: got {value[:40]!r}, wanted a whole number from {least} to {most}")
    return int(value)
