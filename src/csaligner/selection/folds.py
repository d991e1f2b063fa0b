"""Folds of pairs for cross-validation by group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from csaligner.types import PairedFeatures, PairedTokens


def group_folds(n: int, count: int, seed: int, groups: Sequence[str] | None = None) -> list[Tensor]:
    """Split n image rows into `count` folds; rows of one group are in one fold.

    Groups are assigned in random order, each to the smallest fold.
    """
    generator = torch.Generator().manual_seed(seed)
    if groups is None:
        order = torch.randperm(n, generator=generator)
        return [order[fold::count].sort().values for fold in range(count)]
    members: dict[str, list[int]] = {}
    for row, name in enumerate(groups):
        members.setdefault(name, []).append(row)
    names = list(members)
    folds: list[list[int]] = [[] for _ in range(count)]
    for position in torch.randperm(len(names), generator=generator).tolist():
        min(folds, key=len).extend(members[names[position]])
    return [torch.tensor(sorted(fold)) for fold in folds]


def rows_of(features: PairedFeatures, images: Tensor) -> PairedFeatures:
    """Return the pairs of the given image rows, with all their captions, tokens and states."""
    place = torch.full((len(features.image),), -1)
    place[images] = torch.arange(len(images))
    owner = place[features.text_to_image]
    kept = (owner >= 0).nonzero().flatten()
    tokens = features.tokens
    return replace(
        features,
        image=features.image[images],
        text=features.text[kept],
        text_to_image=owner[kept],
        image_ids=tuple(features.image_ids[i] for i in images.tolist()),
        captions=None if features.captions is None else tuple(features.captions[i] for i in kept.tolist()),
        tokens=None if tokens is None else PairedTokens(tokens.image.subset(images), tokens.text.subset(kept)),
        states=None if features.states is None else features.states.subset(kept),
    )


def complement(n: int, rows: Tensor) -> Tensor:
    """Return the rows of 0 to n - 1 not in `rows`, in order."""
    kept = torch.ones(n, dtype=torch.bool)
    kept[rows] = False
    return kept.nonzero().flatten()


def evenly(n: int, count: int) -> Tensor:
    """Return the rows 0 to n - 1, or `count` of them, evenly spaced."""
    return torch.arange(n) if n <= count else torch.linspace(0, n - 1, count).long()


@dataclass(frozen=True)
class Difference:
    """A paired difference: mean and standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: Tensor) -> Difference:
        """Mean and standard error of values (n,), n > 1."""
        return cls(float(values.mean()), float(values.std()) / len(values) ** 0.5)
