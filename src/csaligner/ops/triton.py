"""GPU implementation: log kernel means and InfoNCE with two Triton kernels and library matrix products.

Called through the operators of triton_operators.py. Both kernels process blocks of x y^T: `sum_kernel` reduces them to
the sums of the first pass, `weight_kernel` converts them to the gradient coefficients w, which are multiplied with the
points by the matrix library. 14 N^2 d flops; O(N) memory plus one chunk of products and the sums of the blocks of one
group of rows. Half-precision products are computed by the library, with float32 output; float32 products are computed
inside the kernels. Block sums are added in a fixed order without atomics, so results are bitwise reproducible; there is
no synchronisation with the host, and shapes do not depend on values. TRITON_INTERPRET=1 runs the kernels on a CPU.

Limits: the Gaussian kernel; float32, bfloat16 or float16 features. Half-precision features are not centred, and their
coefficients are rounded to the dtype of the features; float16 coefficients are scaled to its range. float32 features
are centred; their products use three TF32 terms (float32 accuracy) and, for the gradients, float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from .block_sums import add_product, combined, matmul, merged
from .tiles import no_autocast
from .triton_kernels import sum_kernel, weight_kernel

BLOCK = 128  # samples are padded to a multiple of it, so that kernels need no masks
CHUNK_ENTRIES = 2**26  # entries of a chunk: 256 MB of float32 products, plus half of that for the coefficients
GROUP_ENTRIES = 2**28  # entries of the sums of blocks that are merged at once, 1 GB: all of up to 65,536 rows
LOWEST, HIGHEST = -1e30, 1e30  # replace infinities, whose differences would be NaN
LARGEST_FLOAT16 = 2.0**14  # bound of float16 coefficients after scaling; the dtype ends at 65,504

# Kernel launch options: for products computed by the library, and for products computed in the kernel, by the first
# number of the compute capability. Fixed, not autotuned: the order of the sums, and so the bits of a result, depend on
# them. No registers are spilled, see tests/ops/test_ahead_of_time.py. Eight warps for float32 from sm_90 on: at most
# 128 registers of a thread are used, so that 16 warps fit on a multiprocessor; 8 with four warps, and on sm_80 with
# either number.
LOADED = {"SIZE": 64, "num_warps": 4, "num_stages": 1}
OWN = {"SIZE": 64, "num_warps": 8, "num_stages": 3}
OWN_BY_CAPABILITY = {8: OWN | {"num_warps": 4}}

State = tuple[Tensor, ...]  # of the first pass, for the second: points, planes, ids and order of x and of y, centre,
# then maximum and total of the kernel sum


def within(x: Tensor, weights: Tensor | None, sigma: float) -> tuple[Tensor, Tensor]:
    """Return the log kernel mean of x against itself, float64, and its gradient in x, (N, d).

    Diagonal included; no maximum is needed since log k + log a + log b <= 0.
    """
    with no_autocast(x):
        side = _Side.of(x, x.mean(dim=0) if x.dtype == torch.float32 else None, None, weights)
        grad = torch.zeros_like(side.points, dtype=torch.float32)
        mass = grad.new_zeros(len(grad), dtype=torch.float64)
        zero, unit = grad.new_zeros(()), grad.new_ones(())
        if x.dtype == torch.float16:
            unit = _unit((2 * side.planes[4].amax()).exp())
        for group in side.groups(side):
            sums = _WeightSums(side, side, False, group)
            for i in side.chunks(side, group):
                w = _weights((side, side), i, i.start, (zero, zero, zero, unit), sums, sigma)  # -k, in this unit
                add_product(grad[i], w, side.points[i.start :])
                if i.stop < len(side.points):
                    add_product(grad[i.stop :], w[:, i.stop - i.start :].T, side.points[i])
            mass[group] += sums.rows[1].sum(dim=0, dtype=torch.float64)
            mass += sums.columns[1].sum(dim=0, dtype=torch.float64)
    total = mass.sum()
    grad.addcmul_(side.points.float(), mass.float()[:, None]).mul_((-2 / sigma**2 / total).float())
    return (total / unit).log() + 2 * side.log_constant, grad[: len(x)].to(x.dtype, copy=True)


Ids = tuple[Tensor, Tensor]  # of x and of y
Weights = tuple[Tensor | None, Tensor | None]


def between(
    x: Tensor, y: Tensor, scale: Tensor, ids: Ids | None, weights: Weights, sigma: float | None
) -> tuple[Tensor, ...]:
    """Return InfoNCE (0 without ids), the log kernel mean of x against y (0 without sigma), both float64, and State."""
    with no_autocast(x):
        pair = _Pair.of(x, y, scale.to(x.device, torch.float32), ids, weights)
        rows, columns, kernel = _first_pass(pair, sigma)
        nce = log_mean = kernel.new_zeros(())
        if pair.nce:
            nce = (_put_softmax(pair.x, rows) + _put_softmax(pair.y, columns)) / 2
        if sigma is not None:
            log_mean = kernel[1].log() + (kernel[0] + (pair.x.log_constant + pair.y.log_constant))
    sides = (tensor for side in (pair.x, pair.y) for tensor in (side.points, side.planes, side.ids, side.order))
    centre = x.new_zeros(0) if pair.centre is None else pair.centre
    return nce.clone(), log_mean.clone(), *sides, centre, kernel


def between_backward(
    upstream: tuple[Tensor, Tensor], scale: Tensor, state: State, counts: tuple[int, int], sigma: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients in x and y, in their dtype, and in the scale, float64. counts: numbers of rows."""
    pair = _Pair.restored(state, scale, counts)
    x, y, (top, total) = pair.x, pair.y, state[9]
    with no_autocast(x.points):
        factor, kernel_factor = (upstream[0] * pair.scale / 2).float(), torch.zeros_like(pair.scale)
        if sigma is not None:
            kernel_factor = (upstream[1] * (-1 / sigma**2) / total).float()
        if x.points.dtype == torch.float16:
            largest = x.planes[2::4].amax() + y.planes[2::4].amax()
            unit = _unit(factor.abs() * largest + kernel_factor.abs())
            factor, kernel_factor = factor * unit, kernel_factor * unit
        grads, grad_scale = _second_pass(pair, (factor, top.float(), kernel_factor), sigma)
        if x.points.dtype == torch.float16:
            grads, grad_scale = [grad.div_(unit) for grad in grads], grad_scale / unit
        return x.restore(grads[0]), y.restore(grads[1]), grad_scale / pair.scale


