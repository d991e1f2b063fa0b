"""Encoding of image batches in order, on several cores at once if the encoder allows it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import Any

import torch
from torch import Tensor

from csaligner.checks import CSAlignerError
from csaligner.types import ConcurrentEncoder, EncodedTokens, Encoder, Modality

from .decode_workers import Decoded
from .tokens import token_encoder


def encoded(
    encoder: Encoder, batches: Iterable[Decoded], streams: int, tokens: bool = False
) -> Iterator[tuple[Decoded, EncodedTokens | None]]:
    """Yield each batch with its features, (B, dim) float32 on the CPU, and with `tokens` its tokens; None if none of
    its images can be used.

    streams: number of concurrent batches, each on one core; 1: one batch at a time on all of torch's threads. One core
    per batch is faster, since the threads of one batch wait for each other, above all beside decoding processes.
    """
    if streams <= 1:
        for batch in batches:
            yield batch, _features(encoder, batch, tokens)
        return
    with _pool(streams) as pool:
        waiting: deque[tuple[Decoded, Future[EncodedTokens | None]]] = deque()
        try:
            for batch in batches:
                waiting.append((batch, pool.submit(_features, encoder, batch, tokens)))
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
    """Return torch's number of threads for an encoder that allows concurrent calls (`concurrent = True`: it computes
    on the CPU and has no state), else 1."""
    return torch.get_num_threads() if isinstance(encoder, ConcurrentEncoder) and encoder.concurrent else 1


def encode(encoder: Encoder, prepared: Sequence[Any]) -> Tensor:
    """Call encoder.encode; float32 on the CPU. Raises CSAlignerError if it returns an unexpected shape."""
    return _checked(encoder, encoder.encode(prepared), len(prepared))


def encode_with_tokens(encoder: Encoder, side: Modality, prepared: Sequence[Any]) -> EncodedTokens:
    """Call encoder.encode_with_tokens. Raises InputError if it has no tokens, CSAlignerError as encode."""
    found = token_encoder(encoder, side).encode_with_tokens(prepared)
    return replace(found, features=_checked(encoder, found.features, len(prepared)))


def _checked(encoder: Encoder, x: Tensor, rows: int) -> Tensor:
    x = x.detach().to("cpu", torch.float32)
    wanted = (rows, encoder.info.dim)
    if x.shape != wanted:
        raise CSAlignerError(f"encoder {encoder.info.id} returned shape {tuple(x.shape)}, wanted {wanted}")
    return x


def _features(encoder: Encoder, batch: Decoded, tokens: bool) -> EncodedTokens | None:
    if not batch.good:
        return None
    if tokens:
        return encode_with_tokens(encoder, "image", batch.prepared)
    return EncodedTokens(encode(encoder, batch.prepared), ())


def _pool(streams: int) -> ThreadPoolExecutor:
    """Return a pool of threads with one torch thread each; the calling thread keeps its setting."""
    threads = torch.get_num_threads()
    started = Barrier(streams + 1)

    def start() -> None:
        torch.get_num_threads()  # the first call resets the number to that of the process
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(streams)
    for _ in range(streams):
        pool.submit(start)
    started.wait()
    torch.set_num_threads(threads)
    return pool
