"""Differentiable gathering of the rows of all ranks, and the gradient rule of distributed losses.

D_CS and InfoNCE are functions of all rows, not means over ranks. Every rank therefore gathers the rows of all ranks,
computes the same global loss L, and calls backward on it. The backward of `gather_rows` sums the gradients of all ranks
for the local rows: with R ranks, this is R * dL/dx_r. Parameter gradients are then averaged over ranks, as in
DistributedDataParallel: 1/R sum_r R * J_r' dL/dx_r = dL/dtheta, the gradient of a single process.
Parameters of the loss itself (a logit scale) have the same gradient on every rank, which averaging preserves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from .processes import rank, world_size


def gather_rows(x: Tensor) -> Tensor:
    """Return the rows of all ranks in rank order: (n_r, d) on rank r -> (N, d) on all, N = sum_r n_r.

    n_r may differ between ranks and may be 0; d and the dtype must agree. The backward sums the gradients of all ranks
    for the local rows (see the module docstring) and is differentiable. Every rank must call it, and x must require a
    gradient on all ranks or on none. Backends: gloo, nccl. With one process, returns x.
    """
    if world_size() == 1:
        return x
    result: Tensor = _Gather.apply(x, row_counts(x))  # type: ignore[no-untyped-call]
    return result


def gather_ids(ids: Tensor) -> Tensor:
    """Gather without a gradient: (n_r, ...) on rank r -> (N, ...) on all."""
    return ids if world_size() == 1 else _gather(ids.detach(), row_counts(ids))


def row_counts(x: Tensor) -> list[int]:
    """Return the number of rows of each rank."""
    if world_size() == 1:
        return [len(x)]
    counts = torch.zeros(world_size(), dtype=torch.int64, device=x.device)
    counts[rank()] = len(x)
    dist.all_reduce(counts)
    return [int(n) for n in counts]


class _Gather(torch.autograd.Function):
    """Gather of the local rows; its transpose is _SumOwn."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        return _gather(x, counts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _SumOwn.apply(grad, ctx.counts), None  # type: ignore[no-untyped-call]


class _SumOwn(torch.autograd.Function):
    """The local rows of the sum over ranks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        total = rows.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        start = sum(counts[: rank()])
        return total[start : start + counts[rank()]].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Gather.apply(grad, ctx.counts), None  # type: ignore[no-untyped-call]


def _gather(x: Tensor, counts: list[int]) -> Tensor:
    """Gather rows of unequal counts by padding to the largest: backends support equal shapes only."""
    longest = max(counts)
    padded = x.new_zeros(longest, *x.shape[1:])
    padded[: len(x)] = x
    received = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(received, padded)
    return torch.cat([rows[:n] for rows, n in zip(received, counts, strict=True)])
