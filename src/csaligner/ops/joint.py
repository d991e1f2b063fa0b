"""InfoNCE with D_CS or MMD from whole matrices, for up to about a thousand rows; gradients come along with the values.

The gradient of a weighted sum of terms is known as soon as its sums are. Each matrix is therefore used while it is in
the cache, then overwritten, and nothing of size N M is kept for the backward pass, which hands out the gradients. Of
the symmetric matrix within a sample, only strips from the diagonal to the last column are computed. Formulas:
reference.info_nce, reference.cauchy_schwarz and reference.mmd; range of the exponentials: dense.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import reference
from .contrastive import RowInfo
from .dense import SMALLEST_MASS, Side, Softmax, differentiable
from .kernels import Kernel
from .tiles import DENSE_ENTRIES, compute_dtype, no_autocast, totals_dtype

INFO_NCE = "info_nce"
# A term is f(log mean within x) + f(log mean within y) - 2 f(log mean between); here f and its derivative.
_FUNCTIONS: Mapping[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "cauchy_schwarz": (float, lambda _: 1.0),
    "mmd": (math.exp, math.exp),
}
_REFERENCES = {"cauchy_schwarz": reference.cauchy_schwarz, "mmd": reference.mmd}
# Rows of a strip of a symmetric matrix: narrower strips save more of it, but their products are slower. A matrix of
# fewer than three strips is computed whole.
STRIP = 256
# Matrices of this many entries and more are reused by the next call: fresh memory costs as much as an exponential.
SMALLEST_REUSED = 2**16

Gradients = list[Tensor | None]


def joint(
    x: Tensor, y: Tensor, scale: Tensor, rows: RowInfo, kernel: Kernel, weights: Mapping[str, float]
) -> tuple[Tensor, dict[str, Tensor]] | None:
    """Return sum of weights[name] * term, and the terms by name, differentiable in x, y and scale.

    x: (N, d), y: (M, d). weights: of "info_nce" and of "cauchy_schwarz", "mmd" or both. The gradients of the sum are
    computed at once, those of a single term when they are asked for. Returns None where float32 may not represent an
    exponential, for kernels other than the Gaussian, and if a sample is too large for the matrix within it.
    """
    (n, _), (m, _) = x.shape, y.shape
    if n != m and max(n, m) ** 2 > max(DENSE_ENTRIES, n * m):
        return None
    problem, recorded = _Problem(rows, kernel), torch.is_grad_enabled()
    needed = [recorded and tensor.requires_grad for tensor in (x, y, scale)]
    with torch.no_grad(), no_autocast(x):
        found = problem.solve(x, y, scale, weights, needed)
    if found is None:
        return None
    total, *values = _Joint.apply(x, y, scale, problem, dict(weights), *found)  # type: ignore[no-untyped-call]
    return total, dict(zip(weights, values, strict=True))


class _Joint(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        scale: Tensor,
        problem: _Problem,
        weights: dict[str, float],
        values: list[float],
        gradients: Gradients,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, y, scale)
        ctx.problem, ctx.weights, ctx.gradients = problem, weights, gradients
        total = sum(weight * value for weight, value in zip(weights.values(), values, strict=True))
        dtype, device = compute_dtype(x), x.device
        return tuple(torch.scalar_tensor(value, dtype=dtype, device=device) for value in (total, *values))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *parts: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            ctx.again = lambda *inputs: ctx.problem.reference(*inputs, ctx.weights)
            return *differentiable(ctx, (upstream, *parts), 3), None, None, None, None
        inputs, gradients = ctx.saved_tensors, ctx.gradients
        ctx.gradients = None  # they belong to the caller now; another backward pass computes its own
        factor = 0.0 if upstream is None else float(upstream)
        if gradients is None or any(part is not None for part in parts):
            weights = {
                name: factor * weight + (0.0 if part is None else float(part))
                for (name, weight), part in zip(ctx.weights.items(), parts, strict=True)
            }
            with no_autocast(inputs[0]):
                _, gradients = ctx.problem.solve(*inputs, weights, ctx.needs_input_grad[:3])
        elif factor != 1:
            gradients = [None if gradient is None else gradient.mul_(factor) for gradient in gradients]
        return *gradients, None, None, None, None


@dataclass(frozen=True)
class _Problem:
    rows: RowInfo
    kernel: Kernel

    def reference(self, x: Tensor, y: Tensor, scale: Tensor, weights: Mapping[str, float]) -> tuple[Tensor, ...]:
        """Return the weighted sum and the terms by autograd, for second derivatives."""
        rows = self.rows
        values = [
            reference.info_nce(x, y, scale, rows.ids_x, rows.ids_y)
            if name == INFO_NCE
            else _REFERENCES[name](x, y, self.kernel, rows.weights_x, rows.weights_y)
            for name in weights
        ]
        total = torch.stack([weight * value for weight, value in zip(weights.values(), values, strict=True)]).sum()
        return total, *values

    def solve(
        self, x: Tensor, y: Tensor, scale: Tensor, weights: Mapping[str, float], needed: Sequence[bool]
    ) -> tuple[list[float], Gradients] | None:
        """Return the terms, and the gradients of their weighted sum; None if float32 may not represent them."""
        a = Side.of(x, self.rows.weights_x, self.kernel)
        b = None if a is None else Side.of(y, self.rows.weights_y, self.kernel)
        if a is None or b is None:
            return None
        shape, times = (x.shape[0], y.shape[0]), float(scale)
        memory = _Memory.of(x, max(shape))
        products = torch.mm(x, y.T, out=memory.lend(0, *shape))
        bound = times * (a.largest * b.largest) ** 0.5
        softmax = Softmax.of(products, times, self.rows, bound, out=memory.lend(1, *shape))
        if softmax is None:
            return None
        nce, grad_scale = softmax.info_nce(), None
        if any(needed):
            w = softmax.gradient(weights[INFO_NCE] * times / 2, out=memory.lend(2, *shape))
            if needed[2]:
                slope = torch.mul(w, products, out=softmax.e).sum(dtype=totals_dtype(w)) / times
                grad_scale = slope.to(scale.dtype)
        k = torch.add(a.column, b.exponents, out=softmax.e).add_(products, alpha=a.rate).exp_()
        mass_x, mass_y = k.sum(dim=1), k.sum(dim=0)
        total = sum(mass_x.tolist())
        if total <= SMALLEST_MASS:
            return None
        between = math.log(total) + a.constant + b.constant
        slope = -2 * _derivative(weights, between) * a.rate / total
        if needed[0] or needed[1]:
            w.add_(k, alpha=slope)
        logs: list[float] = []
        gradients: Gradients = []
        for side, rows, mass, need in ((a, shape[0], mass_x, needed[0]), (b, shape[1], mass_y, needed[1])):
            own, sums = _within(side, memory.lend(0, rows, rows))
            total = sum(sums.tolist())
            logs.append(math.log(total) + 2 * side.constant)
            if not need:
                gradients.append(None)
                continue
            gradient = torch.mm(w, y) if side is a else torch.mm(w.T, x)
            factor = 2 * _derivative(weights, logs[-1]) * side.rate / total
            if factor:  # k x_j - k x_i, summed over j: the second part is a diagonal of the first
                own.diagonal().sub_(sums.add_(mass, alpha=slope / factor))
                _add_product(gradient, own, side.points, factor)
            gradients.append(gradient)
        values = [nce if name == INFO_NCE else _value(name, logs[0], logs[1], between) for name in weights]
        return values, [*gradients, grad_scale]


def _value(name: str, within_x: float, within_y: float, between: float) -> float:
    function = _FUNCTIONS[name][0]
    return function(within_x) + function(within_y) - 2 * function(between)


def _derivative(weights: Mapping[str, float], log_mean: float) -> float:
    """Return the derivative of the weighted sum of the kernel terms in the log mean within a sample."""
    return sum(weight * _FUNCTIONS[name][1](log_mean) for name, weight in weights.items() if name != INFO_NCE)


def _strips(rows: int) -> list[slice]:
    size = math.ceil(rows / round(rows / STRIP)) if rows >= 3 * STRIP else rows
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _within(side: Side, out: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the kernel within a sample, computed in the strips only, and its sums over rows, (N,). out: its memory."""
    x, h, strips = side.points, side.exponents, _strips(side.points.shape[0])
    if len(strips) == 1:
        k = torch.add(side.column, h, out=out).addmm_(x, x.T, alpha=side.rate).exp_()
        return k, k.sum(dim=1)
    k = x.new_empty(h.shape[0], h.shape[0]) if out is None else out
    mass = torch.zeros_like(h)
    for i in strips:
        strip = torch.add(side.column[i], h[i.start :], out=k[i, i.start :])
        strip.addmm_(x[i], x[i.start :].T, alpha=side.rate).exp_()
        mass[i].add_(strip.sum(dim=1))
        mass[i.stop :].add_(strip[:, i.stop - i.start :].sum(dim=0))
    return k, mass


