"""InfoNCE, alone or together with the log kernel mean of the same points, in O(N d) memory.

Each tile of x y^T is computed once a pass and serves the softmax over its rows, the softmax over its columns
and the kernel. Two passes: the normalisers (2 N M d flops, all that a value needs) and the gradient (6 N M
d); the second runs in backward, where the weight of each output is known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .kernels import Kernel
from .pairs import Modality, Pair, Rows
from .tiles import Buffers, must_rise, no_autocast, refuse_second_derivative, totals_dtype

# Stands for "nothing seen yet" where -inf would make NaN of a difference.
_LOWEST = -1e30


def info_nce(x: Tensor, y: Tensor, scale: Tensor, ids_x: Tensor, ids_y: Tensor) -> Tensor:
    """As reference.info_nce, same arguments; the value is float64 whatever the dtype of x."""
    rows = Rows(ids_x, ids_y)
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
            norms = _normalisers(pair, kernel)
        ctx.save_for_backward(x, y, scale)
        ctx.rows, ctx.kernel, ctx.norms = rows, kernel, norms
        return norms.info_nce(), norms.log_kernel_mean(pair)

    @staticmethod
    def backward(ctx: Any, grad_nce: Tensor, grad_kernel: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x, y, scale = ctx.saved_tensors
        with no_autocast(x):
            pair = Pair.of(x, y, ctx.rows, float(scale))
            sweep = _Gradient(pair, ctx.norms, ctx.kernel, (float(grad_nce), float(grad_kernel)))
            grad_x, grad_y, grad_scale = sweep.run(scale_too=ctx.needs_input_grad[2])
        return grad_x, grad_y, grad_scale.to(scale.dtype), None, None


class _LogSums:
    """Running log sum exp of N rows (or columns), met a tile at a time: the sum is total * exp(top)."""

    def __init__(self, side: Modality) -> None:
        self.top = torch.full_like(side.log_w, _LOWEST, dtype=totals_dtype(side.log_w))
        self.total = torch.zeros_like(self.top)

    def add(self, e: Tensor, dim: int, where: slice) -> None:
        """Takes in the exponents of a tile, summed over dim; overwrites them."""
        top = e.amax(dim=dim).clamp_(min=_LOWEST)
        total = e.sub_(top.unsqueeze(dim)).exp_().sum(dim=dim)
        raised = torch.maximum(self.top[where], top.to(self.top.dtype))
        self.total[where] *= (self.top[where] - raised).exp()
        self.total[where] += total * (top - raised).exp()
        self.top[where] = raised

    def log(self) -> Tensor:
        return self.top + self.total.log()


@dataclass(frozen=True)
class _Softmax:
    """One direction: sums of N rows over the whole other side and over their positives.

    share: (N,), weight of the row in the mean, 0 where it has no positive.
    """

    every: _LogSums
    positive: _LogSums
    share: Tensor

    @classmethod
    def of(cls, side: Modality, every: _LogSums, positive: _LogSums) -> _Softmax:
        w = side.log_w.to(every.top.dtype).exp().masked_fill(positive.total == 0, 0)
        return cls(every, positive, w / w.sum())

    def mean(self) -> Tensor:
        loss = (self.every.log() - self.positive.log()).masked_fill(self.share == 0, 0)
        return (self.share * loss).sum()


@dataclass(frozen=True)
class _Norms:
    """What the first pass leaves behind. The sum of the kernel is kernel_total * exp(kernel_top)."""

    rows: _Softmax
    columns: _Softmax
    kernel_top: float
    kernel_total: Tensor

    def info_nce(self) -> Tensor:
        return (self.rows.mean() + self.columns.mean()) / 2

    def log_kernel_mean(self, pair: Pair) -> Tensor:
        constant = pair.x.sample.log_constant + pair.y.sample.log_constant
        return self.kernel_total.log() + (self.kernel_top + constant)


def _normalisers(pair: Pair, kernel: Kernel | None) -> _Norms:
    x, y, scale = pair.x, pair.y, pair.scale
    rows, rows_positive, columns, columns_positive = _LogSums(x), _LogSums(x), _LogSums(y), _LogSums(y)
    top, total = _LOWEST, torch.zeros((), dtype=rows.top.dtype, device=rows.top.device)
    buffers = Buffers.between(x.sample.points, y.sample.points, 2)
    for i, j, may_be_positive in pair.tiles():
        s = pair.product(i, j, buffers)
        work = buffers.lend(1, *s.shape)
        over_columns = scale * y.shift[j] + y.log_w[j]
        over_rows = (scale * x.shift[i] + x.log_w[i])[:, None]
        if may_be_positive:
            negative = pair.negatives(i, j)
            e = torch.add(over_columns, s, alpha=scale, out=work).masked_fill_(negative, -math.inf)
            rows_positive.add(e, 1, i)
            e = torch.add(over_rows, s, alpha=scale, out=work).masked_fill_(negative, -math.inf)
            columns_positive.add(e, 0, j)
        rows.add(torch.add(over_columns, s, alpha=scale, out=work), 1, i)
        columns.add(torch.add(over_rows, s, alpha=scale, out=work), 0, j)
        if kernel is not None:
            log_k, _ = pair.log_kernel(s, i, j, kernel, work)
            raised = must_rise(top, log_k, x.sample, y.sample)
            if raised is not None:
                total *= math.exp(top - raised)
                top = raised
            total += log_k.sub_(top).exp_().sum(dim=1).sum(dtype=total.dtype)
    softmaxes = _Softmax.of(x, rows, rows_positive), _Softmax.of(y, columns, columns_positive)
    return _Norms(*softmaxes, top, total)


class _Gradient:
    """The second pass: coefficients w_ij on y_j for x_i and on x_i for y_j, times the upstream gradients.

    InfoNCE: w_ij = scale/2 * [share_i (p_ij - q_ij) + share'_j (p'_ij - q'_ij)]; p: softmax over all, q: over
    the positives, ': over columns. Kernel: with r_ij = slope_ij * (part of the pair in the sum),
    d/dx_i = 2 (x_i sum_j r_ij - sum_j r_ij y_j).
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
        for i, j, may_be_positive in self.pair.tiles():
            s = self.pair.product(i, j, buffers)
            w, work = buffers.lend(1, *s.shape), buffers.lend(2, *s.shape)
            self._softmaxes(s, i, j, w, work)
            if may_be_positive:
                self._positives(s, i, j, w, work)
            if scale_too:
                self.grad_scale += torch.dot(w.flatten(), s.flatten())
            self.mass_x[i] += w.sum(dim=1)
            self.mass_y[j] += w.sum(dim=0)
            if self.kernel is not None:
                self._kernel(self.kernel, s, i, j, w, work)
            self.grad_x[i].addmm_(w, y.sample.points[j])
            self.grad_y[j].addmm_(w.T, x.sample.points[i])
        if scale_too:
            for mass, side in ((self.mass_x, x), (self.mass_y, y)):
                self.grad_scale += (mass.to(self.grad_scale.dtype) * side.shift).sum()
        return (
            self._finish(x, self.grad_x, self.mass_x, self.kernel_x),
            self._finish(y, self.grad_y, self.mass_y, self.kernel_y),
            self.grad_scale / self.pair.scale,
        )

    def _softmaxes(self, s: Tensor, i: slice, j: slice, w: Tensor, work: Tensor) -> None:
        """w = scale/2 * (share_i p_ij + share'_j p'_ij)."""
        rows, columns = self.norms.rows, self.norms.columns
        self._exp(s, rows.every, i, (self.pair.y, j), 1, w)
        w.mul_(self._factor(rows, rows.every, i, s)[:, None])
        self._exp(s, columns.every, j, (self.pair.x, i), 0, work)
        w.addcmul_(work, self._factor(columns, columns.every, j, s))

    def _positives(self, s: Tensor, i: slice, j: slice, w: Tensor, work: Tensor) -> None:
        """w -= scale/2 * (share_i q_ij + share'_j q'_ij)."""
        rows, columns = self.norms.rows, self.norms.columns
        negative = self.pair.negatives(i, j)
        self._exp(s, rows.positive, i, (self.pair.y, j), 1, work).masked_fill_(negative, 0)
        w.addcmul_(work, self._factor(rows, rows.positive, i, s)[:, None], value=-1)
        self._exp(s, columns.positive, j, (self.pair.x, i), 0, work).masked_fill_(negative, 0)
        w.addcmul_(work, self._factor(columns, columns.positive, j, s), value=-1)

    def _exp(
        self, s: Tensor, sums: _LogSums, own: slice, over: tuple[Modality, slice], dim: int, out: Tensor
    ) -> Tensor:
        """exp(logit + log w - top), from the very exponents of the first pass, so that shares sum to 1."""
        side, where = over
        other = (self.pair.scale * side.shift[where] + side.log_w[where]).unsqueeze(1 - dim)
        top = sums.top[own].to(s.dtype).unsqueeze(dim)
        return torch.add(other, s, alpha=self.pair.scale, out=out).sub_(top).exp_()

    def _factor(self, softmax: _Softmax, sums: _LogSums, where: slice, s: Tensor) -> Tensor:
        """upstream * scale/2 * share / total, 0 for rows that enter no mean."""
        share = softmax.share[where]
        return (self.nce_factor * share / sums.total[where]).masked_fill(share == 0, 0).to(s.dtype)

    def _kernel(self, kernel: Kernel, s: Tensor, i: slice, j: slice, w: Tensor, work: Tensor) -> None:
        """w -= 2 r, and the sums of r."""
        log_k, slope = self.pair.log_kernel(s, i, j, kernel, work)
        r = log_k.sub_(self.norms.kernel_top).exp_()
        factor = self.kernel_factor
        if isinstance(slope, Tensor):
            r.mul_(slope)
        else:
            factor *= slope
        w.add_(r, alpha=-factor)
        self.kernel_x[i].add_(r.sum(dim=1), alpha=factor)
        self.kernel_y[j].add_(r.sum(dim=0), alpha=factor)

    def _finish(self, side: Modality, grad: Tensor, mass: Tensor, kernel_mass: Tensor) -> Tensor:
        """Adds the terms along the centre and along the row itself."""
        grad.addcmul_(mass[:, None], self.pair.centre).addcmul_(side.sample.points, kernel_mass[:, None])
        return side.restore(grad)
