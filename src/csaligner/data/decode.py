"""Pictures decoded in worker processes, ahead of the encoder."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from csaligner.checks import CSAlignerError
from csaligner.types import Encoder, Item

from .images import ImageError, load_image

DEFAULT_SIZE = 224


@dataclass(frozen=True)
class Decoded:
    """good: item numbers; prepared: one entry each, stacked where they are tensors of one shape; bad: number ->
    reason; last: the highest number of the batch."""

    good: tuple[int, ...]
    prepared: Sequence[Any]
    bad: dict[int, str]
    last: int


def decoded_batches(
    items: Sequence[Item], encoder: Encoder, batches: Sequence[Sequence[int]], workers: int
) -> Iterator[Decoded]:
    """One Decoded per batch of item numbers, in order.

    workers: processes; 0 decodes in this one. A worker that dies (out of memory, killed) is a CSAlignerError.
    """
    loader: DataLoader[Any] = DataLoader(
        _Pictures(items, encoder),
        sampler=batches,
        batch_size=None,
        num_workers=min(workers, len(batches)),
        collate_fn=_as_it_is,
        worker_init_fn=_ignore_interrupts,
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise CSAlignerError(
            "embed: a process that decodes pictures died; finished shards are safe, "
            "the same call with workers = 0 goes on and needs less memory"
        ) from error


class _Pictures(Dataset[Decoded]):
    """Indexed by whole batches of item numbers."""

    def __init__(self, items: Sequence[Item], encoder: Encoder) -> None:
        self._items, self._encoder = items, encoder
        self._size = int(encoder.info.preprocessing.get("size", DEFAULT_SIZE))

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, batch: Sequence[int]) -> Decoded:
        ready = {i: self._one(self._items[i]) for i in batch}
        good = tuple(i for i in batch if not isinstance(ready[i], ImageError))
        bad = {i: str(ready[i]) for i in batch if isinstance(ready[i], ImageError)}
        return Decoded(good, _stacked([ready[i] for i in good]), bad, batch[-1])

    def _one(self, item: Item) -> Any:
        """What the encoder wants of the picture, or the ImageError that says why there is none."""
        try:
            return self._encoder.prepare(load_image(item.image, self._size))
        except ImageError as error:
            return error


def _stacked(prepared: list[Any]) -> Sequence[Any]:
    """One tensor travels between processes in one piece of shared memory, a list in as many as it is long."""
    if prepared and all(isinstance(p, Tensor) and p.shape == prepared[0].shape for p in prepared):
        return torch.stack(prepared)  # type: ignore[return-value]  # a tensor is a sequence of its rows
    return prepared


def _as_it_is(value: Any) -> Any:
    return value


def _ignore_interrupts(_: int) -> None:
    """Ctrl-C is for the main process, which then ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
