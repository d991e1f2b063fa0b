"""Large batches through encoders that do not fit: the features of all rows, the activations of a few.

The loss needs the features of the whole batch, which are small; it is the encoder's activations that fill the memory.
So they are thrown away after the forward pass of each chunk and made again, chunk by chunk, in the backward pass
(GradCache, Gao et al. 2021, arXiv 2101.06983). Gradient accumulation is no substitute: it averages small losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from csaligner.checks import InputError

Encode = Callable[[Any], Tensor]


def cached_features(encode: Encode, inputs: Any, chunk_size: int) -> Tensor:
    """torch.cat([encode(chunk) for chunk in chunks of inputs]), with the activations of one chunk in memory at a time.

        loss(cached_features(image_tower, pixels, 32), cached_features(text_tower, tokens, 32), scale).total.backward()

    encode: anything that maps a chunk of n inputs to (n, d) and treats rows alone; a bound method or a function will
    do, and it may be a DistributedDataParallel module. inputs: a tensor of N rows, a list or tuple of N items, or a
    mapping of such (what a tokenizer returns). chunk_size: rows in a chunk, at least 1. Returns (N, d), for any loss;
    call backward on it as usual. Each chunk is encoded once forward and once more in backward, under the random state
    and the autocast settings of the first time, so that values and gradients are those of the line above, dropout
    included. Where chunks and the whole batch draw the same random numbers, or none, they are those of the whole batch.
    Layers that look across rows (batch normalisation in training) see chunks instead. DistributedDataParallel
    with broadcast_buffers talks to the other ranks in every forward pass: give each rank as many chunks, or switch it
    off. Raises InputError.
    """
    if chunk_size < 1:
        raise InputError(f"chunk_size: got {chunk_size}, wanted at least 1 row")
    rows = _rows(inputs)
    if rows == 0:
        raise InputError("inputs: no rows; give at least one")
    # checkpoint keeps the random state of the devices of its arguments; an encoder may move texts to a GPU itself.
    witness = torch.empty(0, device="cuda") if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    parts = [
        checkpoint(lambda chunk, _: encode(chunk), chunk, witness, use_reentrant=False)
        for chunk in _chunks(inputs, rows, chunk_size)
    ]
    for part, start in zip(parts, range(0, rows, chunk_size), strict=True):
        expected = min(chunk_size, rows - start)
        if not isinstance(part, Tensor) or part.ndim != 2 or len(part) != expected:
            got = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
            raise InputError(f"encode: returned {got} for {expected} inputs, wanted a tensor ({expected}, d)")
    return torch.cat(parts)


def _rows(inputs: Any) -> int:
    if not isinstance(inputs, Mapping):
        return len(inputs)
    lengths = {len(value) for value in inputs.values()}
    if len(lengths) != 1:
        raise InputError(f"inputs: the entries hold {sorted(lengths)} rows; wanted as many in each")
    return lengths.pop()


def _chunks(inputs: Any, rows: int, size: int) -> Iterator[Any]:
    for start in range(0, rows, size):
        if isinstance(inputs, Mapping):
            yield {name: value[start : start + size] for name, value in inputs.items()}
        else:
            yield inputs[start : start + size]
