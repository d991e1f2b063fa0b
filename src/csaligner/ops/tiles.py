"""Shared parts of the tiled implementations: row blocks, reused buffers, prepared samples, dtype rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec, TypeVar, overload

import torch
from torch import Tensor

from csaligner.checks import InputError

_P = ParamSpec("_P")
_T = TypeVar("_T")

# Up to this many entries of the N x M matrix, on a CPU, whole matrices are faster than tiles.
DENSE_ENTRIES = 1024 * 1024

# Largest number of rows in a tile. CPU tiles fit in the cache; a GPU is more efficient with large products.
CPU_BLOCK = 512
GPU_BLOCK = 4096

# Largest exponent used without a maximum: a sum of 1e9 terms e^60 is finite in float32, and e^-60 is a normal number.
LIMIT = 60.0

# Largest |x - centre|^2 / sigma^2 for which kernels are computed in float32: products of float32 rows round exponents
# by about this many machine epsilons, here 6e-5. Beyond, as with raw features and a narrow kernel, float64 is used.
LARGEST_IN_FLOAT32 = 1e3

# Largest excess of log k over the running maximum before the sums are rescaled.
SLACK = 20.0


def block_size(rows: int, device: torch.device) -> int:
    """Return the number of rows in a tile: blocks of equal size, a multiple of 32 for fast products."""
    largest = CPU_BLOCK if device.type == "cpu" else GPU_BLOCK
    even = math.ceil(rows / math.ceil(rows / largest))
    return min(largest, 32 * math.ceil(even / 32))


def blocks(x: Tensor) -> Iterator[slice]:
    """Yield consecutive slices of rows; the last may be shorter."""
    size = block_size(len(x), x.device)
    for start in range(0, len(x), size):
        yield slice(start, min(start + size, len(x)))


def no_autocast(x: Tensor) -> AbstractContextManager[None]:
    """Return a context that disables autocast: half-precision logits are too inaccurate for the losses."""
    return torch.autocast(x.device.type, enabled=False)


def uncompiled(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Exclude a function from torch.compile, which would unroll its loops over tiles."""

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if torch.compiler.is_compiling():  # not at import: disable() imports the compiler
            result: _T = torch.compiler.disable(function)(*args, **kwargs)  # type: ignore[no-untyped-call]
            return result
        return function(*args, **kwargs)

    return call


def refuse_second_derivative() -> None:
    """Raise InputError in a backward with create_graph=True, the only case where gradients are enabled there."""
    if torch.is_grad_enabled():
        raise InputError(
            "impl: no second derivatives (create_graph=True) with this implementation, kernel, bandwidth or number of "
            'rows; use impl="reference"'
        )


def totals_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of totals: float64 if the device supports it, else float32."""
    return torch.float32 if x.device.type == "mps" else torch.float64


@overload
def widened(x: Tensor, y: Tensor, sigma: float) -> tuple[Tensor, Tensor]: ...
@overload
def widened(x: Tensor, y: Tensor | None, sigma: float) -> tuple[Tensor, Tensor | None]: ...
def widened(x: Tensor, y: Tensor | None, sigma: float) -> tuple[Tensor, Tensor | None]:
    """Return both samples, in float64 if float32 is too coarse for them; sigma: the smallest bandwidth."""
    if x.dtype != torch.float32 or totals_dtype(x) == torch.float32:
        return x, y
    with torch.no_grad(), no_autocast(x):
        centre = x.mean(dim=0) if y is None else torch.lerp(x.mean(dim=0), y.mean(dim=0), 0.5)
        largest = max(float((s - centre).square_().sum(dim=1).max()) for s in (x, y) if s is not None)
    if largest <= LARGEST_IN_FLOAT32 * sigma**2:
        return x, y
    return x.double(), None if y is None else y.double()


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return float64 for float64 features, float32 otherwise."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class PreparedSample:
    """One sample prepared for the tiled implementations.

    points: (N, d), centred. square_norms: (N,). log_weights: (N,) or None if all are equal.
    log_constant: the log weight common to all rows (0 if log_weights are given).
    log_heaviest: the largest log weight, 0 without log_weights. sum_of_squared_weights: sum_i a_i^2. half: points in
    bfloat16, for the gradients of the mixed mode; None in exact mode, and in float64, which `widened` chooses where
    float32 is too coarse already.
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
        half = points.to(torch.bfloat16) if mixed and points.dtype != torch.float64 else None
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
    """Return the new maximum of a running sum if log_k exceeds the old one by more than SLACK, else None.

    Kernels are at most 1, so for close samples only the first tile is scanned for its maximum.
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
    """Compute grad_x[i] += w y[j] and grad_y[j] += w' x[i]; each argument is (gradient or None, sample, rows).

    Mixed mode uses bfloat16 factors and float32 sums, unless exact is set.
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
    """Tile-sized buffers, allocated once and reused through contiguous (rows, columns) views."""

    def __init__(self, like: Tensor, rows: int, columns: int, count: int) -> None:
        self._flat = [like.new_empty(rows * columns) for _ in range(count)]

    @classmethod
    def between(cls, x: Tensor, y: Tensor, count: int) -> Buffers:
        return cls(x, block_size(len(x), x.device), block_size(len(y), y.device), count)

    def lend(self, which: int, rows: int, columns: int) -> Tensor:
        return self._flat[which][: rows * columns].view(rows, columns)


def add_log_weights(log_k: Tensor, x: PreparedSample, y: PreparedSample, i: slice, j: slice) -> Tensor:
    """Add log a_i + log b_j to log k in place; equal weights are applied to the totals instead."""
    if x.log_weights is not None:
        log_k.add_(x.log_weights[i][:, None])
    if y.log_weights is not None:
        log_k.add_(y.log_weights[j])
    return log_k
