"""Weak results: those whose score most queries without an answer reach as well.

A result is weak if chance(score) > 0.8 (search/unanswered.py): four of five queries of its kind without an answer find
something closer. The limit is the same for every kind of query, space and restriction of the results.

With too few captions for that, 64 fixed queries of nonsense (random letters, invented words; random images) are
searched in the index, once per kind, space and restriction, and a result is weak if its score is not above

    the 0.9 quantile of the best scores of these queries.

The limit depends on the index: in a larger one, something is closer to every query. No judgements are needed.
"""

from __future__ import annotations

import random
import string
import threading

import numpy as np
from PIL import Image
from torch import Tensor, tensor

from csaligner.model import AlignedModel
from csaligner.types import Modality

from .index import Encoded, Index, Kind, SearchOptions
from .unanswered import Unanswered, rounded

QUERIES: dict[Modality, int] = {"text": 64, "image": 16}
QUANTILE = 0.9
WEAK_CHANCE = 0.8  # separates 20 queries on the subject of a collection from 20 others (docs/search.md)
CONSONANTS, VOWELS = "bcdfghjklmnprstvwz", "aeiou"
SIDE = 64  # pixels of a random image


class WeakLimits:
    """Limits of weak scores of an index; measured on first use and again after a write to the index. Thread-safe."""

    def __init__(self, index: Index, unanswered: Unanswered | None = None) -> None:
        """unanswered: of the same index, if it is measured anyway."""
        self._index = index
        self._unanswered = unanswered or Unanswered(index)
        self._lock = threading.Lock()
        self._version: list[int] = []
        self._limits: dict[tuple[Kind, SearchOptions], float] = {}
        self._encoded: dict[Modality, Tensor] = {}

    def limit(self, kind: Kind, options: SearchOptions | None = None) -> float:
        """Return the score up to which results of a query of this kind are weak; -inf for an empty index.

        kind: see index.Kind. A query of both modalities has the limit of its weight rounded to one decimal.
        """
        found = self._unanswered.limit(kind, options, WEAK_CHANCE)
        return self._nonsense_limit(kind, options) if found is None else found

    def _nonsense_limit(self, kind: Kind, options: SearchOptions | None) -> float:
        key = (rounded(kind), options or SearchOptions())
        with self._lock:
            if self._version != self._index.items.version:
                self._version = self._index.items.version
                self._limits.clear()
            if key not in self._limits:
                self._limits[key] = self._measure(*key)
            return self._limits[key]

    def _measure(self, kind: Kind, options: SearchOptions) -> float:
        best = self._index.best_scores(self._queries(kind), options)
        return float(tensor(best).quantile(QUANTILE)) if best else -float("inf")

    def _queries(self, kind: Kind) -> list[Encoded]:
        """Return encoded queries of nonsense: both modalities in turn for a weight."""
        if not isinstance(kind, float):
            return [Encoded({kind: row}) for row in self._rows(kind)]
        images, texts = self._rows("image"), self._rows("text")
        return [Encoded({"image": images[n % len(images)], "text": row}, kind) for n, row in enumerate(texts)]

    def _rows(self, modality: Modality) -> Tensor:
        if modality not in self._encoded:
            self._encoded[modality] = _encode(self._index.model, modality)
        return self._encoded[modality]


def _encode(model: AlignedModel, modality: Modality) -> Tensor:
    """Encode the queries of nonsense to (N, d_encoder)."""
    return model.features_text(nonsense_texts()) if modality == "text" else model.features_image(nonsense_images())


def nonsense_texts(count: int = QUERIES["text"], seed: int = 0) -> list[str]:
    """Return texts without meaning: random letters, letters and digits, and invented words."""
    rng = random.Random(seed)

    def letters(least: int, most: int, of: str = string.ascii_lowercase) -> str:
        return "".join(rng.choices(of, k=rng.randint(least, most)))

    def invented() -> str:
        return "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(rng.randint(2, 4)))

    kinds = (
        lambda: letters(6, 14),
        lambda: " ".join(invented() for _ in range(rng.randint(1, 4))),
        lambda: " ".join(letters(3, 8) for _ in range(rng.randint(2, 5))),
        lambda: letters(5, 12, string.ascii_letters + string.digits),
    )
    return [kinds[i % len(kinds)]() for i in range(count)]


def nonsense_images(count: int = QUERIES["image"], seed: int = 0) -> list[Image.Image]:
    """Return random images: noise in colour, from single pixels to large patches."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        side = (SIDE, SIDE // 4, SIDE // 16, 2)[i % 4]
        pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        found.append(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return found
