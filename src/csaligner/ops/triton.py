"""GPU implementation: log kernel means and InfoNCE with two Triton kernels and library matrix products.

Both kernels process blocks of x y^T: `sum_kernel` reduces them to the sums of the first pass, `weight_kernel` converts
them to the gradient coefficients w, which are multiplied with the points by the matrix library. 14 N^2 d flops; O(N)
memory plus one chunk of products and the sums of the blocks of one group of rows. Half-precision products are computed
by the library, with float32 output; float32 products are computed inside the kernels. Block sums are added in a fixed
order without atomics, so results are bitwise reproducible; there is no synchronisation with the host.
TRITON_INTERPRET=1 runs the kernels on a CPU.

Limits: the Gaussian kernel; float32, bfloat16 or float16 features. Half-precision features are not centred; bfloat16
features use bfloat16 coefficients. float32 features are centred; their products use three TF32 terms (float32
accuracy) and, for the gradients, float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import triton
from torch import Tensor

from . import tiled
from .block_sums import add_product, combined, matmul, merged
from .contrastive import RowInfo
from .kernels import Gaussian
from .tiles import no_autocast, refuse_second_derivative
from .triton_kernels import sum_kernel, weight_kernel

BLOCK = 128  # samples are padded to a multiple of it, so that kernels need no masks
CHUNK_ENTRIES = 2**26  # entries of a chunk: 256 MB of float32 products, plus half of that for the coefficients
GROUP_ENTRIES = 2**28  # entries of the sums of blocks that are merged at once, 1 GB: all of up to 65,536 rows
LOWEST, HIGHEST = -1e30, 1e30  # replace infinities, whose differences would be NaN

# Kernel launch options: for products computed by the library, and for products computed in the kernel. Fixed, not
# autotuned: the order of the sums, and so the bits of a result, depend on SIZE. No registers are spilled with LOADED;
# OWN was the fastest on an H200 although it spills (tests/ops/test_ahead_of_time.py).
LOADED = {"SIZE": 64, "num_warps": 4, "num_stages": 1}
OWN = {"SIZE": 128, "num_warps": 8, "num_stages": 3}


def log_kernel_mean(
    x: Tensor,
    y: Tensor | None,
    kernel: Gaussian,
    weights_x: Tensor | None = None,
    weights_y: Tensor | None = None,
    diagonal: bool = True,
) -> Tensor:
    """See reference.log_kernel_mean; the value is float64 for every dtype of x. diagonal=False uses tiled."""
    if not diagonal:
        return tiled.log_kernel_mean(x.float(), y, kernel, weights_x, diagonal=False)
    if y is None:
        value: Tensor = _Within.apply(x, weights_x, kernel)  # type: ignore[no-untyped-call]
        return value
    no_ids = torch.zeros(0, dtype=torch.int64, device=x.device)
    rows = RowInfo(no_ids, no_ids, weights_x, weights_y)
    between: Tensor = _Between.apply(x, y, x.new_ones(()), rows, (False, kernel))[1]  # type: ignore[no-untyped-call]
    return between


def info_nce(x: Tensor, y: Tensor, scale: Tensor, rows: RowInfo) -> Tensor:
    """See reference.info_nce; the value is float64 for every dtype of x."""
    value: Tensor = _Between.apply(x, y, scale, rows, (True, None))[0]  # type: ignore[no-untyped-call]
    return value


def fused(x: Tensor, y: Tensor, scale: Tensor, rows: RowInfo, kernel: Gaussian) -> tuple[Tensor, Tensor]:
    """Return reference.info_nce and reference.log_kernel_mean of x against y, from the same products. Both float64."""
    nce, log_mean = _Between.apply(x, y, scale, rows, (True, kernel))  # type: ignore[no-untyped-call]
    return nce, log_mean


class _Within(torch.autograd.Function):
    """x against itself, diagonal included; no maximum is needed since log k + log a + log b <= 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor | None, kernel: Gaussian) -> Tensor:
        with no_autocast(x):
            side = _Side.of(x, x.mean(dim=0) if x.dtype == torch.float32 else None, None, weights)
            grad = torch.zeros_like(side.points, dtype=torch.float32)
            mass = grad.new_zeros(len(grad), dtype=torch.float64)
            one, zero = grad.new_ones(()), grad.new_zeros(())
            for group in side.groups(side):
                sums = _WeightSums(side, side, False, group)
                for i in side.chunks(side, group):
                    w = _weights((side, side), i, i.start, (zero, zero, one), sums, kernel)  # -k
                    add_product(grad[i], w, side.points[i.start :])
                    if i.stop < len(side.points):
                        add_product(grad[i.stop :], w[:, i.stop - i.start :].T, side.points[i])
                mass[group] += sums.rows[1].sum(dim=0, dtype=torch.float64)
                mass += sums.columns[1].sum(dim=0, dtype=torch.float64)
        total = mass.sum()
        grad.addcmul_(side.points.float(), mass.float()[:, None]).mul_((-2 / kernel.sigma**2 / total).float())
        ctx.save_for_backward(grad[: len(x)].to(x.dtype))
        return total.log() + 2 * side.log_constant

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        (grad,) = ctx.saved_tensors
        return grad * grad_value.to(grad.dtype), None, None


