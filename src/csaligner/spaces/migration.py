"""Migration to a new embedding model without re-embedding: its queries are mapped onto the old vectors.

The old vectors are not changed: the adapter of their side is the identity. The map of the new side is chosen among
closed-form candidates (maps.py) by cross-validation on the items that both models embedded. Task: Drift-Adapter (2025).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.adapters.aligner import Aligner, encode
from csaligner.adapters.start import Affine
from csaligner.checks import InputError
from csaligner.evaluation.bootstrap import draw_counts, percentile_interval
from csaligner.selection.folds import complement, group_folds

from .maps import LINEAR, PROCRUSTES, Kept, fit_maps, kept, neighbours, query_aligner
from .space import Pairing, Space, pair_rows

MIN_PAIRS, FOLDS, HELD = 50, 3, 500
TEST_SHARE, TEST_PAIRS = 0.2, 1000
HALF = 0.5


@dataclass(frozen=True)
class Quality:
    """Search of the old index on held-out items. recall1, recall10: fraction of the mapped queries whose own item is
    first, among the first 10; full re-embedding finds every item, so recall10 is the fraction of it that is kept.
    low, high: 95 % bootstrap interval of recall10. neighbours: fraction of the 10 nearest items after full re-embedding
    that are found."""

    recall1: float
    recall10: float
    low: float
    high: float
    neighbours: float

    @classmethod
    def of(cls, found: Kept, seed: int) -> Quality:
        low, high = percentile_interval(draw_counts(len(found.hit10), seed) @ found.hit10 / len(found.hit10))
        means = (float(values.mean()) for values in (found.hit1, found.hit10, found.neighbours))
        recall1, recall10, near = means
        return cls(recall1, recall10, low, high, near)

    def record(self) -> dict[str, float]:
        """Return the values for JSON."""
        return {
            "recall@1": self.recall1,
            "recall@10": self.recall10,
            "recall@10_low": self.low,
            "recall@10_high": self.high,
            "neighbours@10": self.neighbours,
        }


@dataclass(frozen=True)
class Migration:
    """names: of the new and the old space. aligner: identity for the old side ("image"), the chosen linear map for the
    new side ("text"). chosen: its label; scores: mean cross-validation score of each candidate. quality: of the chosen
    map, of linear regression and Procrustes, and of the old model's own queries, on `tested` held-out items among
    `indexed` rows, fitted to the other pairs; the aligner itself is fitted to all `pairs`."""

    names: tuple[str, str]
    aligner: Aligner
    chosen: str
    scores: Mapping[str, float]
    quality: Mapping[str, Quality]
    pairs: int
    tested: int
    indexed: int

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        q, new, old = self.quality["chosen"], *self.names
        words = (
            f"{new} queries on the {old} index keep {100 * q.recall10:.1f} % of recall@10 against full re-embedding "
            f"(95 % interval {100 * q.low:.1f} to {100 * q.high:.1f}, {self.tested} held-out items among "
            f"{self.indexed:,} rows) and {100 * q.neighbours:.0f} % of its 10 nearest items; {old}'s own queries find "
            f"{100 * self.quality['old queries'].neighbours:.0f} % of these."
        )
        return words if self.enough else f"{words} That is under a half: embed the collection again instead."

    @property
    def enough(self) -> bool:
        """Whether at least half of recall@10 is kept, by the upper bound of its interval."""
        return self.quality["chosen"].high >= HALF

    def queries(self, rows: Tensor) -> Tensor:
        """Map vectors of the new model, (N, d), to unit vectors for the old index, (N, e)."""
        return encode(self.aligner, "text", rows.float())

    def record(self) -> dict[str, Any]:
        """Return the result for JSON."""
        return {
            "spaces": list(self.names),
            "map": self.chosen,
            "cross_validation": dict(self.scores),
            "quality": {name: value.record() for name, value in self.quality.items()},
            "pairs": self.pairs,
            "tested": self.tested,
            "indexed": self.indexed,
            "sentence": self.sentence,
        }


def migrate(
    new: Space, old: Space, *, index: Space | None = None, pairing: Pairing = "auto", seed: int = 0
) -> Migration:
    """Fit a map of the new model's vectors onto the old space.

    new, old: the same items embedded by both models; rows pair as in space.pair_rows; the dimensions may differ. index:
    all vectors of the old collection, which are searched as well, so that the result holds for its size; None: the
    items alone. A fifth of the pairs, at most 1,000, is held out to measure.
    Warns if less than half of recall@10 is kept. Raises InputError with fewer than 50 pairs.
    """
    pairs = pair_rows(new, old, pairing)
    count = 0 if pairs is None else len(pairs[0])
    if pairs is None or count < MIN_PAIRS:
        raise InputError(
            f"pairs: {new.name} and {old.name} have {count} usable pairs, wanted at least {MIN_PAIRS}; embed a sample "
            "of the collection with both models"
        )
    x, y = new.rows[pairs[0]], old.rows[pairs[1]]
    more = _others(index, old, y)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    test = order[: min(TEST_PAIRS, max(10, int(TEST_SHARE * count)))].sort().values
    train = complement(count, test)
    scores = _cross_validated(x[train], y[train], seed)
    chosen = max(scores, key=lambda name: scores[name])
    quality = _measured(x, y, more, test, fit_maps(x[train], y[train]), chosen, seed)
    aligner = query_aligner(fit_maps(x, y)[chosen], (new.rows.shape[1], old.rows.shape[1]))
    found = Migration(
        (new.name, old.name),
        aligner,
        chosen,
        scores,
        quality,
        count,
        len(test),
        count + (0 if more is None else len(more)),
    )
    if not found.enough:
        warnings.warn(f"migrate: {found.sentence}", stacklevel=2)
    return found


def _others(index: Space | None, old: Space, sample: Tensor) -> Tensor | None:
    """Return the rows of the index that are not in the sample."""
    if index is None:
        return None
    if index.rows.shape[1] != old.rows.shape[1]:
        raise InputError(
            f"index: {index.rows.shape[1]} dimensions, wanted {old.rows.shape[1]} as in {old.name}; give the vectors "
            "that are indexed now"
        )
    rows = index.rows[index.usable]
    known = {hash(row.tobytes()) for row in sample.numpy()}
    return rows[torch.tensor([hash(row.tobytes()) not in known for row in rows.numpy()])]


def _cross_validated(x: Tensor, y: Tensor, seed: int) -> dict[str, float]:
    """Mean score of each candidate over folds, each searched among all training items."""
    new, old = normalize(x.float(), dim=1), normalize(y.float(), dim=1)
    totals: dict[str, float] = {}
    for held in group_folds(len(x), FOLDS, seed):
        rest, some = complement(len(x), held), held[:HELD]
        truth = neighbours(new[some], new, some)
        for name, start in fit_maps(x[rest], y[rest]).items():
            score = kept(normalize(start(x[some].float()), dim=1), old, some, truth).score
            totals[name] = totals.get(name, 0.0) + score / FOLDS
    return totals


def _measured(
    x: Tensor, y: Tensor, more: Tensor | None, test: Tensor, maps: Mapping[str, Affine], chosen: str, seed: int
) -> dict[str, Quality]:
    """Qualities on the held-out items. Neighbours are searched among the items that both models embedded."""
    new, old = normalize(x.float(), dim=1), normalize(y.float(), dim=1)
    whole = old if more is None else torch.cat([old, normalize(more.float(), dim=1)])
    truth = neighbours(new[test], new, test)

    def quality(queries: Tensor) -> Quality:
        near = kept(queries, old, test, truth)
        if more is None:
            return Quality.of(near, seed)
        wide = kept(queries, whole, test, truth)
        return Quality.of(Kept(wide.hit1, wide.hit10, near.neighbours), seed)

    mapped = {name: normalize(start(x[test].float()), dim=1) for name, start in maps.items()}
    found = {"chosen": quality(mapped[chosen])}
    found |= {name: quality(mapped[name]) for name in (LINEAR, PROCRUSTES)}
    return found | {"old queries": quality(old[test])}
