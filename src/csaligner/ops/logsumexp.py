"""Log-sum-exp of the InfoNCE logits over rows and columns, accumulated tile by tile, and its gradient.

First pass: call `add` for every tile, then `info_nce`. Second pass: `gradient` returns a function that writes the
coefficients of each tile, computed from the same exponents as in the first pass, so that the softmax of a row sums to 1
for logits of any size. OnlineSoftmaxes keeps a running maximum for each row and column and is exact at any temperature.
SharedSoftmaxes uses one exponential for both directions, if float32 can represent it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .contrastive import Pair, SortedSide
from .tiles import LIMIT, totals_dtype

# Initial maximum; with -inf, differences of maxima would be NaN.
LOWEST = -1e30


@dataclass(frozen=True)
class Tile:
    """One tile: products s of the centred points of rows i and columns j.

    negative: mask of the entries whose ids differ, or None if the tile contains no positives.
    """

    s: Tensor
    i: slice
    j: slice
    negative: Tensor | None


class LogSums:
    """Log-sum-exp accumulators of N rows (or columns); each sum is total * exp(top)."""

    def __init__(self, side: SortedSide, top: float = LOWEST) -> None:
        self.top = torch.full_like(side.log_w, top, dtype=totals_dtype(side.log_w))
        self.total = torch.zeros_like(self.top)

    def add_online(self, e: Tensor, dim: int, where: slice) -> None:
        """Add the exponents of a tile, summed over dim, and update the maximum; overwrites e."""
        top = e.amax(dim=dim).clamp_(min=LOWEST)
        self.merge(top, e.sub_(top.unsqueeze(dim)).exp_().sum(dim=dim), where)

    def merge(self, top: Tensor, total: Tensor, where: slice) -> None:
        """Add total * exp(top) to the sums of the rows `where`."""
        raised = torch.maximum(self.top[where], top.to(self.top.dtype))
        self.total[where] *= (self.top[where] - raised).exp()
        self.total[where] += total * (top - raised).exp()
        self.top[where] = raised

    def log(self) -> Tensor:
        return self.top + self.total.log()


class Softmaxes:
    """Sums in both directions, over all entries and over the positives, and the resulting loss."""

    def __init__(self, pair: Pair, tops: tuple[float, float] = (LOWEST, LOWEST)) -> None:
        self.rows, self.rows_positive = LogSums(pair.x, tops[0]), LogSums(pair.x, tops[0])
        self.columns, self.columns_positive = LogSums(pair.y, tops[1]), LogSums(pair.y, tops[1])

    def info_nce(self, pair: Pair) -> Tensor:
        """Return the loss; call it after all tiles have been added."""
        rows = _mean_loss(pair.x, self.rows, self.rows_positive)
        columns = _mean_loss(pair.y, self.columns, self.columns_positive)
        return (rows + columns) / 2


class OnlineSoftmaxes(Softmaxes):
    """Softmaxes with a running maximum for each row and column."""

    def add(self, pair: Pair, tile: Tile, work: Tensor) -> None:
        directions = (
            (self.rows, self.rows_positive, 1, tile.i, _over(pair.y, tile.j, pair.scale)),
            (self.columns, self.columns_positive, 0, tile.j, _over(pair.x, tile.i, pair.scale)[:, None]),
        )
        for every, positive, dim, where, over in directions:
            if tile.negative is not None:
                e = torch.add(over, tile.s, alpha=pair.scale, out=work)
                positive.add_online(e.masked_fill_(tile.negative, -math.inf), dim, where)
            every.add_online(torch.add(over, tile.s, alpha=pair.scale, out=work), dim, where)

    def gradient(self, pair: Pair, factor: float) -> Callable[[Tile, Tensor, Tensor], None]:
        """Return a function that writes factor * [share_i (p_ij - q_ij) + share'_j (p'_ij - q'_ij)] of a tile to w.

        p: softmax over all, q: over the positives, ': over columns; share: weight of the row in the mean.
        """
        rows = factors(pair.x, self.rows, self.rows_positive, factor)
        columns = factors(pair.y, self.columns, self.columns_positive, factor)
        return self.gradient_by(pair, rows, columns)

    def gradient_by(self, pair: Pair, rows: Factors, columns: Factors) -> Callable[[Tile, Tensor, Tensor], None]:
        """Like gradient, with given factors: used by the ring, where shares refer to the rows of all ranks."""
        dtype = pair.x.log_w.dtype

        def exponential(tile: Tile, sums: LogSums, dim: int, out: Tensor) -> Tensor:
            """Return e^(logit + log w - top), to be summed over dim; dim 1: softmax of rows i over columns j."""
            own, other, where = (tile.i, pair.y, tile.j) if dim else (tile.j, pair.x, tile.i)
            over = _over(other, where, pair.scale).unsqueeze(1 - dim)
            top = sums.top[own].to(dtype).unsqueeze(dim)
            return torch.add(over, tile.s, alpha=pair.scale, out=out).sub_(top).exp_()

        def write(tile: Tile, w: Tensor, work: Tensor) -> None:
            i, j = tile.i, tile.j
            exponential(tile, self.rows, 1, w).mul_(rows.every[i][:, None])
            w.addcmul_(exponential(tile, self.columns, 0, work), columns.every[j])
            if tile.negative is not None:
                e = exponential(tile, self.rows_positive, 1, work).masked_fill_(tile.negative, 0)
                w.addcmul_(e, rows.positive[i][:, None], value=-1)
                e = exponential(tile, self.columns_positive, 0, work).masked_fill_(tile.negative, 0)
                w.addcmul_(e, columns.positive[j], value=-1)

        return write


class SharedSoftmaxes(Softmaxes):
    """Softmaxes with one exponential e_ij = exp(scale * s_ij) for both directions.

    Row sums are e @ b and column sums a @ e. The factors a_i and b_j of rows and columns contain the weights 1/m and
    the part of the logit that centring removed.
    """

    def __init__(self, pair: Pair) -> None:
        over_x, over_y = (pair.scale * side.shift + side.log_w for side in (pair.x, pair.y))
        top_x, top_y = float(over_x.max()), float(over_y.max())
        self._a, self._b = (over_x - top_x).exp(), (over_y - top_y).exp()
        super().__init__(pair, (top_y, top_x))

    @staticmethod
    def supports(pair: Pair) -> bool:
        """Return whether float32 can represent the exponentials of all pairs."""
        shifts = max(float(side.shift.max() - side.shift.min()) for side in (pair.x, pair.y))
        return pair.scale * (_radius(pair.x) * _radius(pair.y) + shifts) <= LIMIT

    def _exponential(self, pair: Pair, s: Tensor, out: Tensor) -> Tensor:
        return torch.mul(s, pair.scale, out=out).exp_()

    def add(self, pair: Pair, tile: Tile, work: Tensor) -> None:
        i, j = tile.i, tile.j
        e = self._exponential(pair, tile.s, work)
        self.rows.total[i] += e @ self._b[j]
        self.columns.total[j] += e.T @ self._a[i]
        if tile.negative is not None:
            e.masked_fill_(tile.negative, 0)
            self.rows_positive.total[i] += e @ self._b[j]
            self.columns_positive.total[j] += e.T @ self._a[i]

    def gradient(self, pair: Pair, factor: float) -> Callable[[Tile, Tensor, Tensor], None]:
        """See OnlineSoftmaxes.gradient."""
        rows = factors(pair.x, self.rows, self.rows_positive, factor)
        columns = factors(pair.y, self.columns, self.columns_positive, factor)
        a, b = self._a[:, None], self._b

        def write(tile: Tile, w: Tensor, work: Tensor) -> None:
            i, j = tile.i, tile.j
            torch.mul(rows.every[i][:, None], b[j], out=w).addcmul_(a[i], columns.every[j])
            if tile.negative is not None:
                torch.mul(rows.positive[i][:, None], b[j], out=work).addcmul_(a[i], columns.positive[j])
                w.sub_(work.masked_fill_(tile.negative, 0))
            w.mul_(self._exponential(pair, tile.s, work))

        return write


def softmaxes(pair: Pair) -> OnlineSoftmaxes | SharedSoftmaxes:
    """Return the fastest accumulator that is exact for the logits of this pair."""
    return SharedSoftmaxes(pair) if SharedSoftmaxes.supports(pair) else OnlineSoftmaxes(pair)


@dataclass(frozen=True)
class Factors:
    """factor * share / total of each row, over all entries and over its positives; 0 for rows outside the mean."""

    every: Tensor
    positive: Tensor


def factors(side: SortedSide, every: LogSums, positive: LogSums, factor: float) -> Factors:
    share = _shares(side, positive)
    parts = (
        (factor * share / sums.total).masked_fill(share == 0, 0).to(side.log_w.dtype) for sums in (every, positive)
    )
    return Factors(*parts)


def _shares(side: SortedSide, positive: LogSums) -> Tensor:
    """Return the weight of each row in the mean, 0 for rows without a positive."""
    w = side.log_w.to(positive.total.dtype).exp().masked_fill(positive.total == 0, 0)
    return w / w.sum()


def _mean_loss(side: SortedSide, every: LogSums, positive: LogSums) -> Tensor:
    share = _shares(side, positive)
    loss = (every.log() - positive.log()).masked_fill(share == 0, 0)
    return (share * loss).sum()


def _over(side: SortedSide, where: slice, scale: float) -> Tensor:
    """Return the summand of each row in the exponents of the other modality's softmax, in addition to scale * s."""
    return scale * side.shift[where] + side.log_w[where]


def _radius(side: SortedSide) -> float:
    """Return the largest norm of the centred points."""
    return math.sqrt(float(side.sample.square_norms.max()))
