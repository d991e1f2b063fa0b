"""Blocks of rows, so that sums over many rows in float64 need little memory."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.nn.functional import normalize

ROWS = 32_768  # of a block


def blocks(n: int) -> Iterator[slice]:
    """Yield the slices of blocks of n rows; one for up to ROWS rows."""
    return (slice(start, min(start + ROWS, n)) for start in range(0, n, ROWS))


def unit(rows: Tensor) -> Tensor:
    """Return the rows in float64, scaled to length 1."""
    return normalize(rows.double(), dim=1)


def unit_blocks(rows: Tensor) -> Iterator[Tensor]:
    """Yield `unit` of all rows in blocks."""
    return (unit(rows[part]) for part in blocks(len(rows)))
