"""Scores of pictures and texts made comparable, from the index itself and without knowing any pair.

A text is nearer to the nearest of the texts than to the nearest of the pictures, however well the two are aligned:
a cosine means something else in each. For queries of one modality (a sample of the index's own items, each with its
own row left out) and items of modality m, let F_m(p) be the mean, over the queries, of the cosine that a share p of
the items reaches. A cosine s of m becomes

    c_m(s) = F(p)   where F_m(p) = s,   F = (F_image + F_text) / 2

that is, the cosine which as rare an item has on average over both modalities. The map is increasing, so the order
inside a modality never changes. What is left of modality_bias@10 on the sample is taken out by one number that is
added to the query's own modality.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csaligner.evaluation.mixed_search import K, modality_bias
from csaligner.parsing import checked
from csaligner.types import Modality

MODALITIES: tuple[Modality, Modality] = ("image", "text")
MIN_ITEMS = 2 * K  # of each modality; below, cosines stay as they are
QUERIES, CANDIDATES, KNOTS = 256, 20_000, 33
STEPS = 30  # of the bisection for the offset: the last is 2^-30 wide


@dataclass(frozen=True)
class Calibration:
    """curves[query][item]: cosines F_item(p) at falling p; shared[query]: F(p); offset[query]: added to items of the
    query's own modality."""

    curves: Mapping[str, Mapping[str, list[float]]]
    shared: Mapping[str, list[float]]
    offset: Mapping[str, float]

    @classmethod
    def fit(cls, vectors: Mapping[Modality, Tensor], seed: int = 0) -> Calibration | None:
        """vectors: unit rows (N, d) of "image" and "text". None where one of them has fewer than MIN_ITEMS."""
        if min(len(vectors[m]) for m in MODALITIES) < MIN_ITEMS:
            return None
        sample = {m: _sample(vectors[m], CANDIDATES, seed) for m in MODALITIES}
        rarest = math.log10(min(len(v) for v in sample.values()))
        levels = torch.logspace(-rarest, 0, KNOTS)
        curves: dict[str, dict[str, list[float]]] = {}
        shared: dict[str, list[float]] = {}
        offset: dict[str, float] = {}
        for query in MODALITIES:
            scores = _scores(sample, query)
            curves[query] = {m: _mean_curve(scores[m], levels).tolist() for m in MODALITIES}
            shared[query] = [sum(pair) / 2 for pair in zip(*curves[query].values(), strict=True)]
            offset[query] = _Best.of(scores, query).offset(cls(curves, shared, {}))
        return cls(curves, shared, offset)

    def apply(self, query: Modality, item: Modality, cosines: Tensor) -> Tensor:
        """Any shape, the same shape back. Beyond the ends of the curve it goes on with slope 1; -inf stays."""
        x = cosines.numpy()
        xp, fp = np.array(self.curves[query][item])[::-1], np.array(self.shared[query])[::-1]
        y = np.interp(x, xp, fp)
        y = np.where(x > xp[-1], x - xp[-1] + fp[-1], np.where(x < xp[0], x - xp[0] + fp[0], y))
        if query == item:
            y = y + self.offset[query]
        return torch.from_numpy(y.astype(np.float32))

    def to_json(self) -> dict[str, Any]:
        return {"curves": self.curves, "shared": self.shared, "offset": self.offset}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Calibration:
        """Raises ValueError for what to_json did not write."""
        found = checked(cls, value)
        whole = all(set(part) == set(MODALITIES) for part in (found.curves, found.shared, found.offset))
        if not whole or any(set(curves) != set(MODALITIES) for curves in found.curves.values()):
            raise ValueError("a modality is missing")
        if len({len(curve) for q in MODALITIES for curve in (found.shared[q], *found.curves[q].values())} - {0}) != 1:
            raise ValueError("its curves differ in length")
        return found


def bias_of(
    vectors: Mapping[Modality, Tensor], calibration: Calibration | None = None, seed: int = 1
) -> dict[str, float]:
    """modality_bias@10 for text and for image queries: the share of the query's own modality in the first 10, less
    its share of the candidates. The queries are items of the index, drawn with `seed`, their own rows left out."""
    if min(len(vectors[m]) for m in MODALITIES) < MIN_ITEMS:
        return {}
    sample = {m: _sample(vectors[m], CANDIDATES, seed) for m in MODALITIES}
    return {query: _Best.of(_scores(sample, query), query).bias(calibration) for query in MODALITIES}


@dataclass(frozen=True)
class _Best:
    """The K best cosines of each modality for every query, all that decides on the first K of both; base: the own
    modality's share of the candidates."""

    query: Modality
    best: Mapping[Modality, Tensor]
    base: float

    @classmethod
    def of(cls, scores: Mapping[Modality, Tensor], query: Modality) -> _Best:
        own, every = scores[query].shape[1] - 1, sum(s.shape[1] for s in scores.values()) - 1
        return cls(query, {m: s.topk(K, dim=1).values for m, s in scores.items()}, own / every)

    def bias(self, calibration: Calibration | None) -> float:
        parts = [calibration.apply(self.query, m, x) if calibration else x for m, x in self.best.items()]
        own = torch.cat([torch.full_like(x, m == self.query, dtype=torch.bool) for m, x in self.best.items()], dim=1)
        share = modality_bias(torch.cat(parts, dim=1), own) + 0.5  # half of the 2 K candidates here are its own
        return float(share.mean()) - self.base

    def offset(self, calibration: Calibration) -> float:
        """What to add to the own modality for no bias, by bisection."""
        low, high = -1.0, 1.0
        for _ in range(STEPS):
            middle = (low + high) / 2
            moved = Calibration(calibration.curves, calibration.shared, {self.query: middle})
            low, high = (low, middle) if self.bias(moved) > 0 else (middle, high)
        return (low + high) / 2


def _sample(vectors: Tensor, most: int, seed: int) -> Tensor:
    """At most `most` rows, in random order."""
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))
    return vectors[order[:most]]


def _scores(sample: Mapping[Modality, Tensor], query: Modality) -> dict[Modality, Tensor]:
    """Cosines of the first QUERIES rows of `query` with every row of each modality; -inf with themselves."""
    queries = sample[query][:QUERIES]
    scores = {m: queries @ sample[m].T for m in MODALITIES}
    scores[query].fill_diagonal_(-torch.inf)
    return scores


def _mean_curve(scores: Tensor, levels: Tensor) -> Tensor:
    """(Q, N) -> (K,): the cosine that a share levels[k] of the N items reaches, averaged over the queries."""
    ordered = scores.sort(dim=1, descending=True).values
    last = ((ordered > -torch.inf).sum(dim=1) - 1)[:, None]  # (Q, 1)
    place = levels * last
    below = place.floor().long()
    above = torch.minimum(below + 1, last)
    part = place - below
    return (ordered.gather(1, below) * (1 - part) + ordered.gather(1, above) * part).mean(dim=0)
