"""Factored Gaussian kernel sums, for exponents small enough for float32 without a running maximum.

exp(-|x - y|^2 / (2 sigma^2)) = a_i exp(x_i.y_j / sigma^2) b_j. The per-row factors a and b are applied to the sums and
the points, so each tile needs only its product and one exponential.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from .kernels import Gaussian
from .tiles import LIMIT, Buffers, PreparedSample, add_products, blocks, totals_dtype


def folds(kernel: Gaussian, x: PreparedSample, y: PreparedSample) -> bool:
    """Return whether float32 can represent all exponentials of these samples."""
    largest = max(float(side.square_norms.max()) for side in (x, y)) / kernel.sigma**2
    lightest = min(float(side.log_weights.min()) if side.log_weights is not None else 0.0 for side in (x, y))
    return largest - lightest <= LIMIT


def factor_of(sample: PreparedSample, kernel: Gaussian) -> Tensor:
    """Return a_i = weight_i * exp(-|x_i|^2 / (2 sigma^2)), (N,); equal weights are applied to the totals instead."""
    log_a = sample.square_norms * (-0.5 / kernel.sigma**2)
    if sample.log_weights is not None:
        log_a += sample.log_weights
    return log_a.exp_()


class FoldedSums:
    """Result of a sweep: total = sum_ij a_i e_ij b_j, and the gradients of its logarithm."""

    def __init__(self, x: _Side, y: _Side) -> None:
        self.x, self.y, self.within = x, y, x is y
        self.total = x.mass @ x.factor.to(x.mass.dtype)

    def log_mean(self, diagonal: bool) -> Tensor:
        share = 1.0 if diagonal else 1.0 - self.x.sample.sum_of_squared_weights
        return self.total.log() + (self.x.sample.log_constant + self.y.sample.log_constant - math.log(share))

    def gradients(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of log_mean in x and y; within one sample, in x only. Call once: overwrites the sums."""
        total = float(self.total)
        if self.within:
            return self.x.gradient(2 / total), None
        return self.x.gradient(1 / total), self.y.gradient(1 / total)


def sums_within(sample: PreparedSample, kernel: Gaussian, diagonal: bool, gradient: bool) -> FoldedSums:
    """Return the sums of a sample against itself; a tile above the diagonal also represents its transpose."""
    side = _Side(sample, kernel, gradient)
    buffers = Buffers.between(sample.points, sample.points, 1)
    for i in blocks(sample.points):
        for j in blocks(sample.points):
            if j.start < i.start:
                continue
            e = side.exponentials(sample, i, j, buffers)
            if i == j and not diagonal:
                e.fill_diagonal_(0.0)
            side.mass[i] += e @ side.factor[j]
            if i != j:
                side.mass[j] += e.T @ side.factor[i]
            add_products(e, (side.pull, side.pulled, i), (side.pull if i != j else None, side.pulled, j))
    return FoldedSums(side, side)


def sums_between(x: PreparedSample, y: PreparedSample, kernel: Gaussian, gradient: tuple[bool, bool]) -> FoldedSums:
    side_x, side_y = _Side(x, kernel, gradient[0]), _Side(y, kernel, gradient[1])
    buffers = Buffers.between(x.points, y.points, 1)
    for i in blocks(x.points):
        for j in blocks(y.points):
            e = side_x.exponentials(y, i, j, buffers)
            side_x.mass[i] += e @ side_y.factor[j]
            side_y.mass[j] += e.T @ side_x.factor[i]
            add_products(e, (side_x.pull, side_x.pulled, i), (side_y.pull, side_y.pulled, j))
    return FoldedSums(side_x, side_y)


class _Side:
    """One sample of the sweep: mass_i = sum_j e_ij b_j and pull_i = sum_j e_ij b_j y_j.

    d/dx_i log total = a_i / (sigma^2 total) * (pull_i - x_i mass_i), twice that within one sample.
    pulled: the points times their factors.
    """

    def __init__(self, sample: PreparedSample, kernel: Gaussian, gradient: bool) -> None:
        self.sample, self.rate = sample, 1 / kernel.sigma**2
        self.factor = factor_of(sample, kernel)
        self.scaled = sample.points * self.rate
        pulled = sample.points * self.factor[:, None]
        half = None if sample.half is None else pulled.to(sample.half.dtype)
        self.pulled = replace(sample, points=pulled, half=half)
        self.mass = torch.zeros_like(self.factor, dtype=totals_dtype(self.factor))
        self.pull = torch.zeros_like(sample.points) if gradient else None

    def exponentials(self, other: PreparedSample, i: slice, j: slice, buffers: Buffers) -> Tensor:
        out = buffers.lend(0, i.stop - i.start, j.stop - j.start)
        return torch.mm(self.scaled[i], other.points[j].T, out=out).exp_()

    def gradient(self, share: float) -> Tensor | None:
        if self.pull is None:
            return None
        times = (self.factor * (share * self.rate))[:, None]
        return self.pull.addcmul_(self.sample.points, self.mass.to(self.pull.dtype)[:, None], value=-1).mul_(times)
