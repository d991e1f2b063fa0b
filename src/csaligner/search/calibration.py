"""Calibration of scores across modalities, estimated from the vectors of an index without pairs.

Even with good alignment, the cosines of a text with its nearest texts are higher than those with its nearest images,
so cosines of the two modalities are not comparable. For queries of one modality (a sample of the items of the index,
each excluded from its own candidates) and items of modality m, let F_m(p) be the cosine reached by a fraction p of the
items, averaged over the queries. A cosine s of an item of modality m is mapped to

    c_m(s) = F(p)   where F_m(p) = s,   F = (F_image + F_text) / 2

the mean over both modalities of the cosine at the same quantile. The map is increasing, so the order within a modality
does not change. The remaining modality_bias@10 on the sample is removed by a constant offset, added to the scores of
the query's modality.

Fused items (an image and its captions as one vector) are a third kind with a curve of their own: F is the mean over
the kinds, and the queries of a modality are also the parts of fused items, each excluded from its own item. Where all
items of the query's modality are fused, its offset is added to those.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csaligner.evaluation.mixed_search import K, modality_bias
from csaligner.integrity import open_seal
from csaligner.parsing import checked, parse_json
from csaligner.types import Modality

from .lance_table import FUSED, ItemKind
from .manifest import OWNER

MODALITIES: tuple[Modality, Modality] = ("image", "text")
Vectors = Mapping[ItemKind, Tensor] | Mapping[Modality, Tensor]
MIN_ITEMS = 2 * K  # per kind; cosines of a kind with fewer are not calibrated
QUERIES, CANDIDATES, KNOTS = 256, 20_000, 33
STEPS = 30  # of the bisection for the offset: final width 2^-30


@dataclass(frozen=True)
class Calibration:
    """curves[query][item]: cosines F_item(p) at increasing p; shared[query]: F(p); offset[query]: added to items of
    the query's modality (`own_kind`)."""

    curves: Mapping[str, Mapping[str, list[float]]]
    shared: Mapping[str, list[float]]
    offset: Mapping[str, float]

    @classmethod
    def fit(cls, vectors: Vectors, parts: Mapping[Modality, Tensor] | None = None, seed: int = 0) -> Calibration | None:
        """Fit to the unit rows (N, d) of each kind. parts: those of the fused items, row for row. Returns None if fewer
        than two kinds have MIN_ITEMS rows."""
        sample = _Sample.of(vectors, parts, seed)
        if len(sample.items) < 2:
            return None
        rarest = math.log10(min(len(v) for v in sample.items.values()))
        levels = torch.logspace(-rarest, 0, KNOTS)
        curves: dict[str, dict[str, list[float]]] = {}
        shared: dict[str, list[float]] = {}
        offset: dict[str, float] = {}
        for query in MODALITIES:
            scores = sample.scores(query)
            curves[query] = {kind: _mean_curve(scores[kind], levels).tolist() for kind in scores}
            shared[query] = [sum(point) / len(scores) for point in zip(*curves[query].values(), strict=True)]
            offset[query] = _Best.of(scores, query).offset(cls(curves, shared, {}))
        return cls(curves, shared, offset)

    def apply(self, query: Modality, item: ItemKind, cosines: Tensor) -> Tensor:
        """Calibrate cosines of any shape. Extrapolates with slope 1 beyond the curve; -inf is kept. Cosines of a kind
        without a curve stay as they are."""
        if item not in self.curves[query]:
            return cosines
        x = cosines.numpy()
        xp, fp = self._points[query][item]
        y = np.interp(x, xp, fp)
        y = np.where(x > xp[-1], x - xp[-1] + fp[-1], np.where(x < xp[0], x - xp[0] + fp[0], y))
        if item == own_kind(query, self.curves[query]):
            y = y + self.offset[query]
        return torch.from_numpy(y.astype(np.float32))

    @cached_property
    def _points(self) -> Mapping[str, Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]]:
        """Return the points of the curves by query and kind of item: increasing cosines and what they are mapped to."""
        return {
            query: {item: (np.array(curve)[::-1], np.array(self.shared[query])[::-1]) for item, curve in curves.items()}
            for query, curves in self.curves.items()
        }

    def apply_shares(self, shares: Mapping[Modality, float], item: ItemKind, cosines: Tensor) -> Tensor:
        """Calibrate cosines of a query of both modalities: the mean of `apply`, weighted by the shares, which sum to 1.

        Increasing like `apply`; a single share of 1 gives `apply` to the bit.
        """
        parts = [share * self.apply(query, item, cosines) for query, share in shares.items()]
        return sum(parts[1:], start=parts[0])

    def to_json(self) -> dict[str, Any]:
        return {"curves": self.curves, "shared": self.shared, "offset": self.offset}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Calibration:
        """Read the output of to_json. Raises ValueError for any other value."""
        found = checked(cls, value)
        complete = all(set(part) == set(MODALITIES) for part in (found.curves, found.shared, found.offset))
        kinds = [set(curves) for curves in found.curves.values()]
        if not complete or kinds[0] != kinds[1] or not (len(kinds[0]) > 1 and kinds[0] <= {*MODALITIES, FUSED}):
            raise ValueError("a modality is missing")
        if len({len(curve) for q in MODALITIES for curve in (found.shared[q], *found.curves[q].values())} - {0}) != 1:
            raise ValueError("its curves differ in length")
        return found


