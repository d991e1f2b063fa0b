"""Triton kernels for sums and gradient coefficients of InfoNCE and kernel means; called from triton.py.

Samples are padded to a multiple of the block size, so no masks are needed; the exponents of padding rows and of
unpaired rows are -1e30.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _products(s_at, points_x, points_y, local, i, j, stride, DIM: tl.constexpr, OWN: tl.constexpr, SIZE: tl.constexpr):  # noqa: PLR0913, PLR0917
    """x_i . y_j, (SIZE, SIZE) float32: read at `local`, or (OWN) computed from the points in three TF32 parts."""
    if not OWN:
        return tl.load(s_at + local)
    k = tl.arange(0, 32)
    at_x = points_x + i.to(tl.int64)[:, None] * DIM + k[None, :]
    at_y = points_y + j.to(tl.int64)[:, None] * DIM + k[None, :]
    s = tl.zeros((SIZE, SIZE), dtype=tl.float32)
    for start in range(0, DIM, 32):
        if DIM % 32 == 0:
            a, b = tl.load(at_x + start), tl.load(at_y + start)
        else:
            inside = (start + k < DIM)[None, :]
            a, b = tl.load(at_x + start, mask=inside, other=0.0), tl.load(at_y + start, mask=inside, other=0.0)
        s = tl.dot(a, tl.trans(b), s, input_precision="tf32x3")
    return s


@triton.jit
def _sums_along(e, out, plane, count, rows, index, block, axis: tl.constexpr):
    """Write max e and sum exp(e - max e) along an axis to planes `plane` and `plane + 1` of out."""
    top = tl.max(e, axis)
    total = tl.sum(tl.exp(e - (top[:, None] if axis == 1 else top[None, :])), axis)
    place = (plane * count + block) * rows + index
    tl.store(out + place, top)
    tl.store(out + place + count * rows, tl.where(top > -1e29, total, 0.0))


@triton.jit
def _nothing(out, plane, count, rows, index, block, SIZE: tl.constexpr):
    place = (plane * count + block) * rows + index
    tl.store(out + place, tl.full((SIZE,), -1e30, tl.float32))
    tl.store(out + place + count * rows, tl.zeros((SIZE,), tl.float32))


@triton.jit
def _log_kernel(s, i, j, x, y, rows, columns, slope, WITHIN: tl.constexpr):  # noqa: PLR0913, PLR0917
    """Return the log of the weighted kernel; planes 3 and 4 of x and y: square norms, log weights."""
    norm_x, norm_y = tl.load(x + 3 * rows + i)[:, None], tl.load(y + 3 * columns + j)[None, :]
    t = tl.maximum(norm_x + norm_y - 2 * s, 0.0)
    if WITHIN:
        t = tl.where(i[:, None] == j[None, :], 0.0, t)
    return slope * t + tl.load(x + 4 * rows + i)[:, None] + tl.load(y + 4 * columns + j)[None, :]


@triton.jit
def _may_be_positive(ids_x, ids_y, first_i, first_j, SIZE: tl.constexpr):
    """Return whether a block of sorted ids may contain a pair."""
    low_x, high_x = tl.load(ids_x + first_i), tl.load(ids_x + first_i + SIZE - 1)
    low_y, high_y = tl.load(ids_y + first_j), tl.load(ids_y + first_j + SIZE - 1)
    return (low_x <= high_y) & (low_y <= high_x)


@triton.jit
def sum_kernel(  # noqa: PLR0913, PLR0917
    s_at,
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
    first,
    group,
    group_rows,
    rows,
    columns,
    slope,
    NCE: tl.constexpr,
    KERNEL: tl.constexpr,
    DIM: tl.constexpr,
    OWN: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Compute the sums of one SIZE x SIZE block of the chunk that starts at row `first`. x, y: planes, see _Side.

    Outputs hold the sums of the `group_rows` rows from row `group` on.
    """
    count_i, count_j = group_rows // SIZE, columns // SIZE
    block_i, block_j = first // SIZE + tl.program_id(1), tl.program_id(0)
    i, j = block_i * SIZE + tl.arange(0, SIZE), block_j * SIZE + tl.arange(0, SIZE)
    local = (i - first).to(tl.int64)[:, None] * columns + j[None, :]
    s = _products(s_at, points_x, points_y, local, i, j, columns, DIM, OWN, SIZE)
    out_i, out_block = i - group, block_i - group // SIZE
    if NCE:
        scale = tl.load(scale_at)
        over_x, over_y = tl.load(x + i)[:, None], tl.load(y + j)[None, :]
        _sums_along(scale * s + over_y, row_out, 0, count_j, group_rows, out_i, block_j, 1)
        _sums_along(scale * s + over_x, column_out, 0, count_i, columns, j, out_block, 0)
        if _may_be_positive(ids_x, ids_y, block_i * SIZE, block_j * SIZE, SIZE):
            same = tl.load(ids_x + i)[:, None] == tl.load(ids_y + j)[None, :]
            _sums_along(tl.where(same, scale * s + over_y, -1e30), row_out, 2, count_j, group_rows, out_i, block_j, 1)
            _sums_along(tl.where(same, scale * s + over_x, -1e30), column_out, 2, count_i, columns, j, out_block, 0)
        else:
            _nothing(row_out, 2, count_j, group_rows, out_i, block_j, SIZE)
            _nothing(column_out, 2, count_i, columns, j, out_block, SIZE)
    if KERNEL:
        log_k = _log_kernel(s, i, j, x, y, rows, columns, slope, False)
        top = tl.max(tl.max(log_k, 1), 0)
        tl.store(kernel_out + out_block * count_j + block_j, top)
        total = tl.sum(tl.sum(tl.exp(log_k - top), 1), 0)
        tl.store(kernel_out + count_i * count_j + out_block * count_j + block_j, total)


