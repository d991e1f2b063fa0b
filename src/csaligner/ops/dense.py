"""Whole-matrix implementation with gradients in closed form, for samples of about a thousand rows or fewer.

One product, few operations and no log domain: exponentials are summed as they are. That is exact as long as none leaves
the float32 range (LARGEST_EXPONENT, LARGEST_LOGIT, SMALLEST_MASS); other samples and kernels are passed to the tiled
implementation. Formulas: reference.log_kernel_mean and reference.info_nce.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import reference, tiled, tiled_contrastive
from .contrastive import RowInfo
from .kernels import Gaussian, Kernel
from .tiles import LIMIT, no_autocast, totals_dtype

# Largest |x|^2 / sigma^2. The points are not centred, so the relative error of the kernel is about this many machine
# epsilons.
LARGEST_EXPONENT = 50.0
# Largest |logit|, for the same reason.
LARGEST_LOGIT = 200.0
# Smallest softmax mass of the positives of a row relative to the largest exponential, and smallest kernel mean.
SMALLEST_MASS = 1e-30

Again = Callable[..., tuple[Tensor, ...]]


def log_kernel_mean(
    x: Tensor,
    y: Tensor | None,
    kernel: Kernel,
    weights_x: Tensor | None = None,
    weights_y: Tensor | None = None,
    diagonal: bool = True,
) -> Tensor:
    """Return reference.log_kernel_mean, float64 for every dtype of x."""
    with torch.no_grad(), no_autocast(x):
        a = _Side.of(x, weights_x, kernel) if diagonal else None
        b = a if y is None else _Side.of(y, weights_y, kernel)
        found = None if a is None or b is None else _KernelMean.of(a, b)
    if found is None:
        return tiled.log_kernel_mean(x, y, kernel, weights_x, weights_y, diagonal)

    def again(x: Tensor, y: Tensor | None = None) -> tuple[Tensor, ...]:
        return (reference.log_kernel_mean(x, y, kernel, weights_x, weights_y),)

    value: Tensor = _LogKernelMean.apply(x, y, found, again)  # type: ignore[no-untyped-call]
    return value


def info_nce(x: Tensor, y: Tensor, scale: Tensor, rows: RowInfo) -> Tensor:
    """Return reference.info_nce, float64 for every dtype of x."""
    with torch.no_grad(), no_autocast(x):
        softmax = _Softmax.of(x @ y.T, scale, rows)
    if softmax is None:
        return tiled_contrastive.info_nce(x, y, scale, rows)

    def again(x: Tensor, y: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        return (reference.info_nce(x, y, scale, rows.ids_x, rows.ids_y),)

    value: Tensor = _Contrastive.apply(x, y, scale, softmax, [], again)[0]  # type: ignore[no-untyped-call]
    return value


def fused(x: Tensor, y: Tensor, scale: Tensor, rows: RowInfo, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Return reference.info_nce and reference.log_kernel_mean of x against y, from one product. Both float64."""
    values = _together(x, y, scale, rows, kernel, within=False)
    return tiled_contrastive.fused(x, y, scale, rows, kernel) if values is None else (values[0], values[1])


