"""The tiled sweep for GPUs: library products, and everything beside them in two Triton kernels.

Each tile of x y^T comes from one matrix product with float32 output; one kernel then reads it once for all sums of
the first pass, another turns it in place into the coefficients of the second. 14 N^2 d flops and about 4 passes over
a tile instead of some 30. Sums are kept for each block of 64 x 64 and added up afterwards in a fixed order: no atomics,
the same bits in every run. The only file that imports triton; with TRITON_INTERPRET=1 it runs on a CPU.

Limits: the Gaussian kernel; float32, bfloat16 or float16 features. Half-precision features go into the products as they
are (uncentred), and the products of their gradients take bfloat16 coefficients; float32 features are centred and all
products are float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tiled
from .contrastive import Pair, RowInfo, SortedSide
from .kernels import Gaussian
from .logsumexp import LOWEST, Softmaxes, factors
from .tiles import PreparedSample, blocks, no_autocast, refuse_second_derivative, totals_dtype

BLOCK = 64


@triton.jit
def _row_sums(e, valid, out, plane, count, rows, index, block, axis: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: PLR0913, PLR0917
    """Largest e and sum of exp(e - largest) along an axis, to planes `plane` and `plane + 1` of out."""
    top = tl.max(tl.where(valid, e, -1e30), axis)
    shifted = e - (top[:, None] if axis == 1 else top[None, :])
    total = tl.sum(tl.where(valid, tl.exp(tl.minimum(shifted, 0.0)), 0.0), axis)
    place = (plane * count + block) * rows + index
    tl.store(out + place, top, mask=index < rows)
    tl.store(out + place + count * rows, total, mask=index < rows)


@triton.jit
def _log_kernel(s, i, j, x, y, rows, columns, slope, DIAGONAL_TILE: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: PLR0913, PLR0917
    """log of weighted k; planes 3 and 4 of x and y: square norms, log weights."""
    norm_x = tl.load(x + 3 * rows + i, mask=i < rows, other=0.0)[:, None]
    norm_y = tl.load(y + 3 * columns + j, mask=j < columns, other=0.0)[None, :]
    t = tl.maximum(norm_x + norm_y - 2 * s, 0.0)
    if DIAGONAL_TILE:
        t = tl.where(i[:, None] == j[None, :], 0.0, t)
    log_a = tl.load(x + 4 * rows + i, mask=i < rows, other=0.0)[:, None]
    log_b = tl.load(y + 4 * columns + j, mask=j < columns, other=0.0)[None, :]
    return slope * t + log_a + log_b


@triton.jit
def _same_ids(i, j, ids_x, ids_y, rows, columns):  # type: ignore[no-untyped-def]
    id_x = tl.load(ids_x + i, mask=i < rows, other=-3)[:, None]
    id_y = tl.load(ids_y + j, mask=j < columns, other=-4)[None, :]
    return id_x == id_y


@triton.jit
def _first_kernel(  # type: ignore[no-untyped-def] # noqa: PLR0913, PLR0917
    s,
    x,
    y,
    ids_x,
    ids_y,
    row_out,
    column_out,
    kernel_out,
    rows,
    columns,
    scale,
    slope,
    NCE: tl.constexpr,
    KERNEL: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Sums of one SIZE x SIZE block of the tile. x, y: planes of vectors, see _planes."""
    block_i, block_j = tl.program_id(0), tl.program_id(1)
    count_i, count_j = tl.num_programs(0), tl.num_programs(1)
    i, j = block_i * SIZE + tl.arange(0, SIZE), block_j * SIZE + tl.arange(0, SIZE)
    inside = (i < rows)[:, None] & (j < columns)[None, :]
    tile = tl.load(s + i.to(tl.int64)[:, None] * columns + j[None, :], mask=inside, other=0.0)
    if NCE:
        over_x = tl.load(x + i, mask=i < rows, other=-1e30)[:, None]
        over_y = tl.load(y + j, mask=j < columns, other=-1e30)[None, :]
        same = _same_ids(i, j, ids_x, ids_y, rows, columns) & inside
        e = scale * tile + over_y
        valid = inside & (over_y > -1e29)
        _row_sums(e, valid, row_out, 0, count_j, rows, i, block_j, 1)
        _row_sums(e, valid & same, row_out, 2, count_j, rows, i, block_j, 1)
        e = scale * tile + over_x
        valid = inside & (over_x > -1e29)
        _row_sums(e, valid, column_out, 0, count_i, columns, j, block_i, 0)
        _row_sums(e, valid & same, column_out, 2, count_i, columns, j, block_i, 0)
    if KERNEL:
        log_k = tl.where(inside, _log_kernel(tile, i, j, x, y, rows, columns, slope, False), -1e30)
        top = tl.max(tl.max(log_k, 1), 0)
        total = tl.sum(tl.sum(tl.where(inside, tl.exp(log_k - top), 0.0), 1), 0)
        place = kernel_out + block_i * count_j + block_j
        tl.store(place, top)
        tl.store(place + count_i * count_j, total)


