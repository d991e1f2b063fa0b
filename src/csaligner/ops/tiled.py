"""Exact log kernel means and their gradients in O(N d) memory, computed one tile of the kernel matrix at a time.

The gradient is computed in the forward sweep, from the same tiles as the value, and only scaled in backward:
6 N M d flops for x against y, 3 N^2 d for x against itself (each tile also represents its transpose).
Precision: features are centred (distances do not change), products use the dtype of the features (float32 or
float64), a running maximum avoids underflow at every bandwidth, and totals are float64.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .gaussian_factors import FoldedSums, folds, sums_between, sums_within
from .kernels import Gaussian, Kernel, narrowest
from .tiles import (
    Buffers,
    PreparedSample,
    add_log_weights,
    add_products,
    blocks,
    must_rise,
    no_autocast,
    refuse_second_derivative,
    totals_dtype,
    widened,
)


def log_kernel_mean(
    x: Tensor,
    y: Tensor | None,
    kernel: Kernel,
    weights_x: Tensor | None = None,
    weights_y: Tensor | None = None,
    diagonal: bool = True,
    mixed: bool = False,
) -> Tensor:
    """See reference.log_kernel_mean; the value is float64 for every dtype of x.

    mixed: compute the products of the gradient in bfloat16; the value is exact.
    """
    x, y = widened(x, y, narrowest(kernel))
    value: Tensor = _LogKernelMean.apply(  # type: ignore[no-untyped-call]
        x, y, (weights_x, weights_y), kernel, diagonal, mixed
    )
    return value


class _LogKernelMean(torch.autograd.Function):
    """Value and gradient in one sweep. Second derivatives raise InputError."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor | None,
        weights: tuple[Tensor | None, Tensor | None],
        kernel: Kernel,
        diagonal: bool,
        mixed: bool,
    ) -> Tensor:
        with no_autocast(x):
            if y is None:
                sample = PreparedSample.of(x - x.mean(dim=0), weights[0], mixed)
                sums = _within(sample, kernel, diagonal, ctx.needs_input_grad[0])
            else:
                centre = torch.lerp(x.mean(dim=0), y.mean(dim=0), 0.5)
                sample, other = (
                    PreparedSample.of(x - centre, weights[0], mixed),
                    PreparedSample.of(y - centre, weights[1], mixed),
                )
                sums = _between(sample, other, kernel, ctx.needs_input_grad[:2])
            ctx.save_for_backward(*sums.gradients())
            return sums.log_mean(diagonal)

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        grads = (None if g is None else g * grad_value.to(g.dtype) for g in ctx.saved_tensors)
        return (*grads, None, None, None, None)


def _within(sample: PreparedSample, kernel: Kernel, diagonal: bool, gradient: bool) -> _Sums | FoldedSums:
    if isinstance(kernel, Gaussian) and folds(kernel, sample, sample):
        return sums_within(sample, kernel, diagonal, gradient)
    sums = _Sums(sample, sample, (gradient, gradient))
    buffers = Buffers.between(sample.points, sample.points, 1)
    for i in blocks(sample.points):
        for j in blocks(sample.points):
            if j.start < i.start:
                continue
            t = squared_distances(sample, sample, i, j, buffers)
            if i == j:
                t.fill_diagonal_(0.0)
            log_k, slope = kernel.log_value_and_slope(t)
            add_log_weights(log_k, sample, sample, i, j)
            if i == j and not diagonal:
                log_k.fill_diagonal_(-math.inf)
            sums.add(log_k, slope, i, j)
    return sums


def _between(x: PreparedSample, y: PreparedSample, kernel: Kernel, gradient: tuple[bool, bool]) -> _Sums | FoldedSums:
    if isinstance(kernel, Gaussian) and folds(kernel, x, y):
        return sums_between(x, y, kernel, gradient)
    sums = _Sums(x, y, gradient)
    buffers = Buffers.between(x.points, y.points, 1)
    for i in blocks(x.points):
        for j in blocks(y.points):
            log_k, slope = kernel.log_value_and_slope(squared_distances(x, y, i, j, buffers))
            sums.add(add_log_weights(log_k, x, y, i, j), slope, i, j)
    return sums


