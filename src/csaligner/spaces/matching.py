"""Held-out pairs found by the stored vectors, after a shift of the mean, and after a closed-form map of the pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from csaligner.adapters.untrained import PairMoments, untrained_family
from csaligner.evaluation.bootstrap import draw_counts, percentile_interval
from csaligner.selection.start import apply_starts
from csaligner.types import PairedFeatures

from .permutation import nearest_rows, unit
from .space import K

MIN_PAIRS, TEST_PAIRS, TRAIN_PAIRS = 40, 1000, 5000
SHUFFLES = 999
RAW, CENTRED, MAPPED = "raw", "centred", "mapped"


@dataclass(frozen=True)
class Found:
    """Recall@10 of held-out pairs, mean of both directions: value; chance; p: of a permutation test, in which the pairs
    are shuffled, against chance."""

    value: float
    chance: float
    p: float


@dataclass(frozen=True)
class Matching:
    """found: by method: raw (cosine of the stored vectors) and centred (each space less its mean over the training
    pairs) if the dimensions are equal, and mapped (the untrained alignment that finds most of a part of the training
    pairs). gain: mapped minus the better of the others, or minus chance if there is none, with its 95 % bootstrap
    interval over held-out pairs. train, test: number of pairs."""

    found: Mapping[str, Found]
    gain: float
    low: float
    high: float
    train: int
    test: int

    def record(self) -> dict[str, Any]:
        """Return the result for JSON."""
        found = {name: asdict(value) for name, value in self.found.items()}
        gain = {"value": self.gain, "low": self.low, "high": self.high}
        return {"found": found, "gain": gain, "train_pairs": self.train, "test_pairs": self.test}

    @property
    def matches(self) -> bool:
        """Whether any method finds more pairs than chance at the 1 % level (Bonferroni over the methods)."""
        return any(f.p <= 0.01 / len(self.found) + 1e-12 for f in self.found.values())


def match_pairs(x: Tensor, y: Tensor, seed: int = 0) -> Matching | None:
    """Fit on one part of the pairs and search the other. x: (P, d), y: (P, e); row i pairs with row i.

    At most half of the pairs, and 1,000, are held out. None with fewer than 40 pairs.
    """
    if len(x) < MIN_PAIRS:
        return None
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    test = order[: min(TEST_PAIRS, len(x) // 2)]
    train = order[len(test) :][:TRAIN_PAIRS]
    sides: dict[str, tuple[Tensor, Tensor]] = {}
    if x.shape[1] == y.shape[1]:
        sides[RAW] = unit(x[test]), unit(y[test])
        sides[CENTRED] = unit(x[test], x[train].double().mean(dim=0)), unit(y[test], y[train].double().mean(dim=0))
    starts = untrained_family(PairMoments.of(_pairs(x[train], y[train]))).candidates[_best_map(x[train], y[train])]
    mapped = apply_starts(starts, _pairs(x[test], y[test]))
    sides[MAPPED] = unit(mapped.image), unit(mapped.text)
    hits = {name: _hits(a, b) for name, (a, b) in sides.items()}
    chance = min(1.0, K / len(test))
    found = {
        name: Found(float(own.mean()), chance, _p(own, a, b, seed))
        for (name, own), (a, b) in zip(hits.items(), sides.values(), strict=True)
    }
    others = [name for name in found if name != MAPPED]
    best = max(others, key=lambda name: found[name].value, default=None)
    differences = hits[MAPPED] - (hits[best] if best else chance)
    low, high = percentile_interval(draw_counts(len(test), seed) @ differences / len(test))
    return Matching(found, float(differences.mean()), low, high, len(train), len(test))


def _best_map(x: Tensor, y: Tensor) -> str:
    """Return the candidate that, fitted to three quarters of the pairs, finds most of the rest; ties: the prior."""
    cut = len(x) - len(x) // 4
    family = untrained_family(PairMoments.of(_pairs(x[:cut], y[:cut])))
    rest, found = _pairs(x[cut:], y[cut:]), {}
    for name in sorted(family.candidates, key=lambda name: name != family.prior):
        mapped = apply_starts(family.candidates[name], rest)
        found[name] = float(_hits(unit(mapped.image), unit(mapped.text)).mean())
    return max(found, key=lambda name: found[name])


def _pairs(x: Tensor, y: Tensor) -> PairedFeatures:
    rows = torch.arange(len(x))
    return PairedFeatures(x, y, rows, tuple(map(str, rows.tolist())))


def _hits(a: Tensor, b: Tensor) -> Tensor:
    """(P,) float64: mean of both directions of whether the partner is among the first K."""
    own = torch.arange(len(a))[:, None]
    forward, back = ((nearest_rows(q, r, K) == own).any(dim=1).double() for q, r in ((a, b), (b, a)))
    return (forward + back) / 2


def _p(own: Tensor, a: Tensor, b: Tensor, seed: int) -> float:
    """P-value of the hits against shuffled pairs."""
    n = len(a)
    forward, back = torch.zeros(n, n), torch.zeros(n, n)
    forward.scatter_(1, nearest_rows(a, b, K), 1.0)
    back.scatter_(1, nearest_rows(b, a, K), 1.0)
    both, generator = (forward + back.T) / 2, torch.Generator().manual_seed(seed)
    rows = torch.arange(n)
    shuffled = [float(both[rows, torch.randperm(n, generator=generator)].mean()) for _ in range(SHUFFLES)]
    return (1 + sum(value >= float(own.mean()) - 1e-9 for value in shuffled)) / (1 + SHUFFLES)
