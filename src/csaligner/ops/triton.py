"""The loss on GPUs: products and everything beside them in Triton kernels, gradients through library products.

Two kernels compute blocks of x y^T and reduce them where they are: `_sum_kernel` to the sums of the first pass,
`_weight_kernel` to the coefficients w of the gradient, which are written once and multiplied with the points by the
library. 14 N^2 d flops, about 6 bytes for each of the N^2 entries (bfloat16), O(CHUNK N) memory. Sums are kept for each
block and added up afterwards in a fixed order: no atomics, the same bits in every run; no value waits for the host.
The only file that imports triton; with TRITON_INTERPRET=1 it runs on a CPU.

Limits: the Gaussian kernel; float32, bfloat16 or float16 features. Half-precision features go into the products as they
are (uncentred); bfloat16 features also take bfloat16 coefficients. float32 features are centred; their products run in
three TF32 parts (error as in float32) and, for the gradients, in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tiled
from .contrastive import RowInfo
from .kernels import Gaussian
from .tiles import no_autocast, refuse_second_derivative

BLOCK = 128
CHUNK = 4096  # rows whose coefficients are held at once
LOWEST = -1e30  # stands for "nothing seen yet" where -inf would make NaN of a difference
WARPS, STAGES, GROUP = 8, 3, 8


@triton.jit
def _place(count_i, count_j, GROUP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Row and column of this program's block; neighbours share rows of points in the cache."""
    program = tl.program_id(0)
    group = program // (GROUP * count_j)
    size = tl.minimum(count_i - group * GROUP, GROUP)
    inner = program % (GROUP * count_j)
    return group * GROUP + inner % size, inner // size


