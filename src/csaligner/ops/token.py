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
from .tiles import no_autocast, refuse_second_derivative, totals_dtype, uncompiled


def dense(x: Tensor, y: Tensor, mask_x: Tensor, mask_y: Tensor, kernel: Kernel) -> Tensor:
    """The readable truth: mean over b of D_CS(x[b][mask_x[b]], y[b][mask_y[b]]). x: (B, V, d), y: (B, L, d)."""
    pairs = zip(x, y, mask_x, mask_y, strict=True)
    return torch.stack([reference.cauchy_schwarz(a[m], b[n], kernel) for a, b, m, n in pairs]).mean()


@uncompiled
def tiled(x: Tensor, y: Tensor, mask_x: Tensor, mask_y: Tensor, kernel: Kernel) -> Tensor:
    """As dense, same arguments; the value is float64, features may be of any floating dtype."""
    value: Tensor = _TokenDivergence.apply(x, y, mask_x, mask_y, kernel)  # type: ignore[no-untyped-call]
    return value


class _TokenDivergence(torch.autograd.Function):
    """Value and gradient in one sweep; a second derivative is refused."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, mask_x: Tensor, mask_y: Tensor, kernel: Kernel) -> Tensor:
        need = ctx.needs_input_grad[:2]
        grads = tuple(torch.zeros_like(side) if needed else None for side, needed in zip((x, y), need, strict=True))
        places = list(zip(_places(mask_x), _places(mask_y), strict=True))
        with no_autocast(x):
            sweep = _Sweep(x, y, kernel)
            total = torch.zeros((), dtype=totals_dtype(x), device=x.device)
            for b, (rows, others) in enumerate(places):
                total += sweep.pair(x[b, rows], y[b, others])
                if any(need):
                    sweep.write_gradient([None if grad is None else grad[b] for grad in grads], (rows, others))
        ctx.save_for_backward(*grads)
        return total / len(x)

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        grads = (None if g is None else g * (grad_value / len(g)).to(g.dtype) for g in ctx.saved_tensors)
        return (*grads, None, None, None)


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
        within_x, within_y, between = self.p[:v, :v], self.p[v:, v:], self.p[:v, v:]
        top = float(between.max())
        between.sub_(top)
        self.p[v:, :v].sub_(top)
        self.p.exp_()
        log_means = []
        for block, weight in ((within_x, 1.0), (within_y, 1.0), (between, -1.0)):
            total = block.sum(dim=1).sum(dtype=totals_dtype(self.z))
            log_means.append(total.log() - math.log(block.shape[0] * block.shape[1]))
            block.mul_(weight / total)
        self.p[v:, :v] = between.T
        return log_means[0] + log_means[1] - 2 * (log_means[2] + top)

    def write_gradient(self, grads: list[Tensor | None], places: tuple[Tensor | slice, Tensor | slice]) -> None:
        """d/dz_i = 4 sum_j p_ij slope_ij (z_i - z_j), with p signed: + within a side, - between."""
        factor = 4.0
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
