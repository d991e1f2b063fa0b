"""Batch prefetching in a thread, and measurement of the time spent waiting for data."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from csaligner.types import Batch


def read_ahead(batches: Iterator[Batch], depth: int) -> Iterator[Batch]:
    """Yield the same batches in the same order; a thread prefetches up to `depth` of them. 0: no thread."""
    if depth == 0:
        yield from batches
        return
    with ThreadPoolExecutor(1) as thread:
        ready = deque(thread.submit(next, batches, None) for _ in range(depth))
        while (batch := ready.popleft().result()) is not None:
            ready.append(thread.submit(next, batches, None))
            yield batch


class Waiting:
    """Total time spent waiting for the batches of an iterator."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def over(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.seconds += time.perf_counter() - started
            if batch is None:
                return
            yield batch