@triton.jit
def _softmax_part(e, planes, stride, index, top_plane, common, axis: tl.constexpr):
    """Return common * factor * exp(e - top); top, factor of a row (axis 1) or column: planes top_plane and the next."""
    top = tl.load(planes + top_plane * stride + index)
    factor = tl.load(planes + (top_plane + 1) * stride + index) * common
    if axis == 1:
        return tl.exp(e - top[:, None]) * factor[:, None]
    return tl.exp(e - top[None, :]) * factor[None, :]


@triton.jit
def weight_kernel(  # noqa: PLR0913, PLR0917
    s_at,
    points_x,
    points_y,
    x,
    y,
    ids_x,
    ids_y,
    scale_at,
    nce_at,
    top_at,
    factor_at,
    w_out,
    row_out,
    column_out,
    dot_out,
    first,
    group,
    group_rows,
    first_column,
    stop,
    rows,
    columns,
    slope,
    NCE: tl.constexpr,
    KERNEL: tl.constexpr,
    WITHIN: tl.constexpr,
    DIM: tl.constexpr,
    OWN: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Compute w = InfoNCE * nce - factor * k of one block, row and column sums of both parts, and sum w s of InfoNCE.

    The chunk starts at row `first` and column `first_column`. WITHIN: x against itself; columns before `stop` are in
    the diagonal square of the chunk and have no column sums. Sums are those of a group of rows, see sum_kernel.
    """
    count_i, count_j = group_rows // SIZE, columns // SIZE
    block_i, block_j = first // SIZE + tl.program_id(1), first_column // SIZE + tl.program_id(0)
    i, j = block_i * SIZE + tl.arange(0, SIZE), block_j * SIZE + tl.arange(0, SIZE)
    stride = columns - first_column
    local = (i - first).to(tl.int64)[:, None] * stride + (j - first_column)[None, :]
    s = _products(s_at, points_x, points_y, local, i, j, stride, DIM, OWN, SIZE)
    out_i, out_block = i - group, block_i - group // SIZE
    w = tl.zeros((SIZE, SIZE), dtype=tl.float32)
    if NCE:
        scale = tl.load(scale_at)
        over_x, over_y = tl.load(x + i)[:, None], tl.load(y + j)[None, :]
        common = tl.load(nce_at)
        w += _softmax_part(scale * s + over_y, x, rows, i, 1, common, 1)
        w += _softmax_part(scale * s + over_x, y, columns, j, 1, common, 0)
        if _may_be_positive(ids_x, ids_y, block_i * SIZE, block_j * SIZE, SIZE):
            part = _softmax_part(scale * s + over_y, x, rows, i, 5, common, 1)
            part += _softmax_part(scale * s + over_x, y, columns, j, 5, common, 0)
            w -= tl.where(tl.load(ids_x + i)[:, None] == tl.load(ids_y + j)[None, :], part, 0.0)
        tl.store(dot_out + out_block * count_j + block_j, tl.sum(tl.sum(w * s, 1), 0))
        tl.store(row_out + block_j * group_rows + out_i, tl.sum(w, 1))
        tl.store(column_out + out_block * columns + j, tl.sum(w, 0))
    if KERNEL:
        log_k = _log_kernel(s, i, j, x, y, rows, columns, slope, WITHIN)
        k = tl.exp(log_k - tl.load(top_at)) * tl.load(factor_at)
        w -= k
        tl.store(row_out + (count_j + block_j) * group_rows + out_i, tl.sum(k, 1))
        tl.store(column_out + (count_i + out_block) * columns + j, tl.sum(k, 0), mask=j >= stop)
    tl.store(w_out + local, w.to(w_out.dtype.element_ty))