def _unit(bound: Tensor) -> Tensor:
    """Return the factor that scales coefficients up to bound to the range of float16."""
    return LARGEST_FLOAT16 / bound.clamp(min=1e-30)


@dataclass(frozen=True)
class _Side:
    """One sample, padded to a multiple of BLOCK with rows of weight 0, and the per-row inputs of the kernels.

    points: (N, d), contiguous, centred if float32, sorted by id. planes: (8, N) float32; 0: summand of the row in the
    exponents of the other sample; 1, 2: maximum and factor of its softmax; 3: square norm; 4: log of its kernel weight;
    5, 6: maximum and factor over its positives; 7: the amount that centring subtracts from each logit of the row,
    divided by the scale. ids: (N,) ascending, empty without InfoNCE. order: the permutation that sorted the rows, empty
    without InfoNCE. count: number of rows without padding. log_constant: the log weight common to all rows. share:
    (N,) 1/m, for the first pass.
    """

    points: Tensor
    planes: Tensor
    ids: Tensor
    order: Tensor
    count: int
    log_constant: float = 0.0
    share: Tensor | None = None

    @classmethod
    def of(
        cls, x: Tensor, centre: Tensor | None, ids: Tensor | None, weights: Tensor | None, filling: int = 2**62
    ) -> _Side:
        """centre: None for half-precision features. filling: the id of padding rows, different for x and y."""
        count, order = len(x), x.new_zeros(0, dtype=torch.int64)
        if ids is not None:
            order = torch.argsort(ids, stable=True)
            x, ids, weights = x[order], ids[order], None if weights is None else weights[order]
        points = x.new_zeros(padded(count), x.shape[1])
        points[:count] = x if centre is None else x - centre
        planes = torch.zeros(8, len(points), dtype=torch.float32, device=x.device)
        if count < len(points):
            planes[0::4, count:] = LOWEST
            planes[1::4, count:] = HIGHEST
        planes[3] = torch.linalg.vector_norm(points, dim=1, dtype=torch.float32).square_()
        log_constant = -math.log(count)
        if weights is not None:
            planes[4, :count], log_constant = (weights.double() / weights.double().sum()).log(), 0.0
        if ids is None:
            return cls(points, planes, x.new_zeros(0, dtype=torch.int64), order, count, log_constant)
        copies = torch.searchsorted(ids, ids, right=True) - torch.searchsorted(ids, ids)
        share = torch.zeros(len(points), dtype=torch.float64, device=x.device)
        share[:count] = copies.double().reciprocal().masked_fill(ids < 0, 0.0)
        all_ids = torch.full((len(points),), filling, dtype=torch.int64, device=x.device)
        all_ids[:count] = ids
        if centre is not None:
            planes[7] = points @ centre
        return cls(points, planes, all_ids, order, count, log_constant, share)

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
        """Return a copy of the rows without padding, in the caller's order and in the dtype of the points."""
        rows = rows[: self.count]
        if not len(self.order):
            return rows.to(self.points.dtype, copy=True)
        return torch.empty_like(rows, dtype=self.points.dtype).index_copy_(0, self.order, rows.to(self.points.dtype))