def joint(x: Tensor, y: Tensor, scale: Tensor, rows: RowInfo, kernel: Kernel) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the values of `fused`, and reference.log_kernel_mean within x and within y. All float64.

    One operation: for a hundred rows, calls cost more than arithmetic.
    """
    values = _together(x, y, scale, rows, kernel, within=True)
    if values is None:
        nce, between = tiled_contrastive.fused(x, y, scale, rows, kernel)
        sides = (x, rows.weights_x), (y, rows.weights_y)
        within_x, within_y = (log_kernel_mean(side, None, kernel, weights) for side, weights in sides)
        return nce, between, within_x, within_y
    nce, between, within_x, within_y = values
    return nce, between, within_x, within_y


def _together(
    x: Tensor, y: Tensor, scale: Tensor, rows: RowInfo, kernel: Kernel, within: bool
) -> tuple[Tensor, ...] | None:
    with torch.no_grad(), no_autocast(x):
        a, b = _Side.of(x, rows.weights_x, kernel), _Side.of(y, rows.weights_y, kernel)
        if a is None or b is None:
            return None
        softmax = _Softmax.of(x @ y.T, scale, rows)
        if softmax is None:
            return None
        means = [_KernelMean.of(a, b, softmax.products), *(_KernelMean.of(side, side) for side in (a, b) if within)]
        if None in means:
            return None

    def again(x: Tensor, y: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        nce = reference.info_nce(x, y, scale, rows.ids_x, rows.ids_y)
        pairs = ((x, y, rows.weights_x), (x, None, rows.weights_x), (y, None, rows.weights_y))[: len(means)]
        return nce, *(reference.log_kernel_mean(p, q, kernel, w, rows.weights_y) for p, q, w in pairs)

    values: tuple[Tensor, ...] = _Contrastive.apply(x, y, scale, softmax, means, again)  # type: ignore[no-untyped-call]
    return values


@dataclass(frozen=True)
class _Side:
    """One sample of a kernel mean. exponents: (N,), log weight_i - |x_i|^2 / (2 sigma^2); constant: common log weight.

    rate: 1 / sigma^2.
    """

    points: Tensor
    exponents: Tensor
    rate: float
    constant: float

    @classmethod
    def of(cls, x: Tensor, weights: Tensor | None, kernel: Kernel) -> _Side | None:
        """Return None if the kernel is of another kind or the points are too far out."""
        if not isinstance(kernel, Gaussian):
            return None
        square_norms, rate = (x * x).sum(dim=1), kernel.sigma**-2
        if float(square_norms.max()) * rate > LARGEST_EXPONENT:
            return None
        exponents = square_norms.mul_(-0.5 * rate)
        if weights is not None:
            exponents.add_((weights / weights.sum()).log_())
        return cls(x.detach(), exponents, rate, -math.log(len(x)) if weights is None else 0.0)


@dataclass(frozen=True)
class _KernelMean:
    """k_ij = weight_i weight_j exp(-|x_i - y_j|^2 / (2 sigma^2)), its sums over rows and columns, and its total.

    constant: the log of a factor left out of all of them, for equal weights.
    """

    k: Tensor
    mass_x: Tensor
    mass_y: Tensor
    total: float
    rate: float
    constant: float

    @classmethod
    def of(cls, a: _Side, b: _Side, products: Tensor | None = None) -> _KernelMean | None:
        """products: x y^T, if known. Return None if the mean may leave the float32 range."""
        outer = torch.add(a.exponents[:, None], b.exponents)
        if products is None:
            k = outer.addmm_(a.points, b.points.T, alpha=a.rate).exp_()
        else:
            k = outer.add_(products, alpha=a.rate).exp_()
        mass_x = k.sum(dim=1)
        mass_y = mass_x if a is b else k.sum(dim=0)
        total = float(mass_x.sum(dtype=totals_dtype(k)))
        return cls(k, mass_x, mass_y, total, a.rate, a.constant + b.constant) if total > SMALLEST_MASS else None

    def log(self) -> Tensor:
        return torch.tensor(math.log(self.total) + self.constant, dtype=totals_dtype(self.k), device=self.k.device)

    def slope(self, upstream: Tensor) -> float:
        """Return f with d/dx_i = f sum_j k_ij (y_j - x_i), for y other than x."""
        return float(upstream) * self.rate / self.total


class _LogKernelMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor | None, mean: _KernelMean, again: Again) -> Tensor:
        ctx.save_for_backward(*(side for side in (x, y) if side is not None))
        ctx.mean, ctx.again = mean, again
        return mean.log()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return *_differentiable(ctx, (upstream,), 2), None, None
        inputs, mean = ctx.saved_tensors, ctx.mean
        x, y, slope = inputs[0], inputs[-1], mean.slope(upstream)
        grad_x = grad_y = None
        with no_autocast(x):
            if len(inputs) == 1:
                slope *= 2
            if ctx.needs_input_grad[0]:
                grad_x = (x * mean.mass_x[:, None]).addmm_(mean.k, y, beta=-slope, alpha=slope)
            if ctx.needs_input_grad[1]:
                grad_y = (y * mean.mass_y[:, None]).addmm_(mean.k.T, x, beta=-slope, alpha=slope)
        return grad_x, grad_y, None, None


@dataclass(frozen=True)
class _Softmax:
    """e_ij = exp(logit_ij - a constant), and the arguments of the loss for its rows and for its columns.

    share: weight in the mean, 0 without a positive. total, positive: sum of w_j e_ij over all j and over the positives.
    pairing: (w of rows, w of columns, mask of the positives), None if row i and column i form a pair, for all i.
    """

    products: Tensor
    e: Tensor
    share: tuple[Tensor, Tensor]
    total: tuple[Tensor, Tensor]
    positive: tuple[Tensor, Tensor]
    pairing: tuple[Tensor, Tensor, Tensor] | None

    @classmethod
    def of(cls, products: Tensor, scale: Tensor, rows: RowInfo) -> _Softmax | None:
        """Return None if the exponents may leave the float32 range."""
        times = float(scale)
        low, high = (times * float(end) for end in torch.aminmax(products))
        if max(-low, high) > LARGEST_LOGIT:
            return None
        e = torch.mul(products, times)
        if max(-low, high) > LIMIT:
            e.sub_(high)
        e.exp_()
        pairing = _pairing(rows, e.dtype)
        if pairing is None:
            share, diagonal = torch.full_like(e[0], 1 / len(e)), e.diagonal()
            shares, totals, positives = (share, share), (e.sum(dim=1), e.sum(dim=0)), (diagonal, diagonal)
        else:
            w_x, w_y, mask = pairing
            kept = e * mask
            shares = _share(w_x, mask.any(dim=1)), _share(w_y, mask.any(dim=0))
            totals = _where(shares, (e @ w_y, e.T @ w_x))
            positives = _where(shares, (kept @ w_y, kept.T @ w_x))
        if any(float(sums.min()) < SMALLEST_MASS for sums in positives):
            return None
        return cls(products, e, shares, totals, positives, pairing)

    def info_nce(self) -> Tensor:
        wide = totals_dtype(self.e)
        rows, columns = (
            ((total / positive).log_() * share).sum(dtype=wide)
            for share, total, positive in zip(self.share, self.total, self.positive, strict=True)
        )
        return (rows + columns) / 2

    def gradient(self, factor: float) -> Tensor:
        """Return 2 * factor * d info_nce / d logits, (N, M)."""
        u, v = (factor * share / total for share, total in zip(self.share, self.total, strict=True))
        if self.pairing is None:
            w = torch.add(u[:, None], v).mul_(self.e)
            w.diagonal().sub_(2 * factor / len(w))
            return w
        w_x, w_y, mask = self.pairing
        up, vp = (factor * share / positive for share, positive in zip(self.share, self.positive, strict=True))
        w = (torch.stack([up, w_x], dim=1) @ torch.stack([w_y, vp])).mul_(mask)
        return w.addmm_(torch.stack([u, w_x], dim=1), torch.stack([w_y, v]), beta=-1).mul_(self.e)


class _Contrastive(torch.autograd.Function):
    """InfoNCE, then the log kernel means: none, between, or between, within x and within y."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, scale: Tensor, softmax: _Softmax, means: list[_KernelMean], again: Again
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, y, scale)
        ctx.softmax, ctx.means, ctx.again = softmax, means, again
        return softmax.info_nce(), *(mean.log() for mean in means)

    @staticmethod
    def backward(ctx: Any, grad_nce: Tensor, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return *_differentiable(ctx, (grad_nce, *grads), 3), None, None, None
        (x, y, scale), softmax, grad_scale = ctx.saved_tensors, ctx.softmax, None
        with no_autocast(x):
            w = softmax.gradient(float(grad_nce) * float(scale) / 2)
            if ctx.needs_input_grad[2]:
                total = torch.mul(w, softmax.products).sum(dtype=totals_dtype(w))
                grad_scale = (total / float(scale)).to(scale.dtype)
            slopes = [mean.slope(grad) for mean, grad in zip(ctx.means, grads, strict=True)]
            if slopes:
                w.add_(ctx.means[0].k, alpha=slopes[0])
            grad_x, grad_y = w @ y, w.T @ x
            if slopes:
                mass_x, mass_y = (slopes[0] * mass for mass in (ctx.means[0].mass_x, ctx.means[0].mass_y))
                for grad, side, mass, mean, slope in zip(
                    (grad_x, grad_y), (x, y), (mass_x, mass_y), ctx.means[1:], slopes[1:], strict=False
                ):
                    grad.addmm_(mean.k, side, alpha=2 * slope)
                    mass.add_(mean.mass_x, alpha=2 * slope)
                grad_x.addcmul_(x, mass_x[:, None], value=-1)
                grad_y.addcmul_(y, mass_y[:, None], value=-1)
            return grad_x, grad_y, grad_scale, None, None, None


def _pairing(rows: RowInfo, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor] | None:
    ids_x, ids_y = rows.ids_x, rows.ids_y
    same = ids_x is ids_y or torch.equal(ids_x, ids_y)
    if same and int(ids_x[0]) >= 0 and bool((ids_x[1:] > ids_x[:-1]).all()):
        return None
    w_x = reference.id_weights(ids_x)
    w_y = w_x if same else reference.id_weights(ids_y)
    if same and bool((w_x == 1).all()):
        return None
    return w_x.to(dtype), w_y.to(dtype), (ids_x[:, None] == ids_y) & (ids_y >= 0)


def _share(w: Tensor, has_positive: Tensor) -> Tensor:
    w = w * has_positive
    return w / w.sum()


def _where(shares: tuple[Tensor, Tensor], sums: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Replace the sums of rows without a positive by 1: their share is 0."""
    rows, columns = (torch.where(share > 0, each, 1) for share, each in zip(shares, sums, strict=True))
    return rows, columns


def _differentiable(ctx: Any, upstream: tuple[Tensor, ...], count: int) -> tuple[Tensor | None, ...]:
    """Return the gradients in `count` inputs by autograd through the reference, for second derivatives."""
    inputs, needed = ctx.saved_tensors, ctx.needs_input_grad[:count]
    wanted = [tensor for tensor, need in zip(inputs, needed, strict=False) if need]
    with no_autocast(inputs[0]):
        values = [value.to(grad.dtype) for value, grad in zip(ctx.again(*inputs), upstream, strict=True)]
        found = iter(torch.autograd.grad(values, wanted, upstream, create_graph=True, allow_unused=True))
    return tuple(next(found) if need else None for need in needed)
