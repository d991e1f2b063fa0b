"""Gradient caching: contrastive training with batches larger than the encoder's activations allow.

The loss needs the features of the whole batch, which are small; the memory is filled by the encoder's activations.
They are discarded after the forward pass of each chunk and recomputed, chunk by chunk, in the backward pass
(GradCache, Gao et al. 2021, arXiv 2101.06983). Gradient accumulation is not equivalent: it averages the losses of small
batches.
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

    encode: a callable that maps a chunk of n inputs to (n, d), row by row; it may be a DistributedDataParallel module.
    inputs: a tensor of N rows, a list or tuple of N items, or a mapping of these (as returned by a tokenizer).
    chunk_size: rows per chunk, at least 1. Returns (N, d), for any loss; call backward on it as usual. Each chunk is
    encoded once in forward and once in backward, with the same RNG state and autocast settings, so values and gradients
    equal those of the expression above, including dropout. Without randomness they equal those of the whole batch.
    Layers that combine rows (batch normalisation in training mode) operate on chunks. DistributedDataParallel with
    broadcast_buffers communicates in every forward pass: use the same number of chunks on each rank, or disable it.
    Raises InputError.
    """
    if chunk_size < 1:
        raise InputError(f"chunk_size: got {chunk_size}, wanted at least 1 row")
    rows = _rows(inputs)
    if rows == 0:
        raise InputError("inputs: got no rows, wanted at least one")
    # checkpoint saves the RNG state of the devices of its arguments; an encoder may move texts to a GPU itself.
    cuda_marker = torch.empty(0, device="cuda") if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    parts = [
        checkpoint(lambda chunk, _: encode(chunk), chunk, cuda_marker, use_reentrant=False)
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
        raise InputError(f"inputs: the entries have {sorted(lengths)} rows; wanted the same number in each")
    return lengths.pop()


def _chunks(inputs: Any, rows: int, size: int) -> Iterator[Any]:
    for start in range(0, rows, size):
        if isinstance(inputs, Mapping):
            yield {name: value[start : start + size] for name, value in inputs.items()}
        else:
            yield inputs[start : start + size]
