"""Weak results: those whose score a query of nonsense reaches as well.

64 fixed queries of nonsense (random letters, invented words; random images) are searched in the index, once per
modality, space and restriction of the results. A result is weak if its score is not above

    the 0.9 quantile of the best scores of these queries,

so 9 of 10 queries of nonsense find weak results only. The limit depends on the index: in a larger one, nonsense comes
closer to some item. No captions or judgements are needed.
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

QUERIES: dict[Modality, int] = {"text": 64, "image": 16}
QUANTILE = 0.9
CONSONANTS, VOWELS = "bcdfghjklmnprstvwz", "aeiou"
SIDE = 64  # pixels of a random image


class WeakLimits:
    """Limits of weak scores of an index; measured on first use and again after a write to the index. Thread-safe."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._lock = threading.Lock()
        self._version: list[int] = []
        self._limits: dict[tuple[Kind, SearchOptions], float] = {}
        self._encoded: dict[Modality, Tensor] = {}

    def limit(self, kind: Kind, options: SearchOptions | None = None) -> float:
        """Return the score up to which results of a query of this kind are weak; -inf for an empty index.

        kind: see index.Kind. A query of both modalities has the limit of random images with nonsense texts, measured
        at its weight rounded to one decimal, so that few limits are measured.
        """
        rounded = min(0.9, max(0.1, round(kind, 1))) if isinstance(kind, float) else kind
        key = (rounded, options or SearchOptions())
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