def own_kind(query: Modality, kinds: Container[str]) -> ItemKind:
    """Return the kind of the items of the query's modality: fused, where no others of it are calibrated."""
    return query if query in kinds else FUSED


def bias_of(
    vectors: Vectors,
    calibration: Calibration | None = None,
    parts: Mapping[Modality, Tensor] | None = None,
    seed: int = 1,
) -> dict[str, float]:
    """Return modality_bias@10 for image and text queries: fraction of the query's modality (`own_kind`) in the top 10,
    minus its fraction of the candidates. Queries are items of the index sampled with `seed`, excluded from their
    candidates. parts: see Calibration.fit."""
    sample = _Sample.of(vectors, parts, seed)
    if len(sample.items) < 2:
        return {}
    return {query: _Best.of(sample.scores(query), query).bias(calibration) for query in MODALITIES}


@dataclass(frozen=True)
class _Best:
    """The K best cosines of each kind for every query, which determine the top K over all; base: fraction of
    candidates of the query's modality."""

    query: Modality
    best: Mapping[ItemKind, Tensor]
    base: float

    @classmethod
    def of(cls, scores: Mapping[ItemKind, Tensor], query: Modality) -> _Best:
        own = scores[own_kind(query, scores)]
        total = sum(int((s > -torch.inf).sum()) for s in scores.values())
        base = int((own > -torch.inf).sum()) / total
        return cls(query, {m: s.topk(K, dim=1).values for m, s in scores.items()}, base)

    def bias(self, calibration: Calibration | None) -> float:
        mine = own_kind(self.query, self.best)
        parts = [calibration.apply(self.query, m, x) if calibration else x for m, x in self.best.items()]
        own = torch.cat([torch.full_like(x, m == mine, dtype=torch.bool) for m, x in self.best.items()], dim=1)
        # of the K candidates of each kind here
        share = modality_bias(torch.cat(parts, dim=1), own) + 1 / len(parts)
        return float(share.mean()) - self.base

    def offset(self, calibration: Calibration) -> float:
        """Return the offset of the query's modality with zero bias, by bisection."""
        low, high = -1.0, 1.0
        for _ in range(STEPS):
            middle = (low + high) / 2
            moved = Calibration(calibration.curves, calibration.shared, {self.query: middle})
            low, high = (low, middle) if self.bias(moved) > 0 else (middle, high)
        return (low + high) / 2


def read_measures(path: Path, version: list[int]) -> dict[str, Any] | None:
    """Read calibration.json; None if missing, damaged or of another version of the tables."""
    try:
        value = open_seal(path, parse_json(path.read_text(encoding="utf-8")), OWNER)
        if value["version"] != version:
            return None
        if value["calibration"] is not None:
            Calibration.from_json(value["calibration"])
        return value | {"bias": {space: checked(dict[str, float], found) for space, found in value["bias"].items()}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _sample(vectors: Tensor, most: int, seed: int) -> Tensor:
    """Return at most `most` rows, in random order."""
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))
    return vectors[order[:most]]


@dataclass(frozen=True)
class _Sample:
    """items: rows of each kind that has MIN_ITEMS; parts: of the fused items, row for row, if they are among these."""

    items: Mapping[ItemKind, Tensor]
    parts: Mapping[Modality, Tensor]

    @classmethod
    def of(cls, vectors: Vectors, parts: Mapping[Modality, Tensor] | None, seed: int) -> _Sample:
        items = {kind: _sample(rows, CANDIDATES, seed) for kind, rows in vectors.items() if len(rows) >= MIN_ITEMS}
        of_fused = parts if parts is not None and FUSED in items else {}
        return cls(items, {m: _sample(rows, CANDIDATES, seed) for m, rows in of_fused.items()})

    def scores(self, query: Modality) -> dict[ItemKind, Tensor]:
        """Return cosines of QUERIES queries with all rows of each kind; -inf with itself, or with its fused item. The
        queries are the first rows of the modality, and the first parts of fused items in proportion to their number."""
        single, part = self.items.get(query), self.parts.get(query)
        numbers = [0 if rows is None else len(rows) for rows in (single, part)]
        first = round(QUERIES * numbers[0] / sum(numbers))
        queries = [rows[:n] for rows, n in ((single, first), (part, QUERIES - first)) if rows is not None]
        scores = {kind: torch.cat(queries) @ rows.T for kind, rows in self.items.items()}
        if single is not None:
            scores[query][: len(queries[0])].fill_diagonal_(-torch.inf)
        if part is not None:
            scores[FUSED][-len(queries[-1]) or len(scores[FUSED]) :].fill_diagonal_(-torch.inf)
        return scores


def _mean_curve(scores: Tensor, levels: Tensor) -> Tensor:
    """Map (Q, N) to (K,): the cosine reached by a fraction levels[k] of the N items, averaged over the queries."""
    ordered = torch.from_numpy(np.sort(scores.numpy(), axis=1)).flip(1)  # torch sorts positions as well
    last = ((ordered > -torch.inf).sum(dim=1) - 1)[:, None]  # (Q, 1)
    place = levels * last
    below = place.floor().long()
    above = torch.minimum(below + 1, last)
    part = place - below
    return (ordered.gather(1, below) * (1 - part) + ordered.gather(1, above) * part).mean(dim=0)