@triton.jit
def _products(x, y, i, j, rows, columns, DIM: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr, UP: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: PLR0913, PLR0917
    """x_i . y_j, (SIZE, SIZE) float32; rows beyond the last repeat it. UP: in float32, for the interpreter."""
    k = tl.arange(0, WIDTH)
    at_x = x + tl.minimum(i, rows - 1).to(tl.int64)[:, None] * DIM + k[None, :]
    at_y = y + tl.minimum(j, columns - 1).to(tl.int64)[:, None] * DIM + k[None, :]
    s = tl.zeros((SIZE, SIZE), dtype=tl.float32)
    for start in range(0, DIM, WIDTH):
        if DIM % WIDTH == 0:
            a, b = tl.load(at_x + start), tl.load(at_y + start)
        else:
            inside = (start + k < DIM)[None, :]
            a, b = tl.load(at_x + start, mask=inside, other=0.0), tl.load(at_y + start, mask=inside, other=0.0)
        if UP:
            a, b = a.to(tl.float32), b.to(tl.float32)
        s = tl.dot(a, tl.trans(b), s, input_precision="tf32x3")
    return s


@triton.jit
def _sums_along(e, out, plane, count, rows, index, block, axis: tl.constexpr):  # type: ignore[no-untyped-def]
    """Largest e and sum of exp(e - largest) along an axis, to planes `plane` and `plane + 1` of out."""
    top = tl.max(e, axis)
    total = tl.sum(tl.exp(e - (top[:, None] if axis == 1 else top[None, :])), axis)
    place = (plane * count + block) * rows + index
    tl.store(out + place, top, mask=index < rows)
    tl.store(out + place + count * rows, tl.where(top > -1e29, total, 0.0), mask=index < rows)


@triton.jit
def _nothing(out, plane, count, rows, index, block, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    place = (plane * count + block) * rows + index
    tl.store(out + place, tl.full((SIZE,), -1e30, tl.float32), mask=index < rows)
    tl.store(out + place + count * rows, tl.zeros((SIZE,), tl.float32), mask=index < rows)


@triton.jit
def _log_kernel(s, i, j, x, y, stride_x, stride_y, rows, columns, slope, WITHIN: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: PLR0913, PLR0917
    """log of weighted k, lowest outside; planes 3 and 4 of x and y: square norms, log weights."""
    norm_x = tl.load(x + 3 * stride_x + i, mask=i < rows, other=0.0)[:, None]
    norm_y = tl.load(y + 3 * stride_y + j, mask=j < columns, other=0.0)[None, :]
    t = tl.maximum(norm_x + norm_y - 2 * s, 0.0)
    if WITHIN:
        t = tl.where(i[:, None] == j[None, :], 0.0, t)
    log_a = tl.load(x + 4 * stride_x + i, mask=i < rows, other=-1e30)[:, None]
    log_b = tl.load(y + 4 * stride_y + j, mask=j < columns, other=-1e30)[None, :]
    return slope * t + log_a + log_b


@triton.jit
def _may_be_positive(ids_x, ids_y, block_i, block_j, rows, columns, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Whether a block of sorted ids can hold a pair."""
    low_x, high_x = tl.load(ids_x + block_i * SIZE), tl.load(ids_x + tl.minimum(block_i * SIZE + SIZE, rows) - 1)
    low_y, high_y = tl.load(ids_y + block_j * SIZE), tl.load(ids_y + tl.minimum(block_j * SIZE + SIZE, columns) - 1)
    return (low_x <= high_y) & (low_y <= high_x)


@triton.jit
def _same_ids(i, j, ids_x, ids_y, rows, columns):  # type: ignore[no-untyped-def]
    id_x = tl.load(ids_x + i, mask=i < rows, other=-3)[:, None]
    id_y = tl.load(ids_y + j, mask=j < columns, other=-4)[None, :]
    return id_x == id_y


@triton.jit(do_not_specialize=["rows", "columns"])
def _sum_kernel(  # type: ignore[no-untyped-def] # noqa: PLR0913, PLR0917
    points_x,
    points_y,
    x,
    y,
    ids_x,
    ids_y,
    scale_at,
    row_out,
    column_out,
    kernel_out,
    rows,
    columns,
    slope,
    NCE: tl.constexpr,
    KERNEL: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    UP: tl.constexpr,
):
    """Sums of one SIZE x SIZE block. x, y: planes of vectors, see _planes."""
    count_i, count_j = tl.cdiv(rows, SIZE), tl.cdiv(columns, SIZE)
    block_i, block_j = _place(count_i, count_j, GROUP)
    i, j = block_i * SIZE + tl.arange(0, SIZE), block_j * SIZE + tl.arange(0, SIZE)
    s = _products(points_x, points_y, i, j, rows, columns, DIM, WIDTH, SIZE, UP)
    if NCE:  # rows and columns that are outside or unpaired have -1e30 in place of their exponents
        scale = tl.load(scale_at)
        over_x = tl.load(x + i, mask=i < rows, other=-1e30)[:, None]
        over_y = tl.load(y + j, mask=j < columns, other=-1e30)[None, :]
        _sums_along(scale * s + over_y, row_out, 0, count_j, rows, i, block_j, 1)
        _sums_along(scale * s + over_x, column_out, 0, count_i, columns, j, block_i, 0)
        if _may_be_positive(ids_x, ids_y, block_i, block_j, rows, columns, SIZE):
            same = _same_ids(i, j, ids_x, ids_y, rows, columns)
            _sums_along(tl.where(same, scale * s + over_y, -1e30), row_out, 2, count_j, rows, i, block_j, 1)
            _sums_along(tl.where(same, scale * s + over_x, -1e30), column_out, 2, count_i, columns, j, block_i, 0)
        else:
            _nothing(row_out, 2, count_j, rows, i, block_j, SIZE)
            _nothing(column_out, 2, count_i, columns, j, block_i, SIZE)
    if KERNEL:
        log_k = _log_kernel(s, i, j, x, y, rows, columns, rows, columns, slope, False)
        top = tl.max(tl.max(log_k, 1), 0)
        tl.store(kernel_out + block_i * count_j + block_j, top)
        total = tl.sum(tl.sum(tl.exp(log_k - top), 1), 0)
        tl.store(kernel_out + count_i * count_j + block_i * count_j + block_j, total)


@triton.jit
def _softmax_part(e, planes, stride, index, count, top_plane, axis: tl.constexpr):  # type: ignore[no-untyped-def]
    """factor * exp(e - top), with top and factor of each row (axis 1) or column in planes top_plane and the next; 0
    outside."""
    top = tl.load(planes + top_plane * stride + index, mask=index < count, other=1e30)
    factor = tl.load(planes + (top_plane + 1) * stride + index, mask=index < count, other=0.0)
    if axis == 1:
        return tl.exp(e - top[:, None]) * factor[:, None]
    return tl.exp(e - top[None, :]) * factor[None, :]


@triton.jit(do_not_specialize=["stride_x", "stride_y", "rows", "columns"])
def _weight_kernel(  # type: ignore[no-untyped-def] # noqa: PLR0913, PLR0917
    points_x,
    points_y,
    x,
    y,
    ids_x,
    ids_y,
    scale_at,
    top_at,
    factor_at,
    w_out,
    row_out,
    column_out,
    dot_out,
    stride_x,
    stride_y,
    rows,
    columns,
    slope,
    NCE: tl.constexpr,
    KERNEL: tl.constexpr,
    WITHIN: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    UP: tl.constexpr,
):
    """w = InfoNCE - factor * k of one block; row and column sums of both parts, and sum w s of InfoNCE's."""
    count_i, count_j = tl.cdiv(rows, SIZE), tl.cdiv(columns, SIZE)
    block_i, block_j = _place(count_i, count_j, GROUP)
    i, j = block_i * SIZE + tl.arange(0, SIZE), block_j * SIZE + tl.arange(0, SIZE)
    s = _products(points_x, points_y, i, j, rows, columns, DIM, WIDTH, SIZE, UP)
    w = tl.zeros((SIZE, SIZE), dtype=tl.float32)
    if NCE:
        scale = tl.load(scale_at)
        over_x = tl.load(x + i, mask=i < rows, other=-1e30)[:, None]
        over_y = tl.load(y + j, mask=j < columns, other=-1e30)[None, :]
        w += _softmax_part(scale * s + over_y, x, stride_x, i, rows, 1, 1)
        w += _softmax_part(scale * s + over_x, y, stride_y, j, columns, 1, 0)
        if _may_be_positive(ids_x, ids_y, block_i, block_j, rows, columns, SIZE):
            part = _softmax_part(scale * s + over_y, x, stride_x, i, rows, 5, 1)
            part += _softmax_part(scale * s + over_x, y, stride_y, j, columns, 5, 0)
            w -= tl.where(_same_ids(i, j, ids_x, ids_y, rows, columns), part, 0.0)
        tl.store(dot_out + block_i * count_j + block_j, tl.sum(tl.sum(w * s, 1), 0))
        tl.store(row_out + block_j * rows + i, tl.sum(w, 1), mask=i < rows)
        tl.store(column_out + block_i * columns + j, tl.sum(w, 0), mask=j < columns)
    if KERNEL:
        log_k = _log_kernel(s, i, j, x, y, stride_x, stride_y, rows, columns, slope, WITHIN)
        k = tl.exp(log_k - tl.load(top_at)) * tl.load(factor_at)
        w -= k
        tl.store(row_out + (count_j + block_j) * rows + i, tl.sum(k, 1), mask=i < rows)
        tl.store(column_out + (count_i + block_i) * columns + j, tl.sum(k, 0), mask=j < columns)
    place = w_out + i.to(tl.int64)[:, None] * (tl.cdiv(columns, 64) * 64) + j[None, :]  # aligned rows
    tl.store(place, w.to(w_out.dtype.element_ty), mask=(i < rows)[:, None] & (j < columns)[None, :])


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
    nobody = torch.zeros(0, dtype=torch.int64, device=x.device)
    rows = RowInfo(nobody, nobody, weights_x, weights_y)
    between: Tensor = _Between.apply(x, y, x.new_ones(()), rows, (False, kernel))[1]  # type: ignore[no-untyped-call]
    return between


def info_nce(x: Tensor, y: Tensor, scale: Tensor, rows: RowInfo) -> Tensor:
    """As reference.info_nce; the value is float64 whatever the dtype of x."""
    value: Tensor = _Between.apply(x, y, scale, rows, (True, None))[0]  # type: ignore[no-untyped-call]
    return value


def fused(x: Tensor, y: Tensor, scale: Tensor, rows: RowInfo, kernel: Gaussian) -> tuple[Tensor, Tensor]:
    """reference.info_nce and reference.log_kernel_mean of x against y, from the same products. Both float64."""
    nce, log_mean = _Between.apply(x, y, scale, rows, (True, kernel))  # type: ignore[no-untyped-call]
    return nce, log_mean


class _Within(torch.autograd.Function):
    """x against itself, the diagonal kept: log k + log a + log b <= 0 needs no maximum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor | None, kernel: Gaussian) -> Tensor:
        with no_autocast(x):
            side = _Side.of(x, x.mean(dim=0), None, weights)
            grad, mass = torch.zeros_like(side.points, dtype=torch.float32), torch.zeros_like(side.planes[0])
            total = torch.zeros((), dtype=torch.float64, device=x.device)
            one, zero = mass.new_ones(()), mass.new_zeros(())
            for i in _chunks(len(x)):
                later = slice(i.start, len(x))
                own, others = side.part(i), side.part(later)
                rows, columns, _, w = _launch_weights((own, others), None, zero, one, kernel)  # w = -k
                half = i.stop - i.start
                total += rows[1].sum(dtype=torch.float64) + columns[1, half:].sum(dtype=torch.float64)
                mass[i] += rows[1]
                mass[i.stop :] += columns[1, half:]
                grad[i] += _matmul(w, others.points)
                if i.stop < len(x):
                    grad[i.stop :] += _matmul(w[:, half:].T, own.points)
        grad.addcmul_(side.points.float(), mass[:, None]).mul_((-2 / kernel.sigma**2 / total).float())
        ctx.save_for_backward(grad.to(x.dtype))
        return total.log() + 2 * side.log_constant

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
            pair = _Pair.of(x, y, scale.detach().to(x.device, torch.float32), rows, terms[0])
            sums = _first_pass(pair, terms[1])
        ctx.pair, ctx.sums, ctx.kernel = pair, sums, terms[1]
        ctx.dtypes, ctx.scale_place = (x.dtype, y.dtype, scale.dtype), scale.device
        nce = sums.info_nce(pair)
        return nce, sums.kernel_total.log() + (sums.kernel_top + (pair.x.log_constant + pair.y.log_constant))

    @staticmethod
    def backward(ctx: Any, grad_nce: Tensor, grad_kernel: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        pair: _Pair = ctx.pair
        with no_autocast(pair.x.points):
            grads = _second_pass(pair, ctx.sums, ctx.kernel, (grad_nce, grad_kernel))
        grad_x, grad_y, grad_scale = (grad.to(dtype) for grad, dtype in zip(grads, ctx.dtypes, strict=True))
        return grad_x, grad_y, grad_scale.to(ctx.scale_place) if ctx.needs_input_grad[2] else None, None, None


@dataclass(frozen=True)
class _Side:
    """One sample: its points, and what the kernels read of each row.

    points: (N, d), contiguous, centred if float32, sorted by id. planes: (7, N) float32; 0: what the row adds to the
    other side's exponents; 1, 2: maximum and factor of its softmax; 3: square norm; 4: log of its kernel weight; 5, 6:
    maximum and factor over its positives. ids: (N,) ascending, or None without InfoNCE. shift: (N,), what centring
    took off each logit of the row, over the scale. share: (N,) 1/m. order: what sorted the rows. log_constant: the log
    weight that all rows share.
    """

    points: Tensor
    planes: Tensor
    ids: Tensor | None = None
    shift: Tensor | None = None
    share: Tensor | None = None
    order: Tensor | None = None
    log_constant: float = 0.0

    @classmethod
    def of(cls, x: Tensor, centre: Tensor, ids: Tensor | None, weights: Tensor | None) -> _Side:
        order = torch.argsort(ids, stable=True) if ids is not None else None
        if ids is not None and order is not None:
            x, ids, weights = x[order], ids[order], None if weights is None else weights[order]
        points = (x - centre if x.dtype == torch.float32 else x).contiguous()
        planes = torch.zeros(7, len(x), dtype=torch.float32, device=x.device)
        planes[3] = torch.linalg.vector_norm(points, dim=1, dtype=torch.float32).square_()
        log_constant = -math.log(len(x))
        if weights is not None:
            planes[4], log_constant = (weights.double() / weights.double().sum()).log(), 0.0
        if ids is None:
            return cls(points, planes, log_constant=log_constant)
        count = torch.searchsorted(ids, ids, right=True) - torch.searchsorted(ids, ids)
        share = count.double().reciprocal().masked_fill(ids < 0, 0.0)
        shift = points @ centre if x.dtype == torch.float32 else torch.zeros_like(planes[0])
        return cls(points, planes, ids, shift, share, order, log_constant)

    def part(self, rows: slice) -> _Side:
        """Some of the rows, as the kernels read them."""
        return _Side(self.points[rows], self.planes[:, rows], None if self.ids is None else self.ids[rows])

    def put_exponents(self, scale: Tensor) -> None:
        if self.share is not None and self.shift is not None:
            self.planes[0] = (scale * self.shift + self.share.log()).clamp_(min=LOWEST)

    def restore(self, rows: Tensor) -> Tensor:
        """Rows in the caller's order."""
        return rows if self.order is None else torch.empty_like(rows).index_copy_(0, self.order, rows)


@dataclass(frozen=True)
class _Pair:
    x: _Side
    y: _Side
    centre: Tensor
    scale: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor, scale: Tensor, rows: RowInfo, nce: bool) -> _Pair:
        centre = torch.lerp(x.mean(dim=0), y.mean(dim=0), 0.5)
        ids_x, ids_y = (rows.ids_x, rows.ids_y) if nce else (None, None)
        sides = _Side.of(x, centre, ids_x, rows.weights_x), _Side.of(y, centre, ids_y, rows.weights_y)
        for side in sides:
            side.put_exponents(scale)
        return cls(*sides, centre.float(), scale)


@dataclass(frozen=True)
class _Sums:
    """The first pass: (top, total) of each row and column, over all and over positives; the sum of the kernel is
    kernel_total * exp(kernel_top)."""

    rows: tuple[Tensor, ...]
    columns: tuple[Tensor, ...]
    kernel_top: Tensor
    kernel_total: Tensor

    def info_nce(self, pair: _Pair) -> Tensor:
        if not self.rows:
            return self.kernel_total.new_zeros(())
        return (_mean_loss(pair.x, self.rows) + _mean_loss(pair.y, self.columns)) / 2


def _first_pass(pair: _Pair, kernel: Gaussian | None) -> _Sums:
    x, y = pair.x, pair.y
    nce, (n, m) = x.ids is not None, (len(x.points), len(y.points))
    n_blocks, m_blocks = triton.cdiv(n, BLOCK), triton.cdiv(m, BLOCK)
    row_out = x.planes.new_empty(4 if nce else 0, m_blocks, n)
    column_out = x.planes.new_empty(4 if nce else 0, n_blocks, m)
    kernel_out = x.planes.new_empty(2, n_blocks * m_blocks) if kernel else x.planes.new_zeros(2, 1)
    outs = row_out, column_out, kernel_out
    points, ids = (x.points, y.points, x.planes, y.planes), _ids(x, y)
    with torch.cuda.device_of(x.points):  # type: ignore[no-untyped-call]
        _sum_kernel[(n_blocks * m_blocks,)](
            *points, *ids, pair.scale, *outs, n, m, _slope(kernel), NCE=nce, KERNEL=kernel is not None, **_options(x)
        )
    kernel_top, kernel_total = _combined(kernel_out[0][:, None], kernel_out[1][:, None])
    rows, columns = (
        (*_combined(out[0], out[1]), *_combined(out[2], out[3])) if nce else () for out in (row_out, column_out)
    )
    return _Sums(rows, columns, kernel_top[0].double(), kernel_total[0])


def _second_pass(
    pair: _Pair, sums: _Sums, kernel: Gaussian | None, upstream: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in x, y and the scale."""
    x, y = pair.x, pair.y
    if sums.rows:
        factor = upstream[0] * pair.scale / 2
        _put_softmax(x, sums.rows, factor)
        _put_softmax(y, sums.columns, factor)
    kernel_factor = 0 if kernel is None else -1 / kernel.sigma**2
    factors = sums.kernel_top.float(), (upstream[1] * kernel_factor / sums.kernel_total).float()
    grads = [torch.zeros_like(side.points, dtype=torch.float32) for side in (x, y)]
    masses = [x.planes.new_zeros(2, len(side.points)) for side in (x, y)]
    grad_scale = torch.zeros((), dtype=torch.float64, device=x.points.device)
    for i in _chunks(len(x.points)):
        own = x.part(i)
        rows, columns, dots, w = _launch_weights((own, y), pair.scale, *factors, kernel)
        masses[0][:, i] = rows
        masses[1] += columns
        grad_scale += dots.sum(dtype=torch.float64)
        grads[0][i] = _matmul(w, y.points)
        grads[1] += _matmul(w.T, own.points)
    for side, grad, mass in zip((x, y), grads, masses, strict=True):
        if side.shift is not None and side.points.dtype == torch.float32:
            grad_scale += (mass[0].double() * side.shift).sum()
            grad.addcmul_(mass[0][:, None], pair.centre)
        grad.addcmul_(side.points.float(), mass[1][:, None])
    return x.restore(grads[0]), y.restore(grads[1]), grad_scale / pair.scale


def _launch_weights(
    sides: tuple[_Side, _Side], scale: Tensor | None, top: Tensor, factor: Tensor, kernel: Gaussian | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(2, rows) and (2, columns) sums of InfoNCE and kernel, (blocks,) sums of w s, and w (rows, columns).

    scale None: x against later rows of itself, no InfoNCE.
    """
    x, y = sides
    nce, (n, m) = scale is not None and x.ids is not None, (len(x.points), len(y.points))
    n_blocks, m_blocks = triton.cdiv(n, BLOCK), triton.cdiv(m, BLOCK)
    new = x.planes.new_empty if nce and kernel is not None else x.planes.new_zeros
    rows, columns, dots = new(2, m_blocks, n), new(2, n_blocks, m), new(n_blocks * m_blocks)
    w = torch.empty(n, 64 * triton.cdiv(m, 64), dtype=_weight_dtype(x.points), device=x.points.device)[:, :m]
    at = top if scale is None else scale, top, factor
    numbers = x.planes.stride(0), y.planes.stride(0), n, m, _slope(kernel)
    flags = {"NCE": nce, "KERNEL": kernel is not None, "WITHIN": scale is None}
    points, ids = (x.points, y.points, x.planes, y.planes), _ids(x, y)
    with torch.cuda.device_of(w):  # type: ignore[no-untyped-call]
        _weight_kernel[(n_blocks * m_blocks,)](
            *points, *ids, *at, w, rows, columns, dots, *numbers, **flags, **_options(x)
        )
    return rows.sum(dim=1), columns.sum(dim=1), dots, w


def _options(side: _Side) -> dict[str, Any]:
    """Sizes of blocks and of the machine that are the same for both kernels, so that their products are."""
    options = {"DIM": side.points.shape[1], "SIZE": BLOCK, "GROUP": GROUP, "UP": not side.points.is_cuda}
    options["WIDTH"] = 32 if side.points.dtype == torch.float32 else 64
    return options | {"num_warps": WARPS, "num_stages": STAGES}


def _chunks(rows: int) -> Iterator[slice]:
    for start in range(0, rows, CHUNK):
        yield slice(start, min(start + CHUNK, rows))


def _ids(x: _Side, y: _Side) -> tuple[Tensor, Tensor]:
    nobody = torch.zeros(0, dtype=torch.int64, device=x.points.device)
    return nobody if x.ids is None else x.ids, nobody if y.ids is None else y.ids


def _slope(kernel: Gaussian | None) -> float:
    return 0.0 if kernel is None else -0.5 / kernel.sigma**2


def _put_softmax(side: _Side, sums: tuple[Tensor, ...], factor: Tensor) -> None:
    """Maxima and factors of the rows for the second pass: factor * share / total, 0 for rows that enter no mean."""
    top, total, positive_top, positive_total = sums
    scaled = factor * _shares(side, positive_total)
    side.planes[1], side.planes[5] = top, positive_top
    side.planes[2] = torch.where(scaled == 0, 0, scaled / total)
    side.planes[6] = torch.where(scaled == 0, 0, scaled / positive_total)


def _shares(side: _Side, positive_total: Tensor) -> Tensor:
    """Weight of each row in the mean, 0 where it has no positive."""
    w = torch.where(positive_total == 0, 0, side.share)
    return w / w.sum()


def _mean_loss(side: _Side, sums: tuple[Tensor, ...]) -> Tensor:
    top, total, positive_top, positive_total = sums
    share = _shares(side, positive_total)
    loss = (top.double() - positive_top) + (total.log() - positive_total.log())
    return torch.where(share == 0, 0, share * loss).sum()


def _combined(tops: Tensor, totals: Tensor) -> tuple[Tensor, Tensor]:
    """(blocks, N) maxima and sums -> (N,) maxima and float64 sums."""
    top = tops.amax(dim=0)
    return top, ((tops - top).exp_() * totals).sum(dim=0, dtype=torch.float64)


def _weight_dtype(points: Tensor) -> torch.dtype:
    return torch.bfloat16 if points.dtype == torch.bfloat16 else torch.float32


def _matmul(w: Tensor, points: Tensor) -> Tensor:
    """w @ points in float32, from bfloat16 factors where both are."""
    if w.dtype == points.dtype == torch.bfloat16 and w.is_cuda:
        return torch.mm(w, points, out_dtype=torch.float32)
    return w.float() @ points.float()
