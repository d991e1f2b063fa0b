"""Tiled InfoNCE, alone or fused with the log kernel mean of the same points, in O(N d) memory.

Each tile of x y^T is computed once per pass and used for the softmax over its rows, the softmax over its columns and
the kernel. There are two passes: the normalisers (2 N M d flops, sufficient for the value) and, in backward, the
gradient (6 N M d flops, less for the products kept by the first pass). At most KEPT_BYTES of products are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .contrastive import Pair, RowInfo, SortedSide
from .kernel_sums import KernelSum, kernel_sum
from .kernels import Kernel, narrowest
from .logsumexp import OnlineSoftmaxes, SharedSoftmaxes, Tile, softmaxes
from .tiles import Buffers, add_products, no_autocast, refuse_second_derivative, totals_dtype, widened

KEPT_BYTES = 256 * 2**20


def info_nce(x: Tensor, y: Tensor, scale: Tensor, rows: RowInfo, mixed: bool = False) -> Tensor:
    """See reference.info_nce; the value is float64 for every dtype of x. mixed: gradient products in bfloat16."""
    value: Tensor = _Contrastive.apply(x, y, scale, rows, None, mixed)[0]  # type: ignore[no-untyped-call]
    return value


def fused(
    x: Tensor, y: Tensor, scale: Tensor, rows: RowInfo, kernel: Kernel, mixed: bool = False
) -> tuple[Tensor, Tensor]:
    """Return reference.info_nce and reference.log_kernel_mean of x against y, from the same tiles. Both float64."""
    wide_x, wide_y = widened(x, y, narrowest(kernel))
    nce, log_mean = _Contrastive.apply(wide_x, wide_y, scale, rows, kernel, mixed)  # type: ignore[no-untyped-call]
    return nce, log_mean


class _Contrastive(torch.autograd.Function):
    """Value in forward, gradient in backward. Second derivatives raise InputError."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, scale: Tensor, rows: RowInfo, kernel: Kernel | None, mixed: bool
    ) -> tuple[Tensor, Tensor]:
        with no_autocast(x):
            pair = Pair.of(x, y, rows, float(scale), mixed=mixed)
            norms = _first_pass(pair, kernel, KEPT_BYTES if any(ctx.needs_input_grad) else 0)
        ctx.pair, ctx.norms, ctx.scale_dtype = pair, norms, scale.dtype
        value = norms.softmaxes.info_nce(pair)
        return value, torch.zeros_like(value) if norms.kernel is None else norms.kernel.log_mean()

    @staticmethod
    def backward(ctx: Any, grad_nce: Tensor, grad_kernel: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        pair: Pair = ctx.pair  # centred copies, unaffected by in-place changes of x
        with no_autocast(pair.x.sample.points):
            sweep = _Gradient(pair, ctx.norms, (float(grad_nce), float(grad_kernel)))
            grad_x, grad_y, grad_scale = sweep.run(scale_too=ctx.needs_input_grad[2])
        return grad_x, grad_y, grad_scale.to(ctx.scale_dtype), None, None, None


@dataclass(frozen=True)
class _Norms:
    """Result of the first pass; kept: the products of the first tiles."""

    softmaxes: OnlineSoftmaxes | SharedSoftmaxes
    kernel: KernelSum | None
    kept: list[Tensor]


def _first_pass(pair: Pair, kernel: Kernel | None, keep_bytes: int) -> _Norms:
    sums, kernels = softmaxes(pair), None if kernel is None else kernel_sum(pair, kernel)
    buffers = Buffers.between(pair.x.sample.points, pair.y.sample.points, 2)
    kept = _Kept(keep_bytes)
    for i, j, may_be_positive in pair.tiles():
        out = kept.tensor_for(buffers.lend(0, i.stop - i.start, j.stop - j.start))
        s = torch.mm(pair.x.sample.points[i], pair.y.sample.points[j].T, out=out)
        tile = Tile(s, i, j, pair.negatives(i, j) if may_be_positive else None)
        work = buffers.lend(1, *tile.s.shape)
        sums.add(pair, tile, work)
        if kernels is not None:
            kernels.add(tile, work)
    return _Norms(sums, kernels, kept.tiles)


class _Kept:
    """Product tiles stored for the second pass, in sweep order, up to a number of bytes."""

    def __init__(self, bytes_left: int) -> None:
        self.tiles: list[Tensor] = []
        self._left = bytes_left

    def tensor_for(self, buffer: Tensor) -> Tensor:
        """Return a new tensor that is kept, or the buffer itself if the limit is reached."""
        self._left -= buffer.nbytes
        if self._left < 0:
            return buffer
        self.tiles.append(torch.empty_like(buffer))
        return self.tiles[-1]


class _Gradient:
    """The second pass: coefficients w_ij on y_j for x_i and on x_i for y_j, times the upstream gradients.

    InfoNCE: w_ij = scale/2 * [share_i (p_ij - q_ij) + share'_j (p'_ij - q'_ij)], see logsumexp.py; kernel: see
    kernel_sums.py.
    """

    def __init__(self, pair: Pair, norms: _Norms, upstream: tuple[float, float]) -> None:
        self.pair, self.norms, self.upstream = pair, norms, upstream
        x, y = pair.x.sample.points, pair.y.sample.points
        self.grad_x, self.grad_y = torch.zeros_like(x), torch.zeros_like(y)
        self.mass_x, self.mass_y = x.new_zeros(len(x)), y.new_zeros(len(y))  # sums of w, InfoNCE only
        self.grad_scale = torch.zeros((), dtype=totals_dtype(x), device=x.device)

    def run(self, scale_too: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients in x and y (rows in the caller's order) and in the scale."""
        x, y = self.pair.x, self.pair.y
        buffers = Buffers.between(x.sample.points, y.sample.points, 3)
        write_info_nce = self.norms.softmaxes.gradient(self.pair, self.upstream[0] * self.pair.scale / 2)
        kernel_x = kernel_y = add_kernel = None
        if self.norms.kernel is not None:
            kernel_x, kernel_y, add_kernel = self.norms.kernel.gradient(self.upstream[1])
        for tile in self._tiles(buffers):
            w, work = buffers.lend(1, *tile.s.shape), buffers.lend(2, *tile.s.shape)
            write_info_nce(tile, w, work)
            if scale_too:
                self.grad_scale += torch.dot(w.flatten(), tile.s.flatten())
            self.mass_x[tile.i] += w.sum(dim=1)
            self.mass_y[tile.j] += w.sum(dim=0)
            if add_kernel is not None:
                add_kernel(tile, w, work)
            exact = tile.negative is not None
            add_products(w, (self.grad_x, x.sample, tile.i), (self.grad_y, y.sample, tile.j), exact)
        if scale_too:
            for mass, side in ((self.mass_x, x), (self.mass_y, y)):
                self.grad_scale += (mass.to(self.grad_scale.dtype) * side.shift).sum()
        return (
            self._finish(x, self.grad_x, self.mass_x, kernel_x),
            self._finish(y, self.grad_y, self.mass_y, kernel_y),
            self.grad_scale / self.pair.scale,
        )

    def _tiles(self, buffers: Buffers) -> Iterator[Tile]:
        """Yield all tiles with their products, stored or recomputed in buffer 0."""
        kept = iter(self.norms.kept)
        for i, j, may_be_positive in self.pair.tiles():
            s = next(kept, None)
            if s is None:
                s = self.pair.product(i, j, buffers.lend(0, i.stop - i.start, j.stop - j.start))
            yield Tile(s, i, j, self.pair.negatives(i, j) if may_be_positive else None)

    def _finish(self, side: SortedSide, grad: Tensor, mass: Tensor, kernel_mass: Tensor | None) -> Tensor:
        """Add the terms along the centre and along the row itself."""
        grad.addcmul_(mass[:, None], self.pair.centre)
        if kernel_mass is not None:
            grad.addcmul_(side.sample.points, kernel_mass[:, None])
        return side.restore(grad)
