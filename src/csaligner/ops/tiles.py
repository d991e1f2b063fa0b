"""What the tiled sweeps share: blocks of rows, reused buffers, centred samples with their weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from csaligner.checks import InputError

_P = ParamSpec("_P")
_T = TypeVar("_T")

# RowInfo in a tile. On the CPU a few tiles fit in the cache beside the features they meet; a GPU wants large
# products.
CPU_BLOCK = 512
GPU_BLOCK = 4096

# Largest exponent that is taken as it is: sums of 1e9 terms e^60 are finite in float32, and e^-60 is a normal number.
LIMIT = 60.0

# How far log k may rise above the running maximum before the sums are rescaled; float32 holds e^20 with ease.
SLACK = 20.0


def block_size(rows: int, device: torch.device) -> int:
    """RowInfo in a tile: blocks of one size, in steps of 32 for the sake of the products."""
    largest = CPU_BLOCK if device.type == "cpu" else GPU_BLOCK
    even = math.ceil(rows / math.ceil(rows / largest))
    return min(largest, 32 * math.ceil(even / 32))


def blocks(x: Tensor) -> Iterator[slice]:
    """Consecutive slices of rows; the last may be short."""
    size = block_size(len(x), x.device)
    for start in range(0, len(x), size):
        yield slice(start, min(start + size, len(x)))


def no_autocast(x: Tensor) -> AbstractContextManager[None]:
    """Half-precision logits are wrong, not merely rough: autocast is switched off inside the ops."""
    return torch.autocast(x.device.type, enabled=False)


def uncompiled(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """torch.compile calls it as it is: its loops over tiles are no use to a compiler that would unroll them."""

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if torch.compiler.is_compiling():  # the compiler is loaded then; disable() would load it at import
            result: _T = torch.compiler.disable(function)(*args, **kwargs)  # type: ignore[no-untyped-call]
            return result
        return function(*args, **kwargs)

    return call


def refuse_second_derivative() -> None:
    """For the start of a backward: it runs with gradients on only where create_graph=True was asked for."""
    if torch.is_grad_enabled():
        raise InputError('impl: tiles have no second derivative (create_graph=True); use impl="reference"')


def totals_dtype(x: Tensor) -> torch.dtype:
    """float64 for the few scalars and vectors of totals, where the device has it."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def compute_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64 features, float32 for all others."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class PreparedSample:
    """One sample, ready for the sweep.

    points: (N, d), centred. square_norms: (N,). log_weights: (N,) or None where all are equal.
    log_constant: the log weight that all share (0 where log_weights are given).
    log_heaviest: the largest of log_weights, 0 without. sum_of_squared_weights: sum_i a_i^2. half: points in
    bfloat16, for the gradients of the mixed mode; None in the exact one.
    """

    points: Tensor
    square_norms: Tensor
    log_weights: Tensor | None
    log_constant: float
    log_heaviest: float
    sum_of_squared_weights: float
    half: Tensor | None

    @classmethod
    def of(cls, points: Tensor, weights: Tensor | None, mixed: bool) -> PreparedSample:
        half = points.to(torch.bfloat16) if mixed else None
        square_norms = torch.linalg.vector_norm(points, dim=1, dtype=compute_dtype(points)).square_()
        if weights is None:
            n = len(points)
            return cls(points, square_norms, None, -math.log(n), 0.0, 1 / n, half)
        share = weights.to(totals_dtype(points))
        share = share / share.sum()
        log_weights = share.log().to(square_norms.dtype)
        heaviest = float(log_weights.max())
        return cls(points, square_norms, log_weights, 0.0, heaviest, float(share.square().sum()), half)


def must_rise(top: float, log_k: Tensor, x: PreparedSample, y: PreparedSample) -> float | None:
    """The new maximum of a running sum, where log_k may lie more than SLACK above the old one; else None.

    Kernels are at most 1, so that close clouds need to look at their first tile alone.
    """
    if x.log_heaviest + y.log_heaviest <= top + SLACK:
        return None
    highest = float(log_k.max())
    return highest if highest > top + SLACK else None


def add_products(
    w: Tensor,
    x: tuple[Tensor | None, PreparedSample, slice],
    y: tuple[Tensor | None, PreparedSample, slice],
    exact: bool = False,
) -> None:
    """grad_x[i] += w y[j] and grad_y[j] += w' x[i]; each side is (gradient or None, sample, rows).

    Mixed mode: both factors in bfloat16, with sums in float32 inside a tile and over tiles; not where exact is set.
    """
    (grad_x, sample_x, i), (grad_y, sample_y, j) = x, y
    if sample_x.half is not None and sample_y.half is not None and not exact:
        rounded = w.to(torch.bfloat16)
        if grad_x is not None:
            grad_x[i].add_(rounded @ sample_y.half[j])
        if grad_y is not None:
            grad_y[j].add_(rounded.T @ sample_x.half[i])
        return
    if grad_x is not None:
        grad_x[i].addmm_(w, sample_y.points[j])
    if grad_y is not None:
        grad_y[j].addmm_(w.T, sample_x.points[i])


class Buffers:
    """A few tile-sized buffers, made once and lent out as contiguous (rows, columns) views."""

    def __init__(self, like: Tensor, rows: int, columns: int, count: int) -> None:
        self._flat = [like.new_empty(rows * columns) for _ in range(count)]

    @classmethod
    def between(cls, x: Tensor, y: Tensor, count: int) -> Buffers:
        return cls(x, block_size(len(x), x.device), block_size(len(y), y.device), count)

    def lend(self, which: int, rows: int, columns: int) -> Tensor:
        return self._flat[which][: rows * columns].view(rows, columns)


def add_log_weights(log_k: Tensor, x: PreparedSample, y: PreparedSample, i: slice, j: slice) -> Tensor:
    """log k + log a_i + log b_j, in place; equal weights are left to the totals."""
    if x.log_weights is not None:
        log_k.add_(x.log_weights[i][:, None])
    if y.log_weights is not None:
        log_k.add_(y.log_weights[j])
    return log_k
