"""Folds of pairs for cross-validation by group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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
