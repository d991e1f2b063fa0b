"""A space: the vectors that one model made of one kind of item, and how the rows of two spaces pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csaligner.checks import InputError, packed_bits
from csaligner.evaluation.gap import effective_rank
from csaligner.wording import count_of

from .permutation import nearest_rows, unit

SAMPLE = 2000  # rows per space, for measures of quadratic cost
K = 10
Pairing = Literal["auto", "rows", "ids", "none"]


@dataclass(frozen=True)
class Space:
    """name: chosen by the user, for example image, eeg or old; rows: (N, d) as stored, in float32 or float64, possibly
    with NaN; ids: one per row, if known; source: where they were read; dtype: number format of the source."""

    name: str
    rows: Tensor
    ids: tuple[str, ...] | None = None
    source: str = ""
    dtype: str = ""

    @classmethod
    def of(cls, name: str, rows: Any, ids: Sequence[Any] | None = None, source: str = "") -> Space:
        """Convert an array (N, d). Raises InputError for another shape and a wrong number of ids."""
        array = rows.detach().cpu().numpy() if isinstance(rows, Tensor) else np.asarray(rows)
        if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "biuf":
            raise InputError(f"{name}: got {array.dtype} of shape {array.shape}, wanted numbers (rows, dimensions)")
        if ids is not None and len(ids) != len(array):
            raise InputError(f"{name}: got {len(ids)} ids for {len(array)} rows; give one per row")
        wide = array.astype(np.float64 if array.dtype == np.float64 else np.float32)
        names = None if ids is None else tuple(map(str, ids))
        return cls(name, torch.from_numpy(wide), names, source, array.dtype.name)

    @property
    def usable(self) -> Tensor:
        """(N,) bool: rows that are finite and not zero."""
        return torch.isfinite(self.rows).all(dim=1) & self.rows.any(dim=1)

    @property
    def ignored(self) -> str | None:
        """How many rows are not usable, in one line; None if all are."""
        count = int((~self.usable).sum())
        return (
            f"{self.name}: ignored {count_of(count, 'row')} with NaN or infinity, or of zeros only" if count else None
        )


@dataclass(frozen=True)
class Health:
    """Condition of one space, without the other.

    non_finite, zero: number of such rows, which every other measure ignores. duplicates: rows equal to an earlier one.
    packed_bits: 8-bit rows that look like packed bits. unit: all rows have length 1. anisotropy: mean cosine of two
    different rows, 0 for directions spread evenly (Ethayarajh 2019). effective_rank: as in evaluation.gap. hubness:
    skewness of how often a row is among the 10 nearest of another (Radovanovic et al. 2010); above about 1, few rows
    appear in many results.
    """

    name: str
    rows: int
    dimensions: int
    non_finite: int
    zero: int
    duplicates: int
    packed_bits: bool
    unit: bool
    anisotropy: float
    effective_rank: float
    hubness: float

    @classmethod
    def of(cls, space: Space, seed: int = 0) -> Health:
        """Measure a space. Raises InputError if fewer than two rows are usable."""
        rows, usable = space.rows, space.usable
        finite = torch.isfinite(rows).all(dim=1)
        kept = rows[usable]
        if len(kept) < 2:
            raise InputError(
                f"{space.name}: {len(kept)} of {len(rows)} rows are finite and not zero; wanted at least 2"
            )
        x = unit(kept[sample(len(kept), SAMPLE, seed)])
        mean, n = x.double().mean(dim=0), len(x)
        same = torch.full((n,), 1 / n, dtype=torch.float64)
        return cls(
            name=space.name,
            rows=len(rows),
            dimensions=rows.shape[1],
            non_finite=int((~finite).sum()),
            zero=int((finite & ~rows.any(dim=1)).sum()),
            duplicates=_duplicates(kept.numpy()),
            packed_bits=packed_bits(kept, space.dtype) is not None,
            unit=bool(((kept.double().norm(dim=1) - 1).abs() < 1e-2).all()),
            anisotropy=float((n * mean.square().sum() - 1) / (n - 1)),
            effective_rank=effective_rank(x.double(), same),
            hubness=skewness(occurrences(x, x, own=True)),
        )


def occurrences(queries: Tensor, rows: Tensor, *, own: bool = False) -> Tensor:
    """(N,) float64: how often each row is among the K nearest of a query."""
    near = nearest_rows(queries, rows, min(K, len(rows) - own), own=own)
    return torch.bincount(near.flatten(), minlength=len(rows)).double()


def skewness(values: Tensor) -> float:
    """E (v - mean)^3 / sd^3; 0 for equal values."""
    rest = values - values.mean()
    deviation = rest.square().mean().sqrt()
    return float((rest**3).mean() / deviation**3) if deviation > 0 else 0.0


def sample(n: int, most: int, seed: int) -> Tensor:
    """Return at most `most` of n row numbers, in random order."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:most]


def pair_rows(first: Space, second: Space, pairing: Pairing = "auto") -> tuple[Tensor, Tensor] | None:
    """Return the rows of the pairs, (P,) each, usable in both spaces; None without pairs.

    rows: row i pairs with row i. ids: equal ids; of several rows with one id, the first. auto: ids if both spaces have
    some in common, else rows if the numbers of rows are equal and neither has ids, else none. Raises InputError if the
    rule does not fit.
    """
    if pairing == "none":
        return None
    equal = len(first.rows) == len(second.rows)
    if pairing == "rows" and not equal:
        raise InputError(
            f"pairs: {first.name} has {len(first.rows)} rows and {second.name} {len(second.rows)}; rows pair only if "
            "the numbers are equal; use --pairs ids or none"
        )
    if pairing == "rows" or (pairing == "auto" and equal and first.ids is None and second.ids is None):
        a = b = torch.arange(len(first.rows))
    elif first.ids is not None and second.ids is not None:
        at = {name: row for row, name in reversed(list(enumerate(second.ids)))}
        once = {name: row for row, name in reversed(list(enumerate(first.ids)))}
        both = [(row, at[name]) for name, row in once.items() if name in at]
        if not both and pairing == "auto":
            return None
        if not both:
            raise InputError(f"pairs: {first.name} and {second.name} have no id in common; use --pairs none")
        both.sort()
        a, b = (torch.tensor(rows) for rows in zip(*both, strict=True))
    elif pairing == "ids":
        raise InputError(f"pairs: {first.name} or {second.name} has no ids; give --id-key")
    else:
        return None
    good = first.usable[a] & second.usable[b]
    return (a[good], b[good]) if bool(good.any()) else None


def _duplicates(rows: NDArray[Any]) -> int:
    return len(rows) - len({hash(row.tobytes()) for row in rows})
