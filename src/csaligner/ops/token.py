"""Token-level D_CS of B pairs of small samples of different lengths: value and gradient in one sweep over the pairs.

The V tokens of x and the L tokens of y are concatenated into z with V + L points. One product z z^T contains all three
Gram matrices, and one product of its weights with z all gradients: 4 (V + L)^2 d flops per pair. Pairs are cut to their
true lengths, so padding is never read; no (B, V, L) tensor is allocated.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import reference
from .kernels import Gaussian, Kernel, narrowest
from .tiles import LARGEST_IN_FLOAT32, LIMIT, SLACK, no_autocast, refuse_second_derivative, totals_dtype, uncompiled


def dense(x: Tensor, y: Tensor, mask_x: Tensor, mask_y: Tensor, kernel: Kernel) -> Tensor:
    """Reference implementation: mean over b of D_CS(x[b][mask_x[b]], y[b][mask_y[b]]). x: (B, V, d), y: (B, L, d)."""
    pairs = zip(x, y, mask_x, mask_y, strict=True)
    with no_autocast(x):
        return torch.stack([reference.cauchy_schwarz(a[m], b[n], kernel) for a, b, m, n in pairs]).mean()


@uncompiled
def tiled(x: Tensor, y: Tensor, mask_x: Tensor, mask_y: Tensor, kernel: Kernel) -> Tensor:
    """Same arguments and result as dense; the value is float64, features may have any floating dtype."""
    value: Tensor = _TokenDivergence.apply(x, y, mask_x, mask_y, kernel)  # type: ignore[no-untyped-call]
    return value


class _TokenDivergence(torch.autograd.Function):
    """Value and gradient in one sweep. Second derivatives raise InputError.

    The first backward returns the stored gradients, scaled in place, to avoid copies of all tokens. A second backward
    through the same graph recomputes them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, mask_x: Tensor, mask_y: Tensor, kernel: Kernel) -> Tensor:
        value, ctx.grads = _sweep(x, y, (mask_x, mask_y), kernel, ctx.needs_input_grad[:2])
        ctx.save_for_backward(x, y, mask_x, mask_y)
        ctx.kernel = kernel
        return value

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x, y, *masks = ctx.saved_tensors
        grads = ctx.grads or _sweep(x, y, (masks[0], masks[1]), ctx.kernel, ctx.needs_input_grad[:2])[1]
        ctx.grads = None
        for grad in grads:
            if grad is not None:
                grad.mul_(grad_value.to(grad.dtype))
        return (*grads, None, None, None)


Grads = tuple[Tensor | None, Tensor | None]


def _sweep(
    x: Tensor, y: Tensor, masks: tuple[Tensor, Tensor], kernel: Kernel, need: tuple[bool, bool]
) -> tuple[Tensor, Grads]:
    """Return the mean over pairs and the required gradients."""
    grads = (torch.empty_like(x) if need[0] else None, torch.empty_like(y) if need[1] else None)
    total = torch.zeros((), dtype=totals_dtype(x), device=x.device)
    with no_autocast(x):
        sweep = _Sweep(x, y, kernel)
        for b, places in enumerate(zip(*(_places(mask) for mask in masks), strict=True)):
            total += sweep.pair(x[b, places[0]], y[b, places[1]])
            if any(need):
                sweep.write_gradient([None if grad is None else grad[b] for grad in grads], places)
    return total / len(x), grads


