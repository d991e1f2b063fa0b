"""Choice of the untrained alignment by cross-validation on the training pairs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.adapters.aligner import Aligner, align, fixed_modality
from csaligner.adapters.span import Lifted, Span
from csaligner.adapters.start import Affine
from csaligner.adapters.untrained import FEW_PAIRS, Family, Mixes, PairMoments, Starts, untrained_family
from csaligner.config import TrainConfig
from csaligner.paired_features import rows_of
from csaligner.types import PairedFeatures

from .folds import Difference, complement, evenly, group_folds
from .photos import CLASS_NAMES
from .score import Prefer, score_per_image

FEW, MANY = 100, 2000  # images. up to FEW: two folds, repeated twice; from MANY: three folds; else five
HELD_IMAGES = 500  # maximum number scored per fold


@dataclass(frozen=True)
class StartChoice:
    """label: the chosen candidate; starts: fitted to all pairs; prior: label of the default candidate; gains: score of
    each candidate minus that of the prior, in points, mean and standard error over folds; seconds: duration; few: see
    untrained_family. starts: None if read from a record, or if the bundled aligner is chosen."""

    label: str
    starts: Starts | None = field(repr=False)
    prior: str
    gains: Mapping[str, Difference]
    folds: int
    seconds: float
    few: bool = False

    def record(self) -> dict[str, Any]:
        """Return the choice for JSON."""
        gains = {label: {"gain": round(g.mean, 6), "error": round(g.error, 6)} for label, g in self.gains.items()}
        return {
            "kind": self.label,
            "prior": self.prior,
            "folds": self.folds,
            "gains": gains,
            "few": self.few,
            "seconds": round(self.seconds, 2),
        }

    @classmethod
    def of_record(cls, value: Mapping[str, Any]) -> StartChoice:
        """Inverse of `record`, without the starts."""
        gains = {label: Difference(float(g["gain"]), float(g["error"])) for label, g in value["gains"].items()}
        few = bool(value.get("few", False))
        return cls(value["kind"], None, value["prior"], gains, int(value["folds"]), float(value["seconds"]), few)


def choose_start(
    features: PairedFeatures,
    config: TrainConfig,
    *,
    unpaired: tuple[Tensor | None, Tensor | None] = (None, None),
    groups: Sequence[str] | None = None,
    seed: int = 0,
    bundled: Aligner | None = None,
) -> StartChoice:
    """Return the candidate with the best held-out score if it exceeds that of the prior by more than one standard error
    of the fold differences, else the prior (Breiman et al. 1984, section 3.4.3).

    features: N > 1 images with captions. config: adapters and dim, which select the family (adapters/untrained.py).
    unpaired: features of unpaired images and texts. groups: of the images, not split over folds. bundled: a
    further candidate, as it is, labelled "class names" (photos.py). With fewer than four images (or groups) the prior
    is returned.
    """
    began, fixed, few = time.perf_counter(), fixed_modality(config), len(features.image) < FEW_PAIRS

    def fit(moments: PairMoments) -> Family:
        return untrained_family(moments, config.dim, fixed, few=few)

    span = Span.of(features, unpaired, config.dim, fixed)
    pairs = features if span is None else span.coordinates(features)
    complete = PairMoments.of(pairs).with_unpaired(*unpaired) if span is None else span.moments(features, unpaired)
    family = fit(complete)
    n = len(features.image)
    units = n if groups is None else len(set(groups))
    labels = [*family.candidates, *([CLASS_NAMES] if bundled else [])]
    scores: list[dict[str, float]] = []
    if len(labels) > 1 and units >= 4:
        count, repeats = (2, 2) if n <= FEW else (5, 1) if n < MANY else (3, 1)
        for repeat in range(repeats):
            for held in group_folds(n, count, seed + repeat, groups):
                inside = fit(_without(complete, pairs, held).in_single())
                seen = held[evenly(len(held), HELD_IMAGES)]
                scores.append(_scores(inside, rows_of(pairs, seen), config.start.prefer))
                if bundled is not None:
                    shown = align(bundled, rows_of(features, seen))
                    scores[-1][CLASS_NAMES] = float(score_per_image(shown, config.start.prefer).mean())
    gains = {
        label: Difference.of(torch.tensor([s[label] - s[family.prior] for s in scores], dtype=torch.float64))
        for label in labels
        if scores
    }
    best = max(gains, key=lambda label: gains[label].mean, default=family.prior)
    label = best if gains and gains[best].mean > gains[best].error else family.prior
    spent = time.perf_counter() - began
    candidates = family.candidates if span is None else Lifted(family.candidates, span)
    return StartChoice(label, candidates.get(label), family.prior, gains, len(scores), spent, few)


def _without(complete: PairMoments, features: PairedFeatures, held: Tensor) -> PairMoments:
    """Return the moments without the held images: from the rows if they are fewer than dimensions, which makes spectra
    cheap, else as a difference."""
    if min(len(features.image), len(features.text)) >= min(complete.dims):
        return complete.without(PairMoments.of(rows_of(features, held)))
    rest = PairMoments.of(rows_of(features, complement(len(features.image), held)), complete.features)
    return replace(rest, unpaired_image=complete.unpaired_image, unpaired_text=complete.unpaired_text)


def _scores(family: Family, held: PairedFeatures, prefer: Prefer) -> dict[str, float]:
    return {label: float(score_per_image(pairs, prefer).mean()) for label, pairs in _mapped(family, held)}


def _mapped(family: Family, held: PairedFeatures) -> Iterator[tuple[str, PairedFeatures]]:
    """Yield the pairs mapped by each candidate; rows of a mix are mixed after the two maps."""
    if not isinstance(family.candidates, Mixes):
        yield from ((label, apply_starts(starts, held)) for label, starts in family.candidates.items())
        return
    first, last = family.candidates.ends(held)
    for label, w in family.candidates.weights.items():
        image, text = torch.lerp(first.image, last.image, w), torch.lerp(first.text, last.text, w)
        yield label, replace(first, image=image, text=text)


def apply_starts(starts: Starts, features: PairedFeatures) -> PairedFeatures:
    """Map the pairs with both starts."""
    sides = features.image.float(), features.text.float()
    image, text = (_applied(start, x) for start, x in zip(starts, sides, strict=True))
    return PairedFeatures(image, text, features.text_to_image, features.image_ids, features.captions)


def _applied(start: Affine, x: Tensor) -> Tensor:
    if start.spread is None:
        return start(x)
    assert start.map is not None
    return start.spread * normalize((normalize(x, dim=1) - start.mean) @ start.map, dim=1) + start.offset