@triton.jit
def _second_kernel(  # type: ignore[no-untyped-def] # noqa: PLR0913, PLR0917
    s,
    x,
    y,
    ids_x,
    ids_y,
    row_out,
    column_out,
    dot_out,
    rows,
    columns,
    scale,
    slope,
    kernel_top,
    kernel_factor,
    NCE: tl.constexpr,
    KERNEL: tl.constexpr,
    DIAGONAL_TILE: tl.constexpr,
    SIZE: tl.constexpr,
):
    """s becomes the coefficients: InfoNCE - kernel_factor * k; row and column sums of both parts, and sum w s."""
    block_i, block_j = tl.program_id(0), tl.program_id(1)
    count_i, count_j = tl.num_programs(0), tl.num_programs(1)
    i, j = block_i * SIZE + tl.arange(0, SIZE), block_j * SIZE + tl.arange(0, SIZE)
    inside = (i < rows)[:, None] & (j < columns)[None, :]
    place = s + i.to(tl.int64)[:, None] * columns + j[None, :]
    tile = tl.load(place, mask=inside, other=0.0)
    w = tl.zeros((SIZE, SIZE), dtype=tl.float32)
    if NCE:
        same = _same_ids(i, j, ids_x, ids_y, rows, columns) & inside
        over_x = tl.load(x + i, mask=i < rows, other=-1e30)[:, None]
        over_y = tl.load(y + j, mask=j < columns, other=-1e30)[None, :]
        e = scale * tile + over_y
        top = tl.load(x + 1 * rows + i, mask=i < rows, other=0.0)[:, None]
        factor = tl.load(x + 2 * rows + i, mask=i < rows, other=0.0)[:, None]
        w += tl.where(inside, tl.exp(tl.minimum(e - top, 0.0)) * factor, 0.0)
        top = tl.load(x + 5 * rows + i, mask=i < rows, other=0.0)[:, None]
        factor = tl.load(x + 6 * rows + i, mask=i < rows, other=0.0)[:, None]
        w -= tl.where(same, tl.exp(tl.minimum(e - top, 0.0)) * factor, 0.0)
        e = scale * tile + over_x
        top = tl.load(y + 1 * columns + j, mask=j < columns, other=0.0)[None, :]
        factor = tl.load(y + 2 * columns + j, mask=j < columns, other=0.0)[None, :]
        w += tl.where(inside, tl.exp(tl.minimum(e - top, 0.0)) * factor, 0.0)
        top = tl.load(y + 5 * columns + j, mask=j < columns, other=0.0)[None, :]
        factor = tl.load(y + 6 * columns + j, mask=j < columns, other=0.0)[None, :]
        w -= tl.where(same, tl.exp(tl.minimum(e - top, 0.0)) * factor, 0.0)
        tl.store(dot_out + block_i * count_j + block_j, tl.sum(tl.sum(w * tile, 1), 0))
        tl.store(row_out + block_j * rows + i, tl.sum(w, 1), mask=i < rows)
        tl.store(column_out + block_i * columns + j, tl.sum(w, 0), mask=j < columns)
    if KERNEL:
        log_k = _log_kernel(tile, i, j, x, y, rows, columns, slope, DIAGONAL_TILE)
        k = tl.where(inside, tl.exp(log_k - kernel_top) * kernel_factor, 0.0)
        w -= k
        tl.store(row_out + (count_j + block_j) * rows + i, tl.sum(k, 1), mask=i < rows)
        tl.store(column_out + (count_i + block_i) * columns + j, tl.sum(k, 0), mask=j < columns)
    tl.store(place, w, mask=inside)


