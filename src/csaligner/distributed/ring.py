"""Ring exchange: InfoNCE and log kernel means of the rows of all ranks, without gathering them.

Each of R ranks keeps its local rows (possibly none) and processes the blocks of the other ranks in turn: O(N/R d)
memory per rank, plus 8 bytes for each of the N ids. The next block is transferred during the computation. InfoNCE and
kernel means between modalities take two passes, as in tiled_contrastive.py: the normalisers, then the gradient. Column
sums and gradients of a block are sent along with it and return to its rank after R steps. Kernel means within a sample
take one pass.
Gradients equal those of gather_rows with the same loss (see csaligner.distributed.gather). Every rank must call these
functions, in the same order. They also work with a single process, but are slower than tiled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from csaligner.checks import InputError
from csaligner.ops.contrastive import Pair, RowInfo, SortedSide
from csaligner.ops.kernels import Kernel
from csaligner.ops.logsumexp import LOWEST, Factors, LogSums, OnlineSoftmaxes, Tile
from csaligner.ops.tiled import squared_distances
from csaligner.ops.tiles import (
    Buffers,
    PreparedSample,
    add_log_weights,
    add_products,
    blocks,
    must_rise,
    no_autocast,
    totals_dtype,
    uncompiled,
)

from .gather import row_counts
from .processes import world_size
from .ring_blocks import Transfer, around, mean, merged, own_side, summed


@uncompiled
def contrastive(
    x: Tensor, y: Tensor, scale: Tensor, rows: RowInfo, kernel: Kernel | None, info_nce: bool = True
) -> tuple[Tensor, Tensor]:
    """Return InfoNCE and the log kernel mean of x against y over the rows of all ranks: two scalars, float64.

    x: (n, d), y: (m, d), scale and rows as in dispatch.Implementation.fused, for the local rows; ids are compared
    across ranks, weights are normalised over all ranks. kernel=None: 0 for the kernel mean; info_nce=False: 0 for
    InfoNCE. Raises InputError on all ranks if there are no pairs.
    """
    nce, log_mean = _Contrastive.apply(x, y, scale, rows, kernel, info_nce)  # type: ignore[no-untyped-call]
    return nce, log_mean


@uncompiled
def within(x: Tensor, kernel: Kernel, weights: Tensor | None = None) -> Tensor:
    """Return the log kernel mean within the rows of all ranks, diagonal included. x: (n, d); scalar, float64."""
    value: Tensor = _Within.apply(x, weights, kernel)  # type: ignore[no-untyped-call]
    return value


class _Contrastive(torch.autograd.Function):
    """First pass in forward, second in backward. Second derivatives raise InputError."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, scale: Tensor, rows: RowInfo, kernel: Kernel | None, info_nce: bool
    ) -> tuple[Tensor, Tensor]:
        with no_autocast(x):
            centre = torch.lerp(mean(x), mean(y), 0.5)
            side_x, side_y = (
                own_side(points, centre, ids, weights)
                for points, ids, weights in ((x, rows.ids_x, rows.weights_x), (y, rows.ids_y, rows.weights_y))
            )
            job = _Job(side_x, side_y, centre, float(scale), kernel, info_nce, row_counts(y))
            ctx.job, ctx.norms = job, _first_pass(job)
        ctx.scale_dtype = scale.dtype
        return ctx.norms.nce, ctx.norms.log_mean

    @staticmethod
    def backward(ctx: Any, grad_nce: Tensor, grad_kernel: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        upstream = summed(torch.stack([grad_nce, grad_kernel]))
        with no_autocast(ctx.job.x.sample.points):
            sweep = _Gradient(ctx.job, ctx.norms, (float(upstream[0]), float(upstream[1])), ctx.needs_input_grad)
            grad_x, grad_y, grad_scale = sweep.run()
        return grad_x, grad_y, None if grad_scale is None else grad_scale.to(ctx.scale_dtype), None, None, None


class _Within(torch.autograd.Function):
    """Value and gradient in one pass around the ring."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor | None, kernel: Kernel) -> Tensor:
        with no_autocast(x):
            ids = torch.arange(len(x), device=x.device)
            centre = mean(x)
            own = own_side(x, centre, ids, weights, paired=False)
            sums = _Sums(own.sample, ctx.needs_input_grad[0])
            for hop, other in around(own, row_counts(x), centre):
                sums.add_block(other.sample, kernel, own=hop == 0)
            top, total = merged(sums.top, sums.total)
            ctx.save_for_backward(sums.gradient(top, total))
        return top + total.log()

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Tensor | None, None, None]:
        _refuse_second_derivative()
        (grad,) = ctx.saved_tensors
        return grad * summed(grad_value.clone()).to(grad.dtype), None, None


@dataclass(frozen=True)
class _Job:
    """The own rows of both sides, centred and sorted by id. counts: rows of y on each rank."""

    x: SortedSide
    y: SortedSide
    centre: Tensor
    scale: float
    kernel: Kernel | None
    info_nce: bool
    counts: list[int]

    def pairs(self) -> Iterator[tuple[int, Pair]]:
        """Yield (hop, pair): the local x with the y of this rank, the previous rank, and so on."""
        for hop, other in around(self.y, self.counts, self.centre):
            yield hop, Pair(self.x, other, self.centre, self.scale)

    def send_on(self, tensors: Sequence[Tensor], hop: int) -> list[Tensor]:
        """Send the tensors of the current block to the next rank, and return those of the previous rank."""
        return Transfer(tensors, self.counts, hop + 1).arrived()


@dataclass(frozen=True)
class _Norms:
    """Result of the first pass on each rank.

    rows, columns: sums for the local x and y, over all entries and over the positives. shares: weights of the rows and
    columns in the means, 0 for those without a positive. The kernel sum of all ranks is kernel_total * exp(kernel_top).
    """

    rows: tuple[LogSums, LogSums]
    columns: tuple[LogSums, LogSums]
    shares: tuple[Tensor, Tensor]
    nce: Tensor
    kernel_top: Tensor
    kernel_total: Tensor

    @property
    def log_mean(self) -> Tensor:
        return self.kernel_top + self.kernel_total.log()


def _first_pass(job: _Job) -> _Norms:
    rows = LogSums(job.x), LogSums(job.x)
    columns = LogSums(job.y), LogSums(job.y)
    carried = [columns[0].top, columns[0].total, columns[1].top, columns[1].total]
    top, total = LOWEST, rows[0].total.new_zeros(())
    for hop, pair in job.pairs():
        soft = OnlineSoftmaxes(pair)
        soft.rows, soft.rows_positive = rows
        soft.columns.top, soft.columns.total, soft.columns_positive.top, soft.columns_positive.total = carried
        x, y = pair.x.sample, pair.y.sample
        for tile, buffers in _tiles(pair, 2):
            work = buffers.lend(1, *tile.s.shape)
            if job.info_nce:
                soft.add(pair, tile, work)
            if job.kernel is not None:
                log_k, _ = pair.log_kernel(tile.s, tile.i, tile.j, job.kernel, work)
                raised = must_rise(top, log_k, x, y)
                if raised is not None:
                    total *= math.exp(top - raised)
                    top = raised
                total += log_k.sub_(top).exp_().sum(dim=1).sum(dtype=total.dtype)
        if job.info_nce:
            carried = job.send_on(carried, hop)
    columns[0].top, columns[0].total, columns[1].top, columns[1].total = carried
    kernel_top, kernel_total = (total, total + 1) if job.kernel is None else merged(top, total)
    if not job.info_nce:
        nothing = torch.zeros_like(rows[0].total), torch.zeros_like(columns[0].total)
        return _Norms(rows, columns, nothing, torch.zeros_like(total), kernel_top, kernel_total)
    share_x, loss_x = _mean_loss(job.x, *rows)
    share_y, loss_y = _mean_loss(job.y, *columns)
    return _Norms(rows, columns, (share_x, share_y), (loss_x + loss_y) / 2, kernel_top, kernel_total)


def _mean_loss(side: SortedSide, every: LogSums, positive: LogSums) -> tuple[Tensor, Tensor]:
    """Return the weights of the local rows in the mean over all ranks, and that mean."""
    w = side.log_w.to(positive.total.dtype).exp().masked_fill(positive.total == 0, 0)
    total = summed(w.sum())
    if float(total) == 0:
        raise InputError("no image id occurs among the text ids on any rank; the rows of a pair need equal ids")
    share = w / total
    loss = (every.log() - positive.log()).masked_fill(share == 0, 0)
    return share, summed((share * loss).sum())


class _Gradient:
    """The second pass; coefficients as in tiled_contrastive.py."""

    def __init__(self, job: _Job, norms: _Norms, upstream: tuple[float, float], needed: tuple[bool, ...]) -> None:
        self.job, self.norms, self.need_x, self.need_y, self.need_scale = job, norms, *needed[:3]
        self.kernel_factor = 2 * upstream[1] / float(norms.kernel_total)
        factor = upstream[0] * job.scale / 2
        dtype = job.x.log_w.dtype
        self.factors_x = _factors(factor * norms.shares[0], norms.rows, dtype)
        self.factors_y = _factors(factor * norms.shares[1], norms.columns, dtype)
        self.grad_scale = norms.kernel_total.new_zeros(())

    def run(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients in the local x and y (rows in the caller's order) and in the scale."""
        x, y = self.job.x, self.job.y
        own, carried = _Masses(x, self.need_x), _Masses(y, self.need_y)
        columns = [self.factors_y.every, self.factors_y.positive, *(sums.top for sums in self.norms.columns)]
        for hop, pair in self.job.pairs():
            self._block(pair, own, carried, columns)
            columns = self.job.send_on(columns, hop)
            carried.load(self.job.send_on(carried.tensors(), hop))
        grad_scale = None
        if self.need_scale:
            for masses, side in ((own, x), (carried, y)):
                self.grad_scale += (masses.nce.to(self.grad_scale.dtype) * side.shift).sum()
            grad_scale = summed(self.grad_scale) / (self.job.scale * world_size())
        return own.finish(x, self.job.centre), carried.finish(y, self.job.centre), grad_scale

    def _block(self, pair: Pair, own: _Masses, carried: _Masses, columns: Sequence[Tensor]) -> None:
        """Process all tiles of the local x and one block of y."""
        x, y = pair.x.sample, pair.y.sample
        soft = OnlineSoftmaxes(pair)
        soft.rows, soft.rows_positive = self.norms.rows
        soft.columns.top, soft.columns_positive.top = columns[2:]
        write = soft.gradient_by(pair, self.factors_x, Factors(*columns[:2]))
        for tile, buffers in _tiles(pair, 3):
            w, work = buffers.lend(1, *tile.s.shape), buffers.lend(2, *tile.s.shape)
            if self.job.info_nce:
                write(tile, w, work)
                own.nce[tile.i] += w.sum(dim=1)
                carried.nce[tile.j] += w.sum(dim=0)
                if self.need_scale:
                    self.grad_scale += torch.dot(w.flatten(), tile.s.flatten())
            else:
                w.zero_()
            if self.job.kernel is not None:
                log_k, slope = pair.log_kernel(tile.s, tile.i, tile.j, self.job.kernel, work)
                r = log_k.sub_(float(self.norms.kernel_top)).exp_().mul_(slope).mul_(self.kernel_factor)
                w.sub_(r)
                own.kernel[tile.i] += r.sum(dim=1)
                carried.kernel[tile.j] += r.sum(dim=0)
            add_products(w, (own.grad, x, tile.i), (carried.grad, y, tile.j))


class _Masses:
    """Sums over the other modality for each row of a block, sent along with the block.

    grad: sum w_ij y_j; nce: sum w_ij of InfoNCE only; kernel: sum r_ij.
    """

    def __init__(self, side: SortedSide, need_grad: bool) -> None:
        points = side.sample.points
        self.grad = torch.zeros_like(points) if need_grad else None
        self.nce, self.kernel = torch.zeros_like(side.log_w), torch.zeros_like(side.log_w)

    def tensors(self) -> list[Tensor]:
        return [self.nce, self.kernel, *([] if self.grad is None else [self.grad])]

    def load(self, tensors: Sequence[Tensor]) -> None:
        self.nce, self.kernel, *rest = tensors
        self.grad = rest[0] if rest else None

    def finish(self, side: SortedSide, centre: Tensor) -> Tensor | None:
        """Add the terms along the centre and along the row itself."""
        if self.grad is None:
            return None
        self.grad.addcmul_(self.nce[:, None], centre).addcmul_(side.sample.points, self.kernel[:, None])
        return side.restore(self.grad)


class _Sums:
    """Running kernel sum within a sample, relative to exp(top), and the sums for the gradient of the local rows:
    with p = exp(log_k - top) and r = p * slope, pull: sum_j r_ij x_j and mass: sum_j r_ij."""

    def __init__(self, sample: PreparedSample, gradient: bool) -> None:
        self.sample, self.top = sample, LOWEST
        points = sample.points
        self.total = torch.zeros((), dtype=totals_dtype(points), device=points.device)
        self.pull = torch.zeros_like(points) if gradient else None
        self.mass = torch.zeros_like(sample.square_norms)

    def add_block(self, other: PreparedSample, kernel: Kernel, own: bool) -> None:
        x, y = self.sample, other
        if not (len(x.points) and len(y.points)):
            return
        buffers = Buffers.between(x.points, y.points, 1)
        for i in blocks(x.points):
            for j in blocks(y.points):
                t = squared_distances(x, y, i, j, buffers)
                if own and i == j:
                    t.fill_diagonal_(0.0)
                log_k, slope = kernel.log_value_and_slope(t)
                self._add(add_log_weights(log_k, x, y, i, j), slope, (i, j), y)

    def _add(self, log_k: Tensor, slope: Tensor | float, where: tuple[slice, slice], y: PreparedSample) -> None:
        raised = must_rise(self.top, log_k, self.sample, y)
        if raised is not None:
            self._rescale(math.exp(self.top - raised))
            self.top = raised
        p = log_k.sub_(self.top).exp_()
        self.total += p.sum(dim=1).sum(dtype=self.total.dtype)
        if self.pull is not None:
            r = p.mul_(slope)
            self.mass[where[0]] += r.sum(dim=1)
            add_products(r, (self.pull, self.sample, where[0]), (None, y, where[1]))

    def _rescale(self, factor: float) -> None:
        self.total *= factor
        self.mass *= factor
        if self.pull is not None:
            self.pull *= factor

    def gradient(self, top: Tensor, total: Tensor) -> Tensor | None:
        """Return d log sum / dx of the local rows; every pair counts twice, as (i, j) and (j, i)."""
        if self.pull is None:
            return None
        self._rescale(4 * float((self.top - top).exp() / total))
        return self.sample.points * self.mass[:, None] - self.pull


def _tiles(pair: Pair, count: int) -> Iterator[tuple[Tile, Buffers]]:
    """Yield all tiles of a pair with their products in buffer 0 of `count`; nothing if a rank has no rows."""
    x, y = pair.x.sample.points, pair.y.sample.points
    if not (len(x) and len(y)):
        return
    buffers = Buffers.between(x, y, count)
    for i, j, may_be_positive in pair.tiles():
        s = pair.product(i, j, buffers.lend(0, i.stop - i.start, j.stop - j.start))
        yield Tile(s, i, j, pair.negatives(i, j) if may_be_positive else None), buffers


def _factors(shares: Tensor, sums: tuple[LogSums, LogSums], dtype: torch.dtype) -> Factors:
    every, positive = ((shares / each.total).masked_fill(shares == 0, 0).to(dtype) for each in sums)
    return Factors(every, positive)


def _refuse_second_derivative() -> None:
    if torch.is_grad_enabled():
        raise InputError(
            'exchange: "ring" does not support second derivatives (create_graph=True); '
            'use exchange="gather" with impl="reference"'
        )