def padded(count: int) -> int:
    """Return the number of rows with padding; a multiple of 16, so that rows of products are aligned."""
    return BLOCK * -(-count // BLOCK)


@dataclass(frozen=True)
class _Pair:
    """Both samples. centre: None for half-precision features. scale: float32, on their device."""

    x: _Side
    y: _Side
    centre: Tensor | None
    scale: Tensor

    @property
    def nce(self) -> bool:
        return len(self.x.ids) > 0

    @classmethod
    def of(cls, x: Tensor, y: Tensor, scale: Tensor, ids: Ids | None, weights: Weights) -> _Pair:
        centre = torch.lerp(x.mean(dim=0), y.mean(dim=0), 0.5) if x.dtype == torch.float32 else None
        ids_x, ids_y = ids or (None, None)
        side_x = _Side.of(x, centre, ids_x, weights[0])
        side_y = _Side.of(y, centre, ids_y, weights[1], filling=2**62 + 1)
        for side in (side_x, side_y):
            if side.share is not None:
                side.planes[0] = (scale * side.planes[7] + side.share.log()).clamp_(min=LOWEST)
        return cls(side_x, side_y, centre, scale)

    @classmethod
    def restored(cls, state: State, scale: Tensor, counts: tuple[int, int]) -> _Pair:
        x, y = (
            _Side(points, planes, ids, order, count)
            for (points, planes, ids, order), count in zip((state[:4], state[4:8]), counts, strict=True)
        )
        centre = state[8] if len(state[8]) else None
        return cls(x, y, centre, scale.to(x.points.device, torch.float32))


Sums = tuple[Tensor, ...]  # of rows or columns: maxima over all and over positives, sums over all and over positives


def _first_pass(pair: _Pair, sigma: float | None) -> tuple[Sums, Sums, Tensor]:
    """Return the sums of rows and of columns, and maximum and total of the kernel sum: (2,) float64."""
    rows, columns, kernels = zip(*(_group_sums(pair, sigma, group) for group in pair.x.groups(pair.y)), strict=True)
    kernel_top, kernel_total = merged(*map(list, zip(*kernels, strict=True)))
    kernel = torch.stack([kernel_top.double(), kernel_total])
    if not pair.nce:
        return (), (), kernel
    tops, positive_tops, totals, positive_totals = map(list, zip(*columns, strict=True))
    (top, total), (positive_top, positive_total) = merged(tops, totals), merged(positive_tops, positive_totals)
    all_rows = tuple(torch.cat(parts) for parts in zip(*rows, strict=True))
    return all_rows, (top, positive_top, total, positive_total), kernel


def _group_sums(pair: _Pair, sigma: float | None, group: slice) -> tuple[Sums, Sums, tuple[Tensor, Tensor]]:
    """Return the sums of a group's rows and of all columns over them, and maximum and total of the kernel."""
    x, y = pair.x, pair.y
    n, m, own = len(x.points), len(y.points), group.stop - group.start
    options = _options(x)
    size = options["SIZE"]
    row_out = x.planes.new_empty(4 if pair.nce else 0, m // size, own)
    column_out = x.planes.new_empty(4 if pair.nce else 0, own // size, m)
    kernel_out = x.planes.new_zeros(2, 1) if sigma is None else x.planes.new_empty(2, own // size * (m // size))
    flags = {"NCE": pair.nce, "KERNEL": sigma is not None, **options}
    for i in x.chunks(y, group):
        s = _library_products(x, y, i, 0)
        reads = s, x.points, y.points, x.planes, y.planes, x.ids, y.ids, pair.scale
        place = i.start, group.start, own
        with torch.cuda.device_of(s):  # type: ignore[no-untyped-call]
            sum_kernel[(m // size, (i.stop - i.start) // size)](
                *reads, row_out, column_out, kernel_out, *place, n, m, _slope(sigma), **flags
            )
    rows, columns = (
        tuple(part for both in combined(out[0::2], out[1::2], 1) for part in both) if pair.nce else ()
        for out in (row_out, column_out)
    )
    return rows, columns, combined(kernel_out[0], kernel_out[1], 0)


def _put_softmax(side: _Side, sums: Sums) -> Tensor:
    """Set maxima and factors of the rows for the second pass: share / total, 0 for rows outside the mean.

    Returns the loss of this direction, float64.
    """
    assert side.share is not None  # _Side.of was given ids
    top, positive_top, total, positive_total = sums
    share = torch.where(positive_total == 0, 0, side.share)
    share /= share.sum()
    in_the_mean = share != 0
    side.planes[1], side.planes[5] = top, positive_top
    side.planes[2] = torch.where(in_the_mean, share / total, 0)
    side.planes[6] = torch.where(in_the_mean, share / positive_total, 0)
    loss = (top.double() - positive_top) + (total / positive_total).log()
    return torch.where(in_the_mean, share * loss, 0).sum()


def _second_pass(
    pair: _Pair, factors: tuple[Tensor, Tensor, Tensor], sigma: float | None
) -> tuple[list[Tensor], Tensor]:
    """Return the gradients in x and y, with padding, float32, and the gradient in the scale times the scale.

    factors: of InfoNCE; maximum and factor of the kernel.
    """
    x, y = pair.x, pair.y
    grads = [torch.zeros_like(side.points, dtype=torch.float32) for side in (x, y)]
    found = []
    for group in x.groups(y):
        parts = _WeightSums(x, y, pair.nce, group)
        for i in x.chunks(y, group):
            w = _weights((x, y), i, None, (pair.scale, *factors), parts, sigma)
            grads[0][i] = matmul(w, y.points)
            add_product(grads[1], w.T, x.points[i])
        found.append(parts.summed())
    masses = torch.cat([rows for rows, _, _ in found], dim=1), reduce(torch.add, [columns for _, columns, _ in found])
    grad_scale = reduce(torch.add, [dots for _, _, dots in found])
    for side, grad, mass in zip((x, y), grads, masses, strict=True):
        if pair.nce and pair.centre is not None:
            grad_scale += (mass[0].double() * side.planes[7]).sum()
            grad.addcmul_(mass[0][:, None], pair.centre)
        grad.addcmul_(side.points.float(), mass[1][:, None])
    return grads, grad_scale


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
    numbers: tuple[Tensor, Tensor, Tensor, Tensor],
    sums: _WeightSums,
    sigma: float | None,
) -> Tensor:
    """Return w of a chunk of rows against all columns, or, within one sample, against the columns from `within` on.

    numbers: scale, factor of InfoNCE, maximum and factor of the kernel. Writes the sums of the chunk to `sums`.
    """
    x, y = sides
    n, m, first_column = len(x.points), len(y.points), within or 0
    s, options = _library_products(x, y, i, first_column), _options(x)
    w = x.points.new_empty(i.stop - i.start, m - first_column)
    reads = s, x.points, y.points, x.planes, y.planes, x.ids, y.ids
    group = sums.group
    place = i.start, group.start, group.stop - group.start, first_column, 0 if within is None else i.stop
    flags = {"NCE": sums.nce, "KERNEL": sigma is not None, "WITHIN": within is not None, **options}
    grid = (m - first_column) // options["SIZE"], (i.stop - i.start) // options["SIZE"]
    with torch.cuda.device_of(w):  # type: ignore[no-untyped-call]
        weight_kernel[grid](
            *reads, *numbers, w, sums.rows, sums.columns, sums.dots, *place, n, m, _slope(sigma), **flags
        )
    return w


def _options(side: _Side) -> dict[str, Any]:
    """Return the launch options, the same for both kernels, so that their products are equal."""
    own = side.points.dtype == torch.float32
    chosen = OWN_BY_CAPABILITY.get(capability(side.points.device), OWN) if own else LOADED
    options = {"DIM": side.points.shape[1], "OWN": own, **chosen}
    return options | {"SIZE": min(options["SIZE"], BLOCK)}


def capability(device: torch.device) -> int:
    """Return the first number of the compute capability of a GPU, 0 of other devices. torch caches it."""
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0


def _library_products(x: _Side, y: _Side, i: slice, first_column: int) -> Tensor:
    """Return the float32 products of a chunk of half-precision features; a placeholder for float32 features."""
    if x.points.dtype == torch.float32:
        return x.planes
    return matmul(x.points[i], y.points[first_column:].T)


def _slope(sigma: float | None) -> float:
    return 0.0 if sigma is None else -0.5 / sigma**2