def log_kernel_mean(
    x: Tensor,
    y: Tensor | None,
    kernel: Gaussian,
    weights_x: Tensor | None = None,
    weights_y: Tensor | None = None,
    diagonal: bool = True,
) -> Tensor:
    """As reference.log_kernel_mean; the value is float64 whatever the dtype of x. diagonal=False runs tiled."""
    if not diagonal:
        return tiled.log_kernel_mean(x.float(), y, kernel, weights_x, diagonal=False)
    if y is None:
        value: Tensor = _Within.apply(x, weights_x, kernel)  # type: ignore[no-untyped-call]
        return value
    nobody = torch.zeros(max(len(x), len(y)), dtype=torch.int64, device=x.device)
    rows = RowInfo(nobody[: len(x)], nobody[: len(y)], weights_x, weights_y)
    between: Tensor = _Between.apply(x, y, x.new_ones(()), rows, (False, kernel))[1]  # type: ignore[no-untyped-call]
    return between


def info_nce(x: Tensor, y: Tensor, scale: Tensor, rows: RowInfo) -> Tensor:
    """As reference.info_nce; the value is float64 whatever the dtype of x."""
    value: Tensor = _Between.apply(x, y, scale, rows, (True, None))[0]  # type: ignore[no-untyped-call]
    return value


def fused(x: Tensor, y: Tensor, scale: Tensor, rows: RowInfo, kernel: Gaussian) -> tuple[Tensor, Tensor]:
    """reference.info_nce and reference.log_kernel_mean of x against y, from the same tiles. Both float64."""
    nce, log_mean = _Between.apply(x, y, scale, rows, (True, kernel))  # type: ignore[no-untyped-call]
    return nce, log_mean


