"""Gathering the rows of all ranks, with a gradient.

The rule, stated here once. D_CS and InfoNCE are functions of all rows, no means over ranks. So every rank gathers the
rows of all, computes the same global loss L, and calls backward on it. The backward of `gather_rows` sums the
gradients of all ranks for the own rows: with R ranks that is R * dL/dx_r. Parameter gradients are then averaged over
ranks, as DistributedDataParallel does: 1/R sum_r R * J_r' dL/dx_r = dL/dtheta, what one process would compute.
Parameters that enter the loss itself (a logit scale) have the same gradient on every rank, which averaging keeps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from .processes import rank, world_size


def gather_rows(x: Tensor) -> Tensor:
    """The rows of all ranks, in rank order: (n_r, d) on rank r -> (N, d) on all, N = sum_r n_r.

    n_r may differ from rank to rank and be 0; d and the dtype must agree. The backward sums the gradients of all
    ranks for the own rows; see the module for the rule. It may be differentiated twice. Every rank must call it, and
    x must require a gradient on all ranks or on none. Backends: gloo, nccl. One process: x itself.
    """
    if world_size() == 1:
        return x
    result: Tensor = _Gather.apply(x, row_counts(x))  # type: ignore[no-untyped-call]
    return result


def gather_ids(ids: Tensor) -> Tensor:
    """As gather_rows, without a gradient: (n_r, ...) on rank r -> (N, ...) on all."""
    return ids if world_size() == 1 else _gather(ids.detach(), row_counts(ids))


def row_counts(x: Tensor) -> list[int]:
    """How many rows each rank holds."""
    if world_size() == 1:
        return [len(x)]
    counts = torch.zeros(world_size(), dtype=torch.int64, device=x.device)
    counts[rank()] = len(x)
    dist.all_reduce(counts)
    return [int(n) for n in counts]


class _Gather(torch.autograd.Function):
    """All rows from the own ones; its transpose is _SumOwn."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        return _gather(x, counts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _SumOwn.apply(grad, ctx.counts), None  # type: ignore[no-untyped-call]


class _SumOwn(torch.autograd.Function):
    """The own rows of the sum over ranks."""

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
    """Backends gather equal shapes only: rows are padded to the longest and cut again."""
    longest = max(counts)
    padded = x.new_zeros(longest, *x.shape[1:])
    padded[: len(x)] = x
    received = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(received, padded)
    return torch.cat([rows[:n] for rows, n in zip(received, counts, strict=True)])