class _Between(torch.autograd.Function):
    """InfoNCE (optional) and the log kernel mean (with a kernel) of x against y."""

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
    """One sample, padded to a multiple of BLOCK with rows of weight 0, and the per-row inputs of the kernels.

    points: (N, d), contiguous, centred if float32, sorted by id. planes: (7, N) float32; 0: summand of the row in the
    exponents of the other sample; 1, 2: maximum and factor of its softmax; 3: square norm; 4: log of its kernel weight;
    5, 6: maximum and factor over its positives. ids: (N,) ascending, empty without InfoNCE. shift: (N,), the amount
    that centring subtracts from each logit of the row, divided by the scale. share: (N,) 1/m. order: the permutation
    that sorted the rows. log_constant: the log weight common to all rows. count: number of rows without padding.
    """

    points: Tensor
    planes: Tensor
    ids: Tensor
    shift: Tensor
    share: Tensor
    order: Tensor | None
    log_constant: float
    count: int

    @classmethod
    def of(
        cls, x: Tensor, centre: Tensor | None, ids: Tensor | None, weights: Tensor | None, filling: int = 2**62
    ) -> _Side:
        """centre: None for half-precision features. filling: the id of padding rows, different for x and y."""
        order, count = None if ids is None else torch.argsort(ids, stable=True), len(x)
        if ids is not None and order is not None:
            x, ids, weights = x[order], ids[order], None if weights is None else weights[order]
        points = x.new_zeros(BLOCK * triton.cdiv(count, BLOCK), x.shape[1])
        points[:count] = x if centre is None else x - centre
        planes = torch.zeros(7, len(points), dtype=torch.float32, device=x.device)
        if count < len(points):
            planes[0::4, count:] = LOWEST
            planes[1::4, count:] = HIGHEST
        planes[3] = torch.linalg.vector_norm(points, dim=1, dtype=torch.float32).square_()
        log_constant = -math.log(count)
        if weights is not None:
            planes[4, :count], log_constant = (weights.double() / weights.double().sum()).log(), 0.0
        if ids is None:
            none = x.new_zeros(0, dtype=torch.int64)
            return cls(points, planes, none, none, none, None, log_constant, count)
        copies = torch.searchsorted(ids, ids, right=True) - torch.searchsorted(ids, ids)
        share = torch.zeros(len(points), dtype=torch.float64, device=x.device)
        share[:count] = copies.double().reciprocal().masked_fill(ids < 0, 0.0)
        all_ids = torch.full((len(points),), filling, dtype=torch.int64, device=x.device)
        all_ids[:count] = ids
        shift = torch.zeros_like(planes[0]) if centre is None else points @ centre
        return cls(points, planes, all_ids, shift, share, order, log_constant, count)

    def groups(self, other: _Side) -> Iterator[slice]:
        """Yield slices of rows whose sums of blocks against the other sample are merged at once."""
        sums = 4 * len(other.points) // _options(self)["SIZE"]  # of a row; as many entries hold those of the columns
        rows = BLOCK * max(1, GROUP_ENTRIES // (BLOCK * sums))
        for start in range(0, len(self.points), rows):
            yield slice(start, min(start + rows, len(self.points)))

    def chunks(self, other: _Side, group: slice) -> Iterator[slice]:
        """Yield slices of a group's rows whose products with the other sample form one chunk, a multiple of BLOCK."""
        rows = BLOCK * max(1, CHUNK_ENTRIES // (BLOCK * len(other.points)))
        for start in range(group.start, group.stop, rows):
            yield slice(start, min(start + rows, group.stop))

    def restore(self, rows: Tensor) -> Tensor:
        """Return rows without padding, in the caller's order."""
        rows = rows[: self.count]
        return rows if self.order is None else torch.empty_like(rows).index_copy_(0, self.order, rows)


@dataclass(frozen=True)
class _Pair:
    x: _Side
    y: _Side
    centre: Tensor | None
    scale: Tensor
    nce: bool

    @classmethod
    def of(cls, x: Tensor, y: Tensor, scale: Tensor, rows: RowInfo, nce: bool) -> _Pair:
        centre = torch.lerp(x.mean(dim=0), y.mean(dim=0), 0.5) if x.dtype == torch.float32 else None
        ids_x, ids_y = (rows.ids_x, rows.ids_y) if nce else (None, None)
        side_x = _Side.of(x, centre, ids_x, rows.weights_x)
        side_y = _Side.of(y, centre, ids_y, rows.weights_y, filling=2**62 + 1)
        if nce:
            for side in (side_x, side_y):
                side.planes[0] = (scale * side.shift + side.share.log()).clamp_(min=LOWEST)
        return cls(side_x, side_y, centre, scale, nce)


@dataclass(frozen=True)
class _Sums:
    """Result of the first pass: maxima over all and over positives, then sums over all and over positives, of each row
    and column; the kernel sum is kernel_total * exp(kernel_top)."""

    rows: tuple[Tensor, ...]
    columns: tuple[Tensor, ...]
    kernel_top: Tensor
    kernel_total: Tensor

    def info_nce(self, pair: _Pair) -> Tensor:
        if not self.rows:
            return self.kernel_total.new_zeros(())
        return (_mean_loss(pair.x, self.rows) + _mean_loss(pair.y, self.columns)) / 2


def _first_pass(pair: _Pair, kernel: Gaussian | None) -> _Sums:
    rows, columns, kernels = zip(*(_group_sums(pair, kernel, group) for group in pair.x.groups(pair.y)), strict=True)
    kernel_top, kernel_total = merged(*map(list, zip(*kernels, strict=True)))
    if not pair.nce:
        return _Sums((), (), kernel_top.double(), kernel_total)
    tops, positive_tops, totals, positive_totals = map(list, zip(*columns, strict=True))
    (top, total), (positive_top, positive_total) = merged(tops, totals), merged(positive_tops, positive_totals)
    all_rows = tuple(torch.cat(parts) for parts in zip(*rows, strict=True))
    return _Sums(all_rows, (top, positive_top, total, positive_total), kernel_top.double(), kernel_total)


def _group_sums(
    pair: _Pair, kernel: Gaussian | None, group: slice
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, Tensor]]:
    """Return the sums of a group's rows and of all columns over them, as in _Sums, and top and total of the kernel."""
    x, y = pair.x, pair.y
    n, m, own = len(x.points), len(y.points), group.stop - group.start
    options = _options(x)
    size = options["SIZE"]
    row_out = x.planes.new_empty(4 if pair.nce else 0, m // size, own)
    column_out = x.planes.new_empty(4 if pair.nce else 0, own // size, m)
    kernel_out = x.planes.new_empty(2, own // size * (m // size)) if kernel else x.planes.new_zeros(2, 1)
    flags = {"NCE": pair.nce, "KERNEL": kernel is not None, **options}
    for i in x.chunks(y, group):
        s = _library_products(x, y, i, 0)
        reads = s, x.points, y.points, x.planes, y.planes, x.ids, y.ids, pair.scale
        place = i.start, group.start, own
        with torch.cuda.device_of(s):  # type: ignore[no-untyped-call]
            sum_kernel[(m // size, (i.stop - i.start) // size)](
                *reads, row_out, column_out, kernel_out, *place, n, m, _slope(kernel), **flags
            )
    rows, columns = (
        tuple(part for both in combined(out[0::2], out[1::2], 1) for part in both) if pair.nce else ()
        for out in (row_out, column_out)
    )
    return rows, columns, combined(kernel_out[0], kernel_out[1], 0)


def _second_pass(
    pair: _Pair, sums: _Sums, kernel: Gaussian | None, upstream: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients in x, y and the scale."""
    x, y = pair.x, pair.y
    if pair.nce:
        factor = upstream[0] * pair.scale / 2
        _put_softmax(x, sums.rows, factor)
        _put_softmax(y, sums.columns, factor)
    kernel_factor = 0 if kernel is None else -1 / kernel.sigma**2
    numbers = pair.scale, sums.kernel_top.float(), (upstream[1] * kernel_factor / sums.kernel_total).float()
    grads = [torch.zeros_like(side.points, dtype=torch.float32) for side in (x, y)]
    found = []
    for group in x.groups(y):
        parts = _WeightSums(x, y, pair.nce, group)
        for i in x.chunks(y, group):
            w = _weights((x, y), i, None, numbers, parts, kernel)
            grads[0][i] = matmul(w, y.points)
            add_product(grads[1], w.T, x.points[i])
        found.append(parts.summed())
    masses = torch.cat([rows for rows, _, _ in found], dim=1), reduce(torch.add, [columns for _, columns, _ in found])
    grad_scale = reduce(torch.add, [dots for _, _, dots in found])
    for side, grad, mass in zip((x, y), grads, masses, strict=True):
        if pair.nce and pair.centre is not None:
            grad_scale += (mass[0].double() * side.shift).sum()
            grad.addcmul_(mass[0][:, None], pair.centre)
        grad.addcmul_(side.points.float(), mass[1][:, None])
    return x.restore(grads[0]), y.restore(grads[1]), grad_scale / pair.scale


class _WeightSums:
    """Block sums of a group of rows, written by the weight kernel: (2, blocks, rows) and (2, blocks, columns) sums of w
    of InfoNCE and of the kernel, (blocks,) sums of w s."""

    def __init__(self, x: _Side, y: _Side, nce: bool, group: slice) -> None:
        size = _options(x)["SIZE"]
        n, m = group.stop - group.start, len(y.points)
        self.rows, self.columns = x.planes.new_zeros(2, m // size, n), x.planes.new_zeros(2, n // size, m)
        self.dots = x.planes.new_zeros(n // size * (m // size) if nce else 1)
        self.nce, self.group = nce, group

    def summed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return (2, rows), (2, columns) and a scalar in float64."""
        return self.rows.sum(dim=1), self.columns.sum(dim=1), self.dots.sum(dtype=torch.float64)


def _weights(
    sides: tuple[_Side, _Side],
    i: slice,
    within: int | None,
    numbers: tuple[Tensor, Tensor, Tensor],
    sums: _WeightSums,
    kernel: Gaussian | None,
) -> Tensor:
    """Return w of a chunk of rows against all columns, or, within one sample, against the columns from `within` on.

    numbers: scale, maximum and factor of the kernel. Writes the sums of the chunk to `sums`.
    """
    x, y = sides
    n, m, first_column = len(x.points), len(y.points), within or 0
    s, options = _library_products(x, y, i, first_column), _options(x)
    dtype = torch.bfloat16 if x.points.dtype == torch.bfloat16 else torch.float32
    w = torch.empty(i.stop - i.start, m - first_column, dtype=dtype, device=x.points.device)
    reads = s, x.points, y.points, x.planes, y.planes, x.ids, y.ids
    group = sums.group
    place = i.start, group.start, group.stop - group.start, first_column, 0 if within is None else i.stop
    flags = {"NCE": sums.nce, "KERNEL": kernel is not None, "WITHIN": within is not None, **options}
    grid = (m - first_column) // options["SIZE"], (i.stop - i.start) // options["SIZE"]
    with torch.cuda.device_of(w):  # type: ignore[no-untyped-call]
        weight_kernel[grid](
            *reads, *numbers, w, sums.rows, sums.columns, sums.dots, *place, n, m, _slope(kernel), **flags
        )
    return w


def _options(side: _Side) -> dict[str, Any]:
    """Return the launch options, the same for both kernels, so that their products are equal."""
    own = side.points.dtype == torch.float32
    options = {"DIM": side.points.shape[1], "OWN": own, **(OWN if own else LOADED)}
    return options | {"SIZE": min(options["SIZE"], BLOCK)}


def _library_products(x: _Side, y: _Side, i: slice, first_column: int) -> Tensor:
    """Return the float32 products of a chunk of half-precision features; a placeholder for float32 features."""
    if x.points.dtype == torch.float32:
        return x.planes
    return matmul(x.points[i], y.points[first_column:].T)


def _slope(kernel: Gaussian | None) -> float:
    return 0.0 if kernel is None else -0.5 / kernel.sigma**2


def _put_softmax(side: _Side, sums: tuple[Tensor, ...], factor: Tensor) -> None:
    """Set maxima and factors of the rows for the second pass: factor * share / total, 0 for rows outside the mean."""
    top, positive_top, total, positive_total = sums
    scaled = factor * _shares(side, positive_total)
    in_a_mean = scaled != 0
    side.planes[1], side.planes[5] = top, positive_top
    side.planes[2] = torch.where(in_a_mean, scaled / total, 0)
    side.planes[6] = torch.where(in_a_mean, scaled / positive_total, 0)


def _shares(side: _Side, positive_total: Tensor) -> Tensor:
    """Return the weight of each row in the mean, 0 for rows without a positive."""
    w = torch.where(positive_total == 0, 0, side.share)
    return w / w.sum()


def _mean_loss(side: _Side, sums: tuple[Tensor, ...]) -> Tensor:
    top, positive_top, total, positive_total = sums
    share = _shares(side, positive_total)
    loss = (top.double() - positive_top) + (total / positive_total).log()
    return torch.where(share == 0, 0, share * loss).sum()