class _Within(torch.autograd.Function):
    """x against itself, the diagonal kept: log k + log a + log b <= 0 needs no running maximum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor | None, kernel: Gaussian) -> Tensor:
        with no_autocast(x):
            points = x - x.mean(dim=0) if x.dtype == torch.float32 else x
            sample = PreparedSample.of(points, weights, mixed=False)
            planes = _planes(sample)
            grad = torch.zeros_like(sample.points, dtype=torch.float32)
            mass = torch.zeros_like(sample.square_norms)
            total = torch.zeros((), dtype=totals_dtype(x), device=x.device)
            for i in blocks(sample.points):
                for j in blocks(sample.points):
                    if j.start < i.start:
                        continue
                    w = _matmul(sample.points[i], sample.points[j].T)
                    launch = _Launch(w, planes[:, i], planes[:, j], None, 0.0, kernel)
                    rows, columns, _ = launch.second(kernel_top=0.0, kernel_factor=1.0, diagonal=i == j)  # w = -k
                    total += rows[1].sum(dtype=total.dtype) * (1 if i == j else 2)
                    mass[i] += rows[1]
                    grad[i] += _matmul(w, sample.points[j])
                    if i != j:
                        mass[j] += columns[1]
                        grad[j] += _matmul(w.T, sample.points[i])
        factor = -2 / kernel.sigma**2 / float(total)
        grad.addcmul_(sample.points.float(), mass[:, None]).mul_(factor)
        ctx.save_for_backward(grad.to(x.dtype))
        return total.log() + 2 * sample.log_constant

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        (grad,) = ctx.saved_tensors
        return grad * grad_value.to(grad.dtype), None, None


class _Between(torch.autograd.Function):
    """InfoNCE (if asked for) and the log kernel mean (if there is a kernel) of x against y."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, scale: Tensor, rows: RowInfo, terms: tuple[bool, Gaussian | None]
    ) -> tuple[Tensor, Tensor]:
        with no_autocast(x):
            pair = _pair(x, y, rows, float(scale))
            sums = _first_pass(pair, *terms)
        ctx.save_for_backward(x, y, scale)
        ctx.rows, ctx.terms, ctx.sums = rows, terms, sums
        constant = pair.x.sample.log_constant + pair.y.sample.log_constant
        nce = sums.softmaxes.info_nce(pair) if terms[0] else sums.kernel_total.new_zeros(())
        return nce, sums.kernel_total.log() + sums.kernel_top + constant

    @staticmethod
    def backward(ctx: Any, grad_nce: Tensor, grad_kernel: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x, y, scale = ctx.saved_tensors
        with no_autocast(x):
            pair = _pair(x, y, ctx.rows, float(scale))
            grad_x, grad_y, grad_scale = _second_pass(pair, ctx.sums, ctx.terms, (float(grad_nce), float(grad_kernel)))
        return grad_x.to(x.dtype), grad_y.to(y.dtype), grad_scale.to(scale.dtype), None, None


@dataclass
class _FirstSums:
    """The sum of the kernel is kernel_total * exp(kernel_top)."""

    softmaxes: Softmaxes
    kernel_top: Tensor
    kernel_total: Tensor


def _first_pass(pair: Pair, nce: bool, kernel: Gaussian | None) -> _FirstSums:
    sums = Softmaxes(pair)
    planes_x, planes_y = _planes(pair.x.sample, pair.x, pair.scale), _planes(pair.y.sample, pair.y, pair.scale)
    tops, totals = [], []
    for i, j, _ in pair.tiles():
        s = _matmul(pair.x.sample.points[i], pair.y.sample.points[j].T)
        ids = (pair.x.ids[i], pair.y.ids[j]) if nce else None
        launch = _Launch(s, planes_x[:, i], planes_y[:, j], ids, pair.scale, kernel)
        rows, columns, kernel_sums = launch.first()
        if nce:
            for every, positive, parts, where in (
                (sums.rows, sums.rows_positive, rows, i),
                (sums.columns, sums.columns_positive, columns, j),
            ):
                every.merge(*_combined(parts[0], parts[1]), where)
                positive.merge(*_combined(parts[2], parts[3]), where)
        tops.append(kernel_sums[0].flatten())
        totals.append(kernel_sums[1].flatten())
    top, total = _combined(torch.cat(tops)[:, None], torch.cat(totals)[:, None])
    return _FirstSums(sums, top[0].double(), total[0])


def _second_pass(
    pair: Pair, sums: _FirstSums, terms: tuple[bool, Gaussian | None], upstream: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in x, y and the scale."""
    nce, kernel = terms
    x, y = pair.x, pair.y
    planes_x, planes_y = _planes(x.sample, x, pair.scale), _planes(y.sample, y, pair.scale)
    if nce:
        factor = upstream[0] * pair.scale / 2
        _put_softmax(planes_x, x, (sums.softmaxes.rows, sums.softmaxes.rows_positive), factor)
        _put_softmax(planes_y, y, (sums.softmaxes.columns, sums.softmaxes.columns_positive), factor)
    kernel_factor = 0.0 if kernel is None else -upstream[1] / kernel.sigma**2 / float(sums.kernel_total)
    grads = [torch.zeros_like(side.sample.points, dtype=torch.float32) for side in (x, y)]
    masses = [planes_x.new_zeros(2, len(side.ids)) for side in (x, y)]
    grad_scale = torch.zeros_like(sums.kernel_total)
    for i, j, _ in pair.tiles():
        w = _matmul(x.sample.points[i], y.sample.points[j].T)
        ids = (x.ids[i], y.ids[j]) if nce else None
        launch = _Launch(w, planes_x[:, i], planes_y[:, j], ids, pair.scale, kernel)
        rows, columns, dots = launch.second(float(sums.kernel_top), kernel_factor, diagonal=False)
        masses[0][:, i] += rows
        masses[1][:, j] += columns
        grad_scale += dots.sum(dtype=grad_scale.dtype)
        grads[0][i] += _matmul(w, y.sample.points[j])
        grads[1][j] += _matmul(w.T, x.sample.points[i])
    for side, grad, mass in zip((x, y), grads, masses, strict=True):
        grad_scale += (mass[0].to(grad_scale.dtype) * side.shift).sum()
        grad.addcmul_(mass[0][:, None], pair.centre.float())
        grad.addcmul_(side.sample.points.float(), mass[1][:, None])
    return x.restore(grads[0]), y.restore(grads[1]), grad_scale / pair.scale


class _Launch:
    """One tile and what its kernels read. planes: (7, rows) and (7, columns), see _planes."""

    def __init__(
        self,
        s: Tensor,
        x: Tensor,
        y: Tensor,
        ids: tuple[Tensor, Tensor] | None,
        scale: float,
        kernel: Gaussian | None,
    ) -> None:
        self.s, self.x, self.y = s, x.contiguous(), y.contiguous()
        nobody = torch.zeros(0, dtype=torch.int64, device=s.device)
        self.ids = (nobody, nobody) if ids is None else ids
        self.flags = {"NCE": ids is not None, "KERNEL": kernel is not None, "SIZE": BLOCK}
        self.numbers = (*s.shape, scale, 0.0 if kernel is None else -0.5 / kernel.sigma**2)
        self.grid = (triton.cdiv(s.shape[0], BLOCK), triton.cdiv(s.shape[1], BLOCK))

    def first(self) -> tuple[Tensor, Tensor, Tensor]:
        """Per block: (4, blocks, rows), (4, blocks, columns), (2, blocks, blocks); maxima and sums in turn."""
        (n, m), (n_blocks, m_blocks) = self.s.shape, self.grid
        outs = self.x.new_zeros(4, m_blocks, n), self.x.new_zeros(4, n_blocks, m), self.x.new_zeros(2, *self.grid)
        with torch.cuda.device_of(self.s):  # type: ignore[no-untyped-call]
            _first_kernel[self.grid](self.s, self.x, self.y, *self.ids, *outs, *self.numbers, **self.flags)
        return outs

    def second(self, kernel_top: float, kernel_factor: float, diagonal: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Turns s into the coefficients; (2, rows) and (2, columns) sums of InfoNCE and kernel, (blocks,) of w s."""
        (n, m), (n_blocks, m_blocks) = self.s.shape, self.grid
        rows, columns = self.x.new_zeros(2, m_blocks, n), self.x.new_zeros(2, n_blocks, m)
        dots = self.x.new_zeros(n_blocks * m_blocks)
        numbers = (*self.numbers, kernel_top, kernel_factor)
        outs = rows, columns, dots
        flags = {"DIAGONAL_TILE": diagonal, **self.flags}
        with torch.cuda.device_of(self.s):  # type: ignore[no-untyped-call]
            _second_kernel[self.grid](self.s, self.x, self.y, *self.ids, *outs, *numbers, **flags)
        return rows.sum(dim=1), columns.sum(dim=1), dots


def _planes(sample: PreparedSample, side: SortedSide | None = None, scale: float = 0.0) -> Tensor:
    """(7, N) float32, one row for each vector that the kernels read.

    0: what the row adds to the other side's exponents; 1, 2: maximum and factor of its softmax; 3: square norm;
    4: log of its kernel weight; 5, 6: maximum and factor over its positives.
    """
    planes = sample.square_norms.new_zeros(7, len(sample.square_norms))
    planes[3] = sample.square_norms
    if sample.log_weights is not None:
        planes[4] = sample.log_weights
    if side is not None:
        planes[0] = (scale * side.shift + side.log_w).clamp_(min=LOWEST)
    return planes


def _put_softmax(planes: Tensor, side: SortedSide, sums: tuple[Any, Any], factor: float) -> None:
    scaled = factors(side, *sums, factor)
    planes[1], planes[2] = sums[0].top, scaled.every
    planes[5], planes[6] = sums[1].top, scaled.positive


def _combined(tops: Tensor, totals: Tensor) -> tuple[Tensor, Tensor]:
    """(blocks, N) maxima and sums -> (N,) maxima and float64 sums."""
    top = tops.amax(dim=0)
    return top, (totals.to(totals_dtype(totals)) * (tops - top).exp()).sum(dim=0)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32; a bfloat16 b takes a as bfloat16, float16 times float16 stays as it is."""
    if b.dtype == torch.bfloat16:
        a = a.to(torch.bfloat16)
    if a.dtype == b.dtype and b.dtype != torch.float32 and a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def _pair(x: Tensor, y: Tensor, rows: RowInfo, scale: float) -> Pair:
    return Pair.of(x, y, rows, scale, centred=x.dtype == torch.float32)
