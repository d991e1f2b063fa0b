"""InfoNCE, alone or together with the log kernel mean of the same points, in O(N d) memory.

Each tile of x y^T is computed once a pass and serves the softmax over its rows, the softmax over its columns
and the kernel. Two passes: the normalisers (2 N M d flops, all that a value needs) and the gradient (6 N M
d); the second runs in backward, where the weight of each output is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .kernels import Kernel
from .pairs import Modality, Pair, Rows
from .softmaxes import LOWEST, OnlineSoftmaxes, SharedSoftmaxes, Tile, softmaxes
from .tiles import Buffers, add_products, must_rise, no_autocast, refuse_second_derivative, totals_dtype


def info_nce(x: Tensor, y: Tensor, scale: Tensor, rows: Rows) -> Tensor:
    """As reference.info_nce; the value is float64 whatever the dtype of x."""
    value: Tensor = _Contrastive.apply(x, y, scale, rows, None)[0]  # type: ignore[no-untyped-call]
    return value


def info_nce_and_log_kernel_mean(
    x: Tensor, y: Tensor, scale: Tensor, rows: Rows, kernel: Kernel
) -> tuple[Tensor, Tensor]:
    """reference.info_nce and reference.log_kernel_mean of x against y, from the same tiles. Both float64."""
    nce, log_mean = _Contrastive.apply(x, y, scale, rows, kernel)  # type: ignore[no-untyped-call]
    return nce, log_mean


class _Contrastive(torch.autograd.Function):
    """Value in forward, gradient in backward; a second derivative is refused."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, scale: Tensor, rows: Rows, kernel: Kernel | None
    ) -> tuple[Tensor, Tensor]:
        with no_autocast(x):
            pair = Pair.of(x, y, rows, float(scale))
            norms = _first_pass(pair, kernel)
        ctx.save_for_backward(x, y, scale)
        ctx.rows, ctx.kernel, ctx.norms = rows, kernel, norms
        return norms.softmaxes.info_nce(pair), norms.log_kernel_mean(pair)

    @staticmethod
    def backward(ctx: Any, grad_nce: Tensor, grad_kernel: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x, y, scale = ctx.saved_tensors
        with no_autocast(x):
            pair = Pair.of(x, y, ctx.rows, float(scale))
            sweep = _Gradient(pair, ctx.norms, ctx.kernel, (float(grad_nce), float(grad_kernel)))
            grad_x, grad_y, grad_scale = sweep.run(scale_too=ctx.needs_input_grad[2])
        return grad_x, grad_y, grad_scale.to(scale.dtype), None, None


@dataclass(frozen=True)
class _Norms:
    """What the first pass leaves behind. The sum of the kernel is kernel_total * exp(kernel_top)."""

    softmaxes: OnlineSoftmaxes | SharedSoftmaxes
    kernel_top: float
    kernel_total: Tensor

    def log_kernel_mean(self, pair: Pair) -> Tensor:
        constant = pair.x.sample.log_constant + pair.y.sample.log_constant
        return self.kernel_total.log() + (self.kernel_top + constant)


def _first_pass(pair: Pair, kernel: Kernel | None) -> _Norms:
    x, y = pair.x.sample, pair.y.sample
    sums = softmaxes(pair)
    top, total = LOWEST, torch.zeros((), dtype=totals_dtype(x.points), device=x.points.device)
    buffers = Buffers.between(x.points, y.points, 2)
    for tile in _tiles(pair, buffers):
        work = buffers.lend(1, *tile.s.shape)
        sums.add(pair, tile, work)
        if kernel is not None:
            log_k, _ = pair.log_kernel(tile.s, tile.i, tile.j, kernel, work)
            raised = must_rise(top, log_k, x, y)
            if raised is not None:
                total *= math.exp(top - raised)
                top = raised
            total += log_k.sub_(top).exp_().sum(dim=1).sum(dtype=total.dtype)
    return _Norms(sums, top, total)


def _tiles(pair: Pair, buffers: Buffers) -> Iterator[Tile]:
    """All tiles with their products, which lie in buffer 0."""
    for i, j, may_be_positive in pair.tiles():
        yield Tile(pair.product(i, j, buffers), i, j, pair.negatives(i, j) if may_be_positive else None)


class _Gradient:
    """The second pass: coefficients w_ij on y_j for x_i and on x_i for y_j, times the upstream gradients.

    InfoNCE: w_ij = scale/2 * [share_i (p_ij - q_ij) + share'_j (p'_ij - q'_ij)], see softmaxes.py. Kernel: with
    r_ij = slope_ij * (part of the pair in the sum), d/dx_i = 2 (x_i sum_j r_ij - sum_j r_ij y_j).
    """

    def __init__(self, pair: Pair, norms: _Norms, kernel: Kernel | None, upstream: tuple[float, float]) -> None:
        self.pair, self.norms, self.kernel = pair, norms, kernel
        self.nce_factor = upstream[0] * pair.scale / 2
        self.kernel_factor = 2 * upstream[1] / float(norms.kernel_total) if kernel is not None else 0.0
        x, y = pair.x.sample.points, pair.y.sample.points
        self.grad_x, self.grad_y = torch.zeros_like(x), torch.zeros_like(y)
        self.mass_x, self.mass_y = x.new_zeros(len(x)), y.new_zeros(len(y))  # sums of w, InfoNCE alone
        self.kernel_x, self.kernel_y = x.new_zeros(len(x)), y.new_zeros(len(y))  # sums of r
        self.grad_scale = torch.zeros((), dtype=totals_dtype(x), device=x.device)

    def run(self, scale_too: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients in x and y (rows in the caller's order) and in the scale."""
        x, y = self.pair.x, self.pair.y
        buffers = Buffers.between(x.sample.points, y.sample.points, 3)
        write_info_nce = self.norms.softmaxes.gradient(self.pair, self.nce_factor)
        for tile in _tiles(self.pair, buffers):
            w, work = buffers.lend(1, *tile.s.shape), buffers.lend(2, *tile.s.shape)
            write_info_nce(tile, w, work)
            if scale_too:
                self.grad_scale += torch.dot(w.flatten(), tile.s.flatten())
            self.mass_x[tile.i] += w.sum(dim=1)
            self.mass_y[tile.j] += w.sum(dim=0)
            if self.kernel is not None:
                self._add_kernel(self.kernel, tile, w, work)
            add_products(w, (self.grad_x, x.sample, tile.i), (self.grad_y, y.sample, tile.j))
        if scale_too:
            for mass, side in ((self.mass_x, x), (self.mass_y, y)):
                self.grad_scale += (mass.to(self.grad_scale.dtype) * side.shift).sum()
        return (
            self._finish(x, self.grad_x, self.mass_x, self.kernel_x),
            self._finish(y, self.grad_y, self.mass_y, self.kernel_y),
            self.grad_scale / self.pair.scale,
        )

    def _add_kernel(self, kernel: Kernel, tile: Tile, w: Tensor, work: Tensor) -> None:
        """w -= 2 r, and the sums of r."""
        log_k, slope = self.pair.log_kernel(tile.s, tile.i, tile.j, kernel, work)
        r = log_k.sub_(self.norms.kernel_top).exp_()
        factor = self.kernel_factor
        if isinstance(slope, Tensor):
            r.mul_(slope)
        else:
            factor *= slope
        w.add_(r, alpha=-factor)
        self.kernel_x[tile.i].add_(r.sum(dim=1), alpha=factor)
        self.kernel_y[tile.j].add_(r.sum(dim=0), alpha=factor)

    def _finish(self, side: Modality, grad: Tensor, mass: Tensor, kernel_mass: Tensor) -> Tensor:
        """Adds the terms along the centre and along the row itself."""
        grad.addcmul_(mass[:, None], self.pair.centre).addcmul_(side.sample.points, kernel_mass[:, None])
        return side.restore(grad)