def squared_distances(x: PreparedSample, y: PreparedSample, i: slice, j: slice, buffers: Buffers) -> Tensor:
    """Return |x_i - y_j|^2 of one tile, in buffer 0."""
    t = buffers.lend(0, i.stop - i.start, j.stop - j.start)
    torch.addmm(y.square_norms[j], x.points[i], y.points[j].T, alpha=-2, out=t)
    return t.add_(x.square_norms[i][:, None]).clamp_(min=0)


class _Sums:
    """Running sums over tiles, relative to exp(self.top): the total, and the sums for the gradients.

    With p_ij = exp(log_k_ij - top) and r_ij = p_ij * slope_ij the gradient of log sum k is
    d/dx_i = 2/total * [x_i * sum_j r_ij - sum_j r_ij y_j], and likewise in y.
    For x against itself, x and y share their tensors, and each tile above the diagonal counts twice.
    """

    def __init__(self, x: PreparedSample, y: PreparedSample, gradient: tuple[bool, bool]) -> None:
        self.x, self.y, self.within = x, y, x is y
        self.top = -math.inf
        self.total = torch.zeros((), dtype=totals_dtype(x.points), device=x.points.device)
        self.slope = 1.0
        # pull: sum_j r_ij y_j; mass: sum_j r_ij
        nothing: tuple[Tensor | None, Tensor | None] = (None, None)
        self.pull_x, self.mass_x = _zeros(x) if gradient[0] else nothing
        if self.within:
            self.pull_y, self.mass_y = self.pull_x, self.mass_x
        else:
            self.pull_y, self.mass_y = _zeros(y) if gradient[1] else nothing

    def add(self, log_k: Tensor, slope: Tensor | float, i: slice, j: slice) -> None:
        """Add one tile; overwrites log_k."""
        raised = must_rise(self.top, log_k, self.x, self.y)
        if raised is not None:
            self._raise_top(raised)
        if self.top == -math.inf:
            return
        p = log_k.sub_(self.top).exp_()
        rows = p.sum(dim=1)
        mirrored = self.within and i != j
        self.total += rows.sum(dtype=self.total.dtype) * (2 if mirrored else 1)
        if isinstance(slope, Tensor):
            r = p.mul_(slope)
            rows = r.sum(dim=1)
        else:
            r, self.slope = p, slope
        pull_y, mass_y = (self.pull_y, self.mass_y) if mirrored or not self.within else (None, None)
        add_products(r, (self.pull_x, self.x, i), (pull_y, self.y, j))
        if self.mass_x is not None:
            self.mass_x[i] += rows
        if mass_y is not None:
            mass_y[j] += r.sum(dim=0)

    def _raise_top(self, top: float) -> None:
        factor = math.exp(self.top - top)
        self.top = top
        held = [self.total, self.pull_x, self.mass_x]
        held += [] if self.within else [self.pull_y, self.mass_y]
        for tensor in held:
            if tensor is not None:
                tensor.mul_(factor)

    def log_mean(self, diagonal: bool) -> Tensor:
        share = 1.0 if diagonal else 1.0 - self.x.sum_of_squared_weights
        return self.total.log() + (self.top + self.x.log_constant + self.y.log_constant - math.log(share))

    def gradients(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of log_mean in x and y; within one sample, in x only. Call once: overwrites the sums."""
        factor = 2 * self.slope / float(self.total)
        grad_x = _gradient(self.x, self.pull_x, self.mass_x, 2 * factor if self.within else factor)
        grad_y = None if self.within else _gradient(self.y, self.pull_y, self.mass_y, factor)
        return grad_x, grad_y


def _zeros(sample: PreparedSample) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(sample.points), torch.zeros_like(sample.square_norms)


def _gradient(sample: PreparedSample, pull: Tensor | None, mass: Tensor | None, factor: float) -> Tensor | None:
    if pull is None or mass is None:
        return None
    return pull.mul_(-factor).addcmul_(sample.points, mass[:, None], value=factor)
