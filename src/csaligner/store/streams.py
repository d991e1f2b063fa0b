"""Batches of pictures through the encoder, in order; on several cores at once where the encoder allows it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Barrier
from typing import Any

import torch
from torch import Tensor

from csaligner.checks import CSAlignerError
from csaligner.types import ConcurrentEncoder, Encoder

from .decode_workers import Decoded


def encoded(encoder: Encoder, batches: Iterable[Decoded], streams: int) -> Iterator[tuple[Decoded, Tensor | None]]:
    """Each batch with its features, (B, dim) float32 on the CPU; None where no picture of it can be used.

    streams: batches at a time, each on one core; 1: one after the other, on all of torch's threads. One core a batch
    wastes none: threads of one batch wait for each other, and with processes that decode beside them they wait long.
    """
    if streams <= 1:
        for batch in batches:
            yield batch, _features(encoder, batch)
        return
    with _pool(streams) as pool:
        waiting: deque[tuple[Decoded, Future[Tensor | None]]] = deque()
        try:
            for batch in batches:
                waiting.append((batch, pool.submit(_features, encoder, batch)))
                if len(waiting) > 2 * streams:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def streams_of(encoder: Encoder) -> int:
    """As many as torch has threads, where the encoder says that it may be called from several at once
    (`concurrent = True`: it computes on the CPU and keeps no state), else 1."""
    return torch.get_num_threads() if isinstance(encoder, ConcurrentEncoder) and encoder.concurrent else 1


def encode(encoder: Encoder, prepared: Sequence[Any]) -> Tensor:
    """encoder.encode as float32 on the CPU; CSAlignerError where it returns another shape than it promised."""
    x = encoder.encode(prepared).detach().to("cpu", torch.float32)
    wanted = (len(prepared), encoder.info.dim)
    if x.shape != wanted:
        raise CSAlignerError(f"encoder {encoder.info.id} returned shape {tuple(x.shape)}, wanted {wanted}")
    return x


def _features(encoder: Encoder, batch: Decoded) -> Tensor | None:
    return encode(encoder, batch.prepared) if batch.good else None


def _pool(streams: int) -> ThreadPoolExecutor:
    """Threads for which torch uses one core each; this thread keeps its own number."""
    threads = torch.get_num_threads()
    started = Barrier(streams + 1)

    def start() -> None:
        torch.get_num_threads()  # a thread's first look sets its number to the process's: before ours, not after
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(streams)
    for _ in range(streams):
        pool.submit(start)
    started.wait()
    torch.set_num_threads(threads)
    return pool
