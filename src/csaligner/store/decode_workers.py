"""Image decoding in worker processes, ahead of the encoder."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from csaligner.checks import CSAlignerError
from csaligner.datasets.images.load import ImageError, load_image, to_rgb
from csaligner.types import Encoder, EncoderInfo, Item, Modality

DEFAULT_SIZE = 224  # pixels per side, for an encoder without a size


@dataclass(frozen=True)
class Decoded:
    """good: item numbers; prepared: one entry per good item, stacked if they are tensors of one shape; bad: number ->
    reason."""

    good: tuple[int, ...]
    prepared: Sequence[Any]
    bad: dict[int, str]


def decoded_batches(
    items: Sequence[Item], encoder: Encoder, batches: Sequence[Sequence[int]], workers: int
) -> Iterator[Decoded]:
    """Yield one Decoded per batch of item numbers, in order.

    workers: number of processes; 0: decode in this process. Raises CSAlignerError if a worker dies (out of memory,
    killed).
    """
    loader: DataLoader[Any] = DataLoader(
        _Images(items, encoder),
        sampler=batches,
        batch_size=None,
        num_workers=min(workers, len(batches)),
        collate_fn=_identity,
        worker_init_fn=_ignore_interrupts,
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise CSAlignerError(
            "embed: a worker process that decodes images died; finished shards are kept, "
            "run it again with workers = 0 to resume with less memory"
        ) from error


def prepared(encoder: Encoder, item: Any, side: Modality) -> Any:
    """What the encoder takes of a text or an image (ImageSource or PIL): the same pixels on every route of the package.

    Raises ImageError for an image that cannot be read.
    """
    if side == "text":
        return encoder.prepare(item)
    image = to_rgb(item) if isinstance(item, Image.Image) else load_image(item, wanted_size(encoder.info))
    return encoder.prepare(image)


def wanted_size(info: EncoderInfo) -> int:
    """Pixels of a side that an image encoder wants: drawings are drawn at it, large JPEGs decoded at twice that."""
    return int(info.preprocessing.get("size", DEFAULT_SIZE))


class _Images(Dataset[Decoded]):
    """Dataset indexed by batches of item numbers."""

    def __init__(self, items: Sequence[Item], encoder: Encoder) -> None:
        self._items, self._encoder = items, encoder

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, batch: Sequence[int]) -> Decoded:
        ready = {i: self._one(self._items[i]) for i in batch}
        good = tuple(i for i in batch if not isinstance(ready[i], ImageError))
        bad = {i: str(ready[i]) for i in batch if isinstance(ready[i], ImageError)}
        return Decoded(good, _stacked([ready[i] for i in good]), bad)

    def _one(self, item: Item) -> Any:
        """Return the prepared image, or the ImageError that explains why there is none."""
        try:
            return prepared(self._encoder, item.image, "image")
        except ImageError as error:
            return error


def _stacked(prepared: list[Any]) -> Sequence[Any]:
    """Stack equal tensors: one tensor is sent in one block of shared memory, a list in one block per entry."""
    if prepared and all(isinstance(p, Tensor) and p.shape == prepared[0].shape for p in prepared):
        return torch.stack(prepared)  # type: ignore[return-value]  # a tensor is a sequence of its rows
    return prepared


def _identity(value: Any) -> Any:
    return value


def _ignore_interrupts(_: int) -> None:
    """Ignore Ctrl-C in a worker; the main process handles it and ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
