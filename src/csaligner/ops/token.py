"""D_CS of B small pairs of samples, each with its own length: value and gradient in one sweep over the pairs.

The V tokens of one side and the L of the other are joined into one cloud z of V + L points. One product z z^T holds
all three Gram matrices, and one product of its weights with z all gradients: 4 (V + L)^2 d flops a pair. Pairs are
cut to their true lengths, so that padding is never touched; no (B, V, L) tensor exists.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import reference
from .kernels import Kernel
from .tiles import SLACK, no_autocast, refuse_second_derivative, totals_dtype, uncompiled


def dense(x: Tensor, y: Tensor, mask_x: Tensor, mask_y: Tensor, kernel: Kernel) -> Tensor:
    """The readable truth: mean over b of D_CS(x[b][mask_x[b]], y[b][mask_y[b]]). x: (B, V, d), y: (B, L, d)."""
    pairs = zip(x, y, mask_x, mask_y, strict=True)
    with no_autocast(x):
        return torch.stack([reference.cauchy_schwarz(a[m], b[n], kernel) for a, b, m, n in pairs]).mean()


@uncompiled
def tiled(x: Tensor, y: Tensor, mask_x: Tensor, mask_y: Tensor, kernel: Kernel) -> Tensor:
    """As dense, same arguments; the value is float64, features may be of any floating dtype."""
    value: Tensor = _TokenDivergence.apply(x, y, mask_x, mask_y, kernel)  # type: ignore[no-untyped-call]
    return value


class _TokenDivergence(torch.autograd.Function):
    """Value and gradient in one sweep; a second derivative is refused.

    The first backward hands out the gradients themselves, scaled in place: copies of all tokens are too dear. Walking
    the graph again sweeps again.
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
    """The mean over pairs and its gradients, where needed."""
    grads = (torch.zeros_like(x) if need[0] else None, torch.zeros_like(y) if need[1] else None)
    total = torch.zeros((), dtype=totals_dtype(x), device=x.device)
    with no_autocast(x):
        sweep = _Sweep(x, y, kernel)
        for b, places in enumerate(zip(*(_places(mask) for mask in masks), strict=True)):
            total += sweep.pair(x[b, places[0]], y[b, places[1]])
            if any(need):
                sweep.write_gradient([None if grad is None else grad[b] for grad in grads], places)
    return total / len(x), grads


class _Sweep:
    """Buffers for the largest pair, reused for all."""

    def __init__(self, x: Tensor, y: Tensor, kernel: Kernel) -> None:
        most = x.shape[1] + y.shape[1]
        self.kernel = kernel
        dtype = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
        self._z = torch.empty(most * x.shape[2], dtype=dtype, device=x.device)
        self._t = torch.empty(most * most, dtype=dtype, device=x.device)
        self._out = torch.empty_like(self._z)
        self.slope: Tensor | float = 0.0
        self.pairs = len(x)

    def pair(self, x: Tensor, y: Tensor) -> Tensor:
        """D_CS of one pair (v, d), (l, d); leaves the weights of its gradient in self.p."""
        v, n, d = len(x), len(x) + len(y), x.shape[1]
        self.v, self.z = v, self._z[: n * d].view(n, d)
        self.z[:v], self.z[v:] = x, y
        self.z -= self.z.mean(dim=0)
        norms = torch.linalg.vector_norm(self.z, dim=1).square_()
        t = torch.addmm(norms, self.z, self.z.T, alpha=-2, out=self._t[: n * n].view(n, n))
        t.add_(norms[:, None]).clamp_(min=0).fill_diagonal_(0.0)
        self.p, self.slope = self.kernel.log_value_and_slope(t)
        between, mirrored = self.p[:v, v:], self.p[v:, :v]
        top = float(between.max())
        top = top if top < -SLACK else 0.0  # within a side, and for close sides, k itself is large enough
        if top:
            between.sub_(top)
            mirrored.sub_(top)
        self.p.exp_()
        log_means = []
        for blocks, weight in (((self.p[:v, :v],), 1.0), ((self.p[v:, v:],), 1.0), ((between, mirrored), -1.0)):
            total = blocks[0].sum(dim=1).sum(dtype=totals_dtype(self.z))
            log_means.append(total.log() - math.log(blocks[0].shape[0] * blocks[0].shape[1]))
            for block in blocks:
                block.mul_(weight / total)
        return log_means[0] + log_means[1] - 2 * (log_means[2] + top)

    def write_gradient(self, grads: list[Tensor | None], places: tuple[Tensor | slice, Tensor | slice]) -> None:
        """d/dz_i = 4/B sum_j p_ij slope_ij (z_i - z_j), with p signed: + within a side, - between."""
        factor = 4.0 / self.pairs
        if isinstance(self.slope, Tensor):
            self.p.mul_(self.slope)
        else:
            factor *= self.slope
        out = self._out[: self.z.numel()].view_as(self.z)
        torch.mm(self.p, self.z, out=out)
        out.mul_(-factor).addcmul_(self.z, self.p.sum(dim=1, keepdim=True), value=factor)
        for grad, rows, part in zip(grads, places, (out[: self.v], out[self.v :]), strict=True):
            if grad is not None:
                grad[rows] = part.to(grad.dtype)


def _places(masks: Tensor) -> list[Tensor | slice]:
    """Where the tokens of each pair lie: a slice if they come first, else their numbers."""
    counts = masks.sum(dim=1)
    first = torch.arange(masks.shape[1], device=masks.device) < counts[:, None]
    leading = (masks == first).all(dim=1)
    return [
        slice(0, count) if leads else mask.nonzero()[:, 0]
        for mask, count, leads in zip(masks, counts.tolist(), leading.tolist(), strict=True)
    ]
