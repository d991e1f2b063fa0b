"""Choice of the untrained alignment by cross-validation on the training pairs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.adapters.aligner import fixed_modality
from csaligner.adapters.start import Affine
from csaligner.adapters.untrained import Family, PairMoments, Starts, untrained_family
from csaligner.config import TrainConfig
from csaligner.types import PairedFeatures

from .folds import Difference, group_folds, rows_of
from .score import score_per_image

FEW = 100  # up to this many images: two folds, repeated twice; above: five folds
HELD_IMAGES = 500  # maximum number scored per fold


@dataclass(frozen=True)
class StartChoice:
    """label: the chosen candidate; starts: fitted to all pairs; prior: label of the default candidate; gains: score of
    each candidate minus that of the prior, in points, mean and standard error over folds; seconds: duration."""

    label: str
    starts: Starts
    prior: str
    gains: Mapping[str, Difference]
    folds: int
    seconds: float

    def record(self) -> dict[str, Any]:
        """Return the choice for JSON."""
        gains = {label: {"gain": round(g.mean, 3), "error": round(g.error, 3)} for label, g in self.gains.items()}
        return {
            "kind": self.label,
            "prior": self.prior,
            "folds": self.folds,
            "gains": gains,
            "seconds": round(self.seconds, 2),
        }


def choose_start(
    features: PairedFeatures,
    config: TrainConfig,
    *,
    unpaired: tuple[Tensor | None, Tensor | None] = (None, None),
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> StartChoice:
    """Return the candidate with the best held-out score if it exceeds that of the prior by more than one standard error
    of the fold differences, else the prior (Breiman et al. 1984, section 3.4.3).

    features: N > 1 images with captions. config: adapters and dim, which select the family (adapters/untrained.py).
    unpaired: features of unpaired images and texts. groups: of the images, not split over folds. With fewer than four
    images (or groups) the prior is returned.
    """
    began, fixed = time.perf_counter(), fixed_modality(config)

    def fit(moments: PairMoments) -> Family:
        return untrained_family(moments, config.dim, fixed)

    whole = PairMoments.of(features)
    complete = whole.with_unpaired(*unpaired)
    family = fit(complete)
    n = len(features.image)
    units = n if groups is None else len(set(groups))
    scores: list[dict[str, float]] = []
    if len(family.candidates) > 1 and units >= 4:
        count, repeats = (2, 2) if n <= FEW else (5, 1)
        for repeat in range(repeats):
            for held in group_folds(n, count, seed + repeat, groups):
                inside = complete.without(PairMoments.of(rows_of(features, held)))
                scores.append(_scores(fit(inside), rows_of(features, held[_some(len(held))])))
    gains = {
        label: Difference.of(torch.tensor([s[label] - s[family.prior] for s in scores], dtype=torch.float64))
        for label in family.candidates
        if scores
    }
    best = max(gains, key=lambda label: gains[label].mean, default=family.prior)
    label = best if gains and gains[best].mean > gains[best].error else family.prior
    return StartChoice(label, family.candidates[label], family.prior, gains, len(scores), time.perf_counter() - began)


def _scores(family: Family, held: PairedFeatures) -> dict[str, float]:
    return {
        label: float(score_per_image(apply_starts(starts, held)).mean()) for label, starts in family.candidates.items()
    }


def apply_starts(starts: Starts, features: PairedFeatures) -> PairedFeatures:
    """Map the pairs with both starts."""
    image, text = (_applied(start, x) for start, x in zip(starts, (features.image, features.text), strict=True))
    return PairedFeatures(image, text, features.text_to_image, features.image_ids, features.captions)


def _applied(start: Affine, x: Tensor) -> Tensor:
    if start.spread is None:
        return start(x)
    assert start.map is not None
    return start.spread * normalize((normalize(x, dim=1) - start.mean) @ start.map, dim=1) + start.offset


def _some(n: int) -> Tensor:
    return torch.arange(n) if n <= HELD_IMAGES else torch.linspace(0, n - 1, HELD_IMAGES).long()