def _add_product(gradient: Tensor, k: Tensor, points: Tensor, factor: float) -> None:
    """Add factor * k @ points, with k from _within."""
    strips = _strips(k.shape[0])
    if len(strips) == 1:
        gradient.addmm_(k, points, alpha=factor)
        return
    for i in strips:
        gradient[i].addmm_(k[i, i.start :], points[i.start :], alpha=factor)
        if i.start:
            gradient[i].addmm_(k[: i.start, i].T, points[: i.start], alpha=factor)


class _Kept(threading.local):
    memory: Tensor | None = None


_kept = _Kept()


@dataclass(frozen=True)
class _Memory:
    """Memory for three matrices. That of large ones is kept by the thread: its content is lost at the next call."""

    parts: list[Tensor] | None

    @classmethod
    def of(cls, like: Tensor, rows: int) -> _Memory:
        entries = rows * rows
        if not SMALLEST_REUSED <= entries <= DENSE_ENTRIES or type(like) is not Tensor or like.device.type != "cpu":
            return cls(None)
        wanted = 3 * entries * like.element_size()
        if _kept.memory is None or _kept.memory.nbytes < wanted:
            with torch.inference_mode(False):
                _kept.memory = torch.empty(wanted, dtype=torch.uint8)
        return cls(list(_kept.memory[:wanted].view(like.dtype).view(3, entries)))

    def lend(self, which: int, rows: int, columns: int) -> Tensor | None:
        """Return an uninitialised matrix, None if it is to be allocated."""
        return None if self.parts is None else self.parts[which][: rows * columns].view(rows, columns)
