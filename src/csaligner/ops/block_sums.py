"""Maxima and sums of blocks combined in the log domain, and half-precision products summed in float32."""

from __future__ import annotations

import torch
from torch import Tensor


def combined(tops: Tensor, totals: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Combine maxima and sums of the blocks along dim into overall maxima and float64 sums."""
    top = tops.amax(dim=dim)
    return top, (tops - top.unsqueeze(dim)).exp_().mul_(totals).sum(dim=dim, dtype=torch.float64)


def merged(tops: list[Tensor], totals: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Combine results of `combined` for several groups of blocks; one is returned as it is."""
    if len(tops) == 1:
        return tops[0], totals[0]
    top = torch.stack(tops).amax(dim=0)
    return top, torch.stack([(t - top).double().exp_() * total for t, total in zip(tops, totals, strict=True)]).sum(0)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a @ b to the float32 total, in place."""
    if a.dtype == b.dtype != torch.float32 and a.is_cuda:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a.float(), b.float())


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b in float32, from half-precision factors if both are half precision."""
    if a.dtype == b.dtype != torch.float32 and a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()
