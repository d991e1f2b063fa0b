"""Input of the tiled contrastive ops: two modalities, centred, sorted by id and divided into tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .kernels import Kernel
from .reference import id_weights
from .tiles import PreparedSample, add_log_weights, blocks, compute_dtype


@dataclass(frozen=True)
class RowInfo:
    """Ids and weights of the rows of both modalities.

    ids_x, ids_y: (N,), (M,) int64, equal for the rows of a pair, -1: unpaired. weights_x, weights_y:
    (N,), (M,) positive, used by the kernel mean only; None: all equal. one_to_one: True if it is known that row i of
    both forms a pair, for all i, and that there are no other pairs.
    """

    ids_x: Tensor
    ids_y: Tensor
    weights_x: Tensor | None = None
    weights_y: Tensor | None = None
    one_to_one: bool = False


def one_to_one(ids_x: Tensor, ids_y: Tensor) -> bool:
    """Return whether row i of both modalities forms a pair, for all i, and there are no other pairs."""
    if not (ids_x is ids_y or torch.equal(ids_x, ids_y)):
        return False
    names = ids_x.tolist()
    return min(names, default=-1) >= 0 and len(set(names)) == len(names)


@dataclass(frozen=True)
class SortedSide:
    """One modality, its rows sorted by id so that few tiles contain positives.

    sample: centred points, norms and kernel weights. shift: (N,), the amount that centring subtracts from every logit
    of the row, divided by the scale. log_w: (N,), log 1/m, -inf for unpaired rows. ids: (N,), ascending; unpaired
    rows share the id -1 and are excluded by their weight of 0.
    order: the permutation that sorted the rows, None if they were sorted already.
    """

    sample: PreparedSample
    shift: Tensor
    log_w: Tensor
    ids: Tensor
    order: Tensor | None

    @classmethod
    def of(cls, x: Tensor, centre: Tensor, ids: Tensor, weights: Tensor | None, mixed: bool) -> SortedSide:
        order = None
        if len(ids) > 1 and bool((ids[1:] < ids[:-1]).any()):
            order = torch.argsort(ids, stable=True)
            x, ids = x[order], ids[order]
            weights = None if weights is None else weights[order]
        points = x - centre
        log_w = id_weights(ids).log().to(compute_dtype(x))
        return cls(PreparedSample.of(points, weights, mixed), (points @ centre).to(log_w.dtype), log_w, ids, order)

    def restore(self, rows: Tensor) -> Tensor:
        """Return rows in the caller's order."""
        if self.order is None:
            return rows
        result = torch.empty_like(rows)
        result[self.order] = rows
        return result


@dataclass(frozen=True)
class Pair:
    """Both modalities and the scale. With x = x' + c, y = y' + c, the logit is scale * (x'.y' + x'.c + c.y' + c.c)."""

    x: SortedSide
    y: SortedSide
    centre: Tensor
    scale: float

    @classmethod
    def of(cls, x: Tensor, y: Tensor, rows: RowInfo, scale: float, centred: bool = True, mixed: bool = False) -> Pair:
        """mixed: compute the products of the gradient in bfloat16."""
        centre = torch.lerp(x.mean(dim=0), y.mean(dim=0), 0.5) if centred else torch.zeros_like(x[0])
        side_x = SortedSide.of(x, centre, rows.ids_x, rows.weights_x, mixed)
        side_y = SortedSide.of(y, centre, rows.ids_y, rows.weights_y, mixed)
        return cls(side_x, side_y, centre, scale)

    def tiles(self) -> Iterator[tuple[slice, slice, bool]]:
        """Yield (rows, columns, whether the tile may contain positives)."""
        bounds_x = [(i, *_ends(self.x.ids[i])) for i in blocks(self.x.ids)]
        bounds_y = [(j, *_ends(self.y.ids[j])) for j in blocks(self.y.ids)]
        for i, low_x, high_x in bounds_x:
            for j, low_y, high_y in bounds_y:
                yield i, j, low_x <= high_y and low_y <= high_x

    def product(self, i: slice, j: slice, out: Tensor) -> Tensor:
        """Write x_i . y_j of the centred points to out."""
        return torch.mm(self.x.sample.points[i], self.y.sample.points[j].T, out=out)

    def log_kernel(self, s: Tensor, i: slice, j: slice, kernel: Kernel, out: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return the log of the weighted kernel and its slope, computed from the products of the tile."""
        t = torch.add(self.y.sample.square_norms[j], s, alpha=-2, out=out)
        t.add_(self.x.sample.square_norms[i][:, None]).clamp_(min=0)
        log_k, slope = kernel.log_value_and_slope(t)
        return add_log_weights(log_k, self.x.sample, self.y.sample, i, j), slope

    def negatives(self, i: slice, j: slice) -> Tensor:
        return self.x.ids[i][:, None] != self.y.ids[j]


def _ends(ids: Tensor) -> tuple[int, int]:
    return int(ids[0]), int(ids[-1])