class _Sweep:
    """One pair at a time, in buffers sized for the largest pair."""

    def __init__(self, x: Tensor, y: Tensor, kernel: Kernel) -> None:
        self.kernel, self.pairs, self._like = kernel, len(x), x
        self._most = x.shape[1] + y.shape[1]
        self._allocate(torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32)

    def _allocate(self, dtype: torch.dtype) -> None:
        """Allocate the buffers; float64 once a pair is too far out for float32."""
        self._z = self._like.new_empty(self._most * self._like.shape[2], dtype=dtype)
        self._t = self._like.new_empty(self._most * self._most, dtype=dtype)
        self._out = torch.empty_like(self._z)

    def pair(self, x: Tensor, y: Tensor) -> Tensor:
        """Return D_CS of one pair (v, d), (l, d); stores the weights w of its gradient in self.w."""
        v, n, d = len(x), len(x) + len(y), x.shape[1]
        self.v, self.z = v, self._z[: n * d].view(n, d)
        self.w = self._t[: n * n].view(n, n)
        centre = (x.sum(dim=0, dtype=self.z.dtype) + y.sum(dim=0, dtype=self.z.dtype)).div_(n)
        torch.sub(x, centre, out=self.z[:v])
        torch.sub(y, centre, out=self.z[v:])
        norms = torch.linalg.vector_norm(self.z, dim=1).square_()
        largest = float(norms.max()) / narrowest(self.kernel) ** 2
        if largest > LARGEST_IN_FLOAT32 and self.z.dtype != totals_dtype(x):
            self._allocate(totals_dtype(x))
            return self.pair(x, y)
        if isinstance(self.kernel, Gaussian) and largest <= LIMIT:
            return self._folded(norms, 1 / self.kernel.sigma**2)
        return self._online(norms)

    def _folded(self, norms: Tensor, rate: float) -> Tensor:
        """Factored form k_ij = a_i e_ij a_j with e_ij = exp(z_i.z_j / sigma^2), see gaussian_factors.py: the weights
        are e_ij times a row factor and a column factor."""
        v, a = self.v, norms.mul_(-0.5 * rate).exp_()
        e, x, y = self.w, self.z[:v], self.z[v:]
        for own, other, block in ((x, x, e[:v, :v]), (x, y, e[:v, v:]), (y, y, e[v:, v:])):
            torch.addmm(block, own, other.T, beta=0, alpha=rate, out=block).exp_()
        e[v:, :v] = e[:v, v:].T
        to_x, to_y = e[:, :v] @ a[:v], e[:, v:] @ a[v:]
        products = torch.stack([a[:v] @ to_x[:v], a[v:] @ to_y[v:], a[:v] @ to_y[:v]])
        within_x, within_y, between = products.to(totals_dtype(a)).unbind()
        factor = 2 * rate / self.pairs
        e[:v].mul_(torch.cat([a[:v] * (factor / within_x), a[v:] * (-factor / between)]).to(a.dtype))
        e[v:].mul_(torch.cat([a[:v] * (-factor / between), a[v:] * (factor / within_y)]).to(a.dtype))
        e.mul_(a[:, None])
        return within_x.log() + within_y.log() - 2 * between.log()  # the token counts cancel

    def _online(self, norms: Tensor) -> Tensor:
        """General form for every kernel and bandwidth."""
        v = self.v
        t = torch.addmm(norms, self.z, self.z.T, alpha=-2, out=self.w)
        t.add_(norms[:, None]).clamp_(min=0).fill_diagonal_(0.0)
        p, slope = self.kernel.log_value_and_slope(t)
        between, mirrored = p[:v, v:], p[v:, :v]
        top = float(between.max())
        top = top if top < -SLACK else 0.0  # k is large enough within a sample, and between close samples
        if top:
            between.sub_(top)
            mirrored.sub_(top)
        p.exp_()
        log_means = []
        for blocks, sign in (((p[:v, :v],), 1.0), ((p[v:, v:],), 1.0), ((between, mirrored), -1.0)):
            total = blocks[0].sum(dim=1).sum(dtype=totals_dtype(self.z))
            log_means.append(total.log() - math.log(blocks[0].shape[0] * blocks[0].shape[1]))
            for block in blocks:
                block.mul_(-4.0 * sign / self.pairs / total)
        self.w = p.mul_(slope)
        return log_means[0] + log_means[1] - 2 * (log_means[2] + top)

    def write_gradient(self, grads: list[Tensor | None], places: tuple[Tensor | slice, Tensor | slice]) -> None:
        """Write d/dz_i = sum_j w_ij (z_j - z_i); w_ij = -4/B slope_ij k_ij / sum k, + within a sample, - between."""
        mass = self.w.sum(dim=1, keepdim=True)
        for grad, rows, part in zip(grads, places, (slice(0, self.v), slice(self.v, None)), strict=True):
            if grad is None:
                continue
            grad[rows.stop if isinstance(rows, slice) else 0 :] = 0
            whole = isinstance(rows, slice) and grad.dtype == self.z.dtype
            z = self.z[part]
            out = grad[rows] if whole else self._out[: z.numel()].view_as(z)
            torch.mm(self.w[part], self.z, out=out).addcmul_(z, mass[part], value=-1)
            if not whole:
                grad[rows] = out.to(grad.dtype)


def _places(masks: Tensor) -> list[Tensor | slice]:
    """Return the token positions of each pair: a slice if they come first, else their indices."""
    counts = masks.sum(dim=1)
    first = torch.arange(masks.shape[1], device=masks.device) < counts[:, None]
    leading = (masks == first).all(dim=1)
    return [
        slice(0, count) if leads else mask.nonzero()[:, 0]
        for mask, count, leads in zip(masks, counts.tolist(), leading.tolist(), strict=True)
    ]
