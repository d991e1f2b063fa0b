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
from .contrastive import RowInfo, one_to_one
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
        a = Side.of(x, weights_x, kernel) if diagonal else None
        b = a if y is None else Side.of(y, weights_y, kernel)
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
        softmax = Softmax.of(x @ y.T, float(scale), rows)
    if softmax is None:
        return tiled_contrastive.info_nce(x, y, scale, rows)

    def again(x: Tensor, y: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        return (reference.info_nce(x, y, scale, rows.ids_x, rows.ids_y),)

    value: Tensor = _Contrastive.apply(x, y, scale, softmax, [], again)[0]  # type: ignore[no-untyped-call]
    return value


def fused(x: Tensor, y: Tensor, scale: Tensor, rows: RowInfo, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Return reference.info_nce and reference.log_kernel_mean of x against y, from one product. Both float64."""
    with torch.no_grad(), no_autocast(x):
        a, b = Side.of(x, rows.weights_x, kernel), Side.of(y, rows.weights_y, kernel)
        softmax = mean = None
        if a is not None and b is not None:
            softmax = Softmax.of(x @ y.T, float(scale), rows)
            mean = None if softmax is None else _KernelMean.of(a, b, softmax.products)
    if mean is None:
        return tiled_contrastive.fused(x, y, scale, rows, kernel)

    def again(x: Tensor, y: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        nce = reference.info_nce(x, y, scale, rows.ids_x, rows.ids_y)
        return nce, reference.log_kernel_mean(x, y, kernel, rows.weights_x, rows.weights_y)

    nce, between = _Contrastive.apply(x, y, scale, softmax, [mean], again)  # type: ignore[no-untyped-call]
    return nce, between


@dataclass(frozen=True)
class Side:
    """One sample of a kernel mean. exponents: (N,), log weight_i - |x_i|^2 / (2 sigma^2); constant: common log weight.

    column: exponents, (N, 1). rate: 1 / sigma^2. largest: the largest |x_i|^2.
    """

    points: Tensor
    exponents: Tensor
    column: Tensor
    rate: float
    constant: float
    largest: float

    @classmethod
    def of(cls, x: Tensor, weights: Tensor | None, kernel: Kernel) -> Side | None:
        """Return None if the kernel is of another kind or the points are too far out."""
        if not isinstance(kernel, Gaussian):
            return None
        norms, rate = torch.linalg.vector_norm(x, dim=1), kernel.sigma**-2
        largest = float(norms.max()) ** 2
        if not largest * rate <= LARGEST_EXPONENT:
            return None
        exponents = norms.mul_(norms).mul_(-0.5 * rate)
        if weights is not None:
            exponents.add_((weights / weights.sum()).log_())
        constant = -math.log(x.shape[0]) if weights is None else 0.0
        return cls(x, exponents, exponents[:, None], rate, constant, largest)


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
    def of(cls, a: Side, b: Side, products: Tensor | None = None) -> _KernelMean | None:
        """products: x y^T, if known. Return None if the mean may leave the float32 range."""
        outer = torch.add(a.column, b.exponents)
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
            return *differentiable(ctx, (upstream,), 2), None, None
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
class Softmax:
    """e_ij = exp(logit_ij - a constant), and the arguments of the loss for its rows and for its columns.

    totals, positives: sum of w_j e_ij over all j and over the positives. pairing: None if row i and column i form a
    pair, for all i; else (shares in the mean, w, mask of the positives), the first two for rows and for columns.
    """

    products: Tensor
    e: Tensor
    totals: tuple[Tensor, Tensor]
    positives: tuple[Tensor, Tensor]
    pairing: _Pairing | None

    @classmethod
    def of(
        cls, products: Tensor, scale: float, rows: RowInfo, bound: float = math.inf, out: Tensor | None = None
    ) -> Softmax | None:
        """Return None if the exponents may leave the float32 range. bound: of |logit|, if known; out: memory of e."""
        high = 0.0
        if not bound <= LIMIT:
            low, high = (scale * float(end) for end in torch.aminmax(products))
            bound = max(-low, high)
            if not bound <= LARGEST_LOGIT:
                return None
        e = torch.mul(products, scale, out=out)
        if bound > LIMIT:
            e.sub_(high)
        e.exp_()
        pairing = _Pairing.of(rows, e.dtype)
        if pairing is None:
            diagonal = e.diagonal()
            totals, positives = (e.sum(dim=1), e.sum(dim=0)), (diagonal, diagonal)
        else:
            totals, positives = pairing.sums(e)
        if bound > LIMIT and any(float(sums.min()) < SMALLEST_MASS for sums in positives):
            return None
        return cls(products, e, totals, positives, pairing)

    def info_nce(self) -> float:
        if self.pairing is None:
            sums = zip(*(each.tolist() for each in (*self.totals, self.positives[0])), strict=True)
            return sum(math.log(row * column / positive**2) for row, column, positive in sums) / (2 * len(self.e))
        wide = totals_dtype(self.e)  # the ratio of two sums of e^60 and e^-60 is infinite in float32
        rows, columns = (
            float(((total.to(wide) / positive).log_() * share).sum())
            for share, total, positive in zip(self.pairing.shares, self.totals, self.positives, strict=True)
        )
        return (rows + columns) / 2

    def gradient(self, factor: float, out: Tensor | None = None) -> Tensor:
        """Return 2 * factor * d info_nce / d logits, (N, M)."""
        if self.pairing is None:
            factor /= self.e.shape[0]
            u, v = (total.reciprocal().mul_(factor) for total in self.totals)
            w = torch.add(u[:, None], v, out=out).mul_(self.e)
            w.diagonal().sub_(2 * factor)
            return w
        shares, (w_x, w_y), mask = self.pairing.shares, self.pairing.weights, self.pairing.mask
        u, v = (factor * share / total for share, total in zip(shares, self.totals, strict=True))
        up, vp = (factor * share / positive for share, positive in zip(shares, self.positives, strict=True))
        w = torch.mm(torch.stack([up, w_x], dim=1), torch.stack([w_y, vp]), out=out).mul_(mask)
        return w.addmm_(torch.stack([u, w_x], dim=1), torch.stack([w_y, v]), beta=-1).mul_(self.e)


@dataclass(frozen=True)
class _Pairing:
    """Several positives or none in a row. shares: weights in the mean, 0 without a positive; weights: 1/m, 0 for
    unpaired rows, both for rows and for columns; mask: (N, M), the positives.
    """

    shares: tuple[Tensor, Tensor]
    weights: tuple[Tensor, Tensor]
    mask: Tensor

    @classmethod
    def of(cls, rows: RowInfo, dtype: torch.dtype) -> _Pairing | None:
        """Return None if row i and column i form a pair, for all i, and there are no other pairs."""
        ids_x, ids_y = rows.ids_x, rows.ids_y
        if rows.one_to_one or one_to_one(ids_x, ids_y):
            return None
        w_x, w_y = (reference.id_weights(ids).to(dtype) for ids in (ids_x, ids_y))
        mask = (ids_x[:, None] == ids_y) & (ids_y >= 0)
        return cls((_share(w_x, mask.any(dim=1)), _share(w_y, mask.any(dim=0))), (w_x, w_y), mask)

    def sums(self, e: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return the sums of w_j e_ij over all j and over the positives; 1 for rows without a positive."""
        (w_x, w_y), kept = self.weights, e * self.mask
        return self._where(e @ w_y, e.T @ w_x), self._where(kept @ w_y, kept.T @ w_x)

    def _where(self, *sums: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = (torch.where(share > 0, each, 1) for share, each in zip(self.shares, sums, strict=True))
        return rows, columns


class _Contrastive(torch.autograd.Function):
    """InfoNCE, and the log kernel mean between the samples if `means` holds it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, scale: Tensor, softmax: Softmax, means: list[_KernelMean], again: Again
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, y, scale)
        ctx.softmax, ctx.means, ctx.again = softmax, means, again
        nce = torch.scalar_tensor(softmax.info_nce(), dtype=totals_dtype(x), device=x.device)
        return nce, *(mean.log() for mean in means)

    @staticmethod
    def backward(ctx: Any, grad_nce: Tensor, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return *differentiable(ctx, (grad_nce, *grads), 3), None, None, None
        (x, y, scale), softmax, grad_scale = ctx.saved_tensors, ctx.softmax, None
        with no_autocast(x):
            w = softmax.gradient(float(grad_nce) * float(scale) / 2)
            if ctx.needs_input_grad[2]:
                total = torch.mul(w, softmax.products).sum(dtype=totals_dtype(w))
                grad_scale = (total / float(scale)).to(scale.dtype)
            slopes = [mean.slope(grad) for mean, grad in zip(ctx.means, grads, strict=True)]
            for mean, slope in zip(ctx.means, slopes, strict=True):
                w.add_(mean.k, alpha=slope)
            grad_x, grad_y = w @ y, w.T @ x
            for mean, slope in zip(ctx.means, slopes, strict=True):
                grad_x.addcmul_(x, mean.mass_x[:, None], value=-slope)
                grad_y.addcmul_(y, mean.mass_y[:, None], value=-slope)
            return grad_x, grad_y, grad_scale, None, None, None


def _share(w: Tensor, has_positive: Tensor) -> Tensor:
    w = w * has_positive
    return w / w.sum()


def differentiable(ctx: Any, upstream: tuple[Tensor | None, ...], count: int) -> tuple[Tensor | None, ...]:
    """Return the gradients in the first `count` inputs by autograd through ctx.again, for second derivatives."""
    inputs, needed = ctx.saved_tensors, ctx.needs_input_grad[:count]
    wanted = [tensor for tensor, need in zip(inputs, needed, strict=False) if need]
    with no_autocast(inputs[0]):
        pairs = zip(ctx.again(*inputs), upstream, strict=True)
        used = [(value.to(grad.dtype), grad) for value, grad in pairs if grad is not None]
        values, grads = [value for value, _ in used], [grad for _, grad in used]
        found = iter(torch.autograd.grad(values, wanted, grads, create_graph=True, allow_unused=True))
    return tuple(next(found) if need else None for need in needed)
