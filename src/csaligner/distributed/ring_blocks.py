"""Block transfers between neighbouring ranks of the ring, and reductions over ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch import distributed as dist

from csaligner.ops.contrastive import SortedSide
from csaligner.ops.logsumexp import LOWEST
from csaligner.ops.reference import id_weights
from csaligner.ops.tiles import PreparedSample, compute_dtype, totals_dtype

from .gather import gather_ids, row_counts
from .processes import rank, world_size


def own_side(x: Tensor, centre: Tensor, ids: Tensor, weights: Tensor | None, paired: bool = True) -> SortedSide:
    """Return the local rows with weights normalised over all ranks; there may be no rows."""
    a = torch.ones(len(x), dtype=totals_dtype(x), device=x.device) if weights is None else weights.to(totals_dtype(x))
    log_a, log_w = (a / summed(a.sum())).log(), torch.zeros(len(x), device=x.device)
    if paired:
        before = sum(row_counts(ids)[: rank()])
        log_w = id_weights(gather_ids(ids))[before : before + len(ids)].log()
    order = None
    if bool((ids[1:] < ids[:-1]).any()):
        order = torch.argsort(ids, stable=True)
        x, ids, log_a, log_w = (values[order] for values in (x, ids, log_a, log_w))
    return _side(x - centre, centre, ids, (log_a, log_w), order)


def _side(
    points: Tensor, centre: Tensor, ids: Tensor, logs: tuple[Tensor, Tensor], order: Tensor | None = None
) -> SortedSide:
    """points: centred; logs: log of the kernel mean weights, and log 1/m."""
    log_a, log_w = (values.to(compute_dtype(points)) for values in logs)
    square_norms = torch.linalg.vector_norm(points, dim=1, dtype=log_a.dtype).square_()
    heaviest = float(log_a.max()) if len(log_a) else LOWEST
    sample = PreparedSample(points, square_norms, log_a, 0.0, heaviest, 0.0, None)
    return SortedSide(sample, (points @ centre).to(log_w.dtype), log_w, ids, order)


def around(own: SortedSide, counts: list[int], centre: Tensor) -> Iterator[tuple[int, SortedSide]]:
    """Yield (hop, block): the local block, then those of the previous ranks, prefetching the next one."""
    side = own
    for hop in range(world_size()):
        tensors = [side.sample.points, side.ids, side.log_w, cast(Tensor, side.sample.log_weights)]
        coming = Transfer(tensors, counts, hop + 1) if hop + 1 < world_size() else None
        yield hop, side
        if coming is not None:
            points, ids, log_w, log_weights = coming.arrived()
            side = _side(points, centre, ids, (log_weights, log_w))


class Transfer:
    """Asynchronous transfer of a block to the next rank and from the previous rank; empty blocks are not sent.

    hop: number of steps of the incoming block; counts: number of rows of the block of each rank.
    """

    def __init__(self, tensors: Sequence[Tensor], counts: list[int], hop: int) -> None:
        size = world_size()
        self._sent = [t.contiguous() for t in tensors]
        self._requests: list[Any] = []
        if size == 1:
            self._received = self._sent
            return
        rows = counts[(rank() - hop) % size]
        self._received = [t.new_empty(rows, *t.shape[1:]) for t in tensors]
        after, before = (rank() + 1) % size, (rank() - 1) % size
        sends = [dist.P2POp(dist.isend, t, after) for t in self._sent if len(t)]
        takes = [dist.P2POp(dist.irecv, t, before) for t in self._received if len(t)]
        if sends or takes:
            self._requests = dist.batch_isend_irecv([*sends, *takes])

    def arrived(self) -> list[Tensor]:
        for request in self._requests:
            request.wait()
        return self._received


def mean(x: Tensor) -> Tensor:
    """Return the mean row over all ranks."""
    sums = summed(x.detach().sum(dim=0, dtype=totals_dtype(x)))
    return (sums / sum(row_counts(x))).to(x.dtype)


def summed(value: Tensor) -> Tensor:
    """Return the sum over ranks; overwrites its argument."""
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def merged(top: float, total: Tensor) -> tuple[Tensor, Tensor]:
    """Combine the sums total * exp(top) of all ranks into one (top, total)."""
    highest = torch.full_like(total, top)
    if world_size() > 1:
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    return highest, summed(total * (top - highest).exp())
