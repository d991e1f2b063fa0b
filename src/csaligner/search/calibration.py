"""Calibration of scores across modalities, estimated from the vectors of an index without pairs.

Even with good alignment, the cosines of a text with its nearest texts are higher than those with its nearest images,
so cosines of the two modalities are not comparable. For queries of one modality (a sample of the items of the index,
each excluded from its own candidates) and items of modality m, let F_m(p) be the cosine reached by a fraction p of the
items, averaged over the queries. A cosine s of an item of modality m is mapped to

    c_m(s) = F(p)   where F_m(p) = s,   F = (F_image + F_text) / 2

the mean over both modalities of the cosine at the same quantile. The map is increasing, so the order within a modality
does not change. The remaining modality_bias@10 on the sample is removed by a constant offset, added to the scores of
the query's modality.
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
MIN_ITEMS = 2 * K  # per modality; with fewer, cosines are not calibrated
QUERIES, CANDIDATES, KNOTS = 256, 20_000, 33
STEPS = 30  # of the bisection for the offset: final width 2^-30


@dataclass(frozen=True)
class Calibration:
    """curves[query][item]: cosines F_item(p) at increasing p; shared[query]: F(p); offset[query]: added to items of
    the query's modality."""

    curves: Mapping[str, Mapping[str, list[float]]]
    shared: Mapping[str, list[float]]
    offset: Mapping[str, float]

    @classmethod
    def fit(cls, vectors: Mapping[Modality, Tensor], seed: int = 0) -> Calibration | None:
        """Fit to the unit rows (N, d) of both modalities. Returns None if one has fewer than MIN_ITEMS rows."""
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
        """Calibrate cosines of any shape. Extrapolates with slope 1 beyond the curve; -inf is kept."""
        x = cosines.numpy()
        xp, fp = np.array(self.curves[query][item])[::-1], np.array(self.shared[query])[::-1]
        y = np.interp(x, xp, fp)
        y = np.where(x > xp[-1], x - xp[-1] + fp[-1], np.where(x < xp[0], x - xp[0] + fp[0], y))
        if query == item:
            y = y + self.offset[query]
        return torch.from_numpy(y.astype(np.float32))

    def apply_shares(self, shares: Mapping[Modality, float], item: Modality, cosines: Tensor) -> Tensor:
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
        if not complete or any(set(curves) != set(MODALITIES) for curves in found.curves.values()):
            raise ValueError("a modality is missing")
        if len({len(curve) for q in MODALITIES for curve in (found.shared[q], *found.curves[q].values())} - {0}) != 1:
            raise ValueError("its curves differ in length")
        return found


def bias_of(
    vectors: Mapping[Modality, Tensor], calibration: Calibration | None = None, seed: int = 1
) -> dict[str, float]:
    """Return modality_bias@10 for image and text queries: fraction of the query's modality in the top 10, minus its
    fraction of the candidates. Queries are items of the index sampled with `seed`, excluded from their candidates."""
    if min(len(vectors[m]) for m in MODALITIES) < MIN_ITEMS:
        return {}
    sample = {m: _sample(vectors[m], CANDIDATES, seed) for m in MODALITIES}
    return {query: _Best.of(_scores(sample, query), query).bias(calibration) for query in MODALITIES}


@dataclass(frozen=True)
class _Best:
    """The K best cosines of each modality for every query, which determine the top K over both; base: fraction of
    candidates of the query's modality."""

    query: Modality
    best: Mapping[Modality, Tensor]
    base: float

    @classmethod
    def of(cls, scores: Mapping[Modality, Tensor], query: Modality) -> _Best:
        own, total = scores[query].shape[1] - 1, sum(s.shape[1] for s in scores.values()) - 1
        return cls(query, {m: s.topk(K, dim=1).values for m, s in scores.items()}, own / total)

    def bias(self, calibration: Calibration | None) -> float:
        parts = [calibration.apply(self.query, m, x) if calibration else x for m, x in self.best.items()]
        own = torch.cat([torch.full_like(x, m == self.query, dtype=torch.bool) for m, x in self.best.items()], dim=1)
        share = (
            modality_bias(torch.cat(parts, dim=1), own) + 0.5
        )  # half of the 2 K candidates here are of the query's modality
        return float(share.mean()) - self.base

    def offset(self, calibration: Calibration) -> float:
        """Return the offset of the query's modality with zero bias, by bisection."""
        low, high = -1.0, 1.0
        for _ in range(STEPS):
            middle = (low + high) / 2
            moved = Calibration(calibration.curves, calibration.shared, {self.query: middle})
            low, high = (low, middle) if self.bias(moved) > 0 else (middle, high)
        return (low + high) / 2


def _sample(vectors: Tensor, most: int, seed: int) -> Tensor:
    """Return at most `most` rows, in random order."""
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))
    return vectors[order[:most]]


def _scores(sample: Mapping[Modality, Tensor], query: Modality) -> dict[Modality, Tensor]:
    """Return cosines of the first QUERIES rows of `query` with all rows of each modality; -inf with itself."""
    queries = sample[query][:QUERIES]
    scores = {m: queries @ sample[m].T for m in MODALITIES}
    scores[query].fill_diagonal_(-torch.inf)
    return scores


def _mean_curve(scores: Tensor, levels: Tensor) -> Tensor:
    """Map (Q, N) to (K,): the cosine reached by a fraction levels[k] of the N items, averaged over the queries."""
    ordered = scores.sort(dim=1, descending=True).values
    last = ((ordered > -torch.inf).sum(dim=1) - 1)[:, None]  # (Q, 1)
    place = levels * last
    below = place.floor().long()
    above = torch.minimum(below + 1, last)
    part = place - below
    return (ordered.gather(1, below) * (1 - part) + ordered.gather(1, above) * part).mean(dim=0)
