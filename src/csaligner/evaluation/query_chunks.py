"""Cosines of the queries of one modality with all items, for some queries at a time.

A chunk holds one product per modality searched; retrieval.py and mixed_search.py both read it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.checks import check_same_dim
from csaligner.types import Modality, PairedFeatures

CHUNK = 512  # queries
ELEMENTS = 2**26  # scores of a chunk, for large sets


@dataclass(frozen=True)
class Matches:
    """Right items of Q queries: entry e says that `column[e]` is right for query `row[e]`, as its number `place[e]`."""

    queries: int
    row: Tensor
    column: Tensor
    place: Tensor

    def scores(self, scores: Tensor) -> Tensor:
        """Return the scores (Q, most matches of a query) of the right items, the rest -inf. scores: (Q, G)."""
        width = int(self.place.max()) + 1 if len(self.place) else 0
        found = scores.new_full((self.queries, width), -torch.inf)
        found[self.row, self.place] = scores[self.row, self.column]
        return found

    def mask(self, rows: Tensor, items: int) -> Tensor:
        """Return (len(rows), items) bool, True for the right items of these queries."""
        mask = torch.zeros(self.queries, dtype=torch.bool)
        mask[rows] = True
        place = mask.cumsum(dim=0) - 1
        kept = mask[self.row]
        found = torch.zeros(len(rows), items, dtype=torch.bool)
        found[place[self.row[kept]], self.column[kept]] = True
        return found


@dataclass(frozen=True)
class Chunk:
    """Q queries of a modality, at `rows` of it. other: (Q, G) cosines with the items of the other modality; own: with
    those of the same one, the query itself -inf; right, siblings: the right items among them. Without `own` for
    searches of the other modality alone."""

    rows: Tensor
    other: Tensor
    right: Matches
    own: Tensor | None = None
    siblings: Matches | None = None


def query_chunks(features: PairedFeatures, queries: Modality, *, mixed: bool) -> Iterator[Chunk]:
    """Yield all images or captions in order. mixed: with the cosines within the modality."""
    check_same_dim(("image_features", "text_features"), features.image, features.text)
    owner = features.text_to_image
    image, text = normalize(features.image, dim=1), normalize(features.text, dim=1)
    captions = _Captions(owner, len(image))
    points, others = (image, text) if queries == "image" else (text, image)
    size = max(1, min(CHUNK, ELEMENTS // (len(image) + len(text) if mixed else len(others))))
    for rows in torch.split(torch.arange(len(points)), size):
        other = points[rows] @ others.T
        items = rows if queries == "image" else owner[rows]
        first = torch.arange(len(rows))
        right = captions.of(items) if queries == "image" else Matches(len(rows), first, items, torch.zeros_like(first))
        if not mixed:
            yield Chunk(rows, other, right)
            continue
        own = points[rows] @ points.T
        own[first, rows] = -torch.inf
        none = first[:0]
        siblings = captions.of(items, besides=rows) if queries == "text" else Matches(len(rows), none, none, none)
        yield Chunk(rows, other, right, own, siblings)


class _Captions:
    """The captions of each image."""

    def __init__(self, owner: Tensor, n: int) -> None:
        self._order = torch.argsort(owner, stable=True)
        self._sizes = torch.bincount(owner, minlength=n)
        self._starts = self._sizes.cumsum(dim=0) - self._sizes

    def of(self, images: Tensor, besides: Tensor | None = None) -> Matches:
        """Return the captions of the image of each query. besides: (Q,) a caption to omit, the query itself."""
        sizes = self._sizes[images]
        row = torch.repeat_interleave(torch.arange(len(images)), sizes)
        place = torch.arange(len(row)) - torch.repeat_interleave(sizes.cumsum(dim=0) - sizes, sizes)
        column = self._order[self._starts[images][row] + place]
        if besides is not None:
            kept = column != besides[row]
            row, column, place = row[kept], column[kept], place[kept]
        return Matches(len(images), row, column, place)
