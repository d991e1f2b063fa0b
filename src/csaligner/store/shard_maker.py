"""Creation of shards from items: the inner loop of `embed`, in any process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from csaligner.checks import InputError
from csaligner.datasets.images.source import to_uri
from csaligner.datasets.split import item_split
from csaligner.types import EncodedTokens, Encoder, Item, TruncatingEncoder

from .decode_workers import Decoded, decoded_batches
from .manifest import Skipped
from .shard_files import Array, ShardRows, write_shard
from .shard_records import Part, write_part
from .streams import encode, encode_with_tokens, encoded, streams_of
from .tokens import ShardTokens

Batches = Iterator[tuple[Decoded, EncodedTokens | None]]
ProgressCallback = Callable[[int, int], object]  # (images done, total)


@dataclass(frozen=True)
class Encoders:
    """Encoders of images and texts; None: do not embed that modality. At least one is given."""

    image: Encoder | None
    text: Encoder | None


@dataclass(frozen=True)
class Work:
    """Inputs that determine the bytes of a shard (items, encoders, shard_size, dtype), and settings of its creation.

    tokens: also write the tokens of each item, at most this many, from the same forward pass."""

    items: Sequence[Item]
    encoders: Encoders
    out: Path
    shard_size: int
    dtype: str
    batch_size: int
    workers: int
    tokens: int | None = None

    def run(self, numbers: Sequence[int], report: ProgressCallback | None = None) -> Iterator[Part]:
        """Make these shards and yield the record of each after it is written. report: progress over their items."""
        shards = [self.range_of(number) for number in numbers]
        total = sum(map(len, shards))
        progress = _Progress(total, report)
        encoder = self.encoders.image
        streams = streams_of(encoder) if encoder else 1
        batches = encoded(encoder, self._batches(shards), streams, self.tokens is not None) if encoder else iter(())
        with _fewer_threads(self.workers if encoder and streams == 1 else 0):
            for number, shard in zip(numbers, shards, strict=True):
                before = self._truncated()
                tokens = ShardTokens(self.tokens) if self.tokens is not None else None
                rows, skipped = self._shard(shard, batches, progress, tokens)
                if tokens is not None:
                    tokens.write(self.out, number)
                made = write_shard(self.out, number, rows, self.dtype)
                part = Part(replace(made, truncated=self._truncated() - before), tuple(skipped))
                write_part(self.out, number, part)
                yield part

    def range_of(self, number: int) -> range:
        start = number * self.shard_size
        return range(start, min(start + self.shard_size, len(self.items)))

    def _batches(self, shards: Sequence[range]) -> Iterator[Decoded]:
        assert self.encoders.image is not None
        size = self.batch_size
        index = [list(shard[start : start + size]) for shard in shards for start in range(0, len(shard), size)]
        return decoded_batches(self.items, self.encoders.image, index, self.workers)

    def _shard(
        self, shard: range, batches: Batches, progress: _Progress, tokens: ShardTokens | None
    ) -> tuple[ShardRows, list[Skipped]]:
        encoder = self.encoders.image
        if encoder is None:
            used = [self.items[i] for i in shard]
            progress.add(len(shard))
            return ShardRows(None, self._texts(used, tokens), _metadata(used, per_caption=True)), []
        features: list[Tensor] = []
        good: list[Item] = []
        skipped: list[Skipped] = []
        for batch, found in islice(batches, math.ceil(len(shard) / self.batch_size)):
            bad = dict(batch.bad)
            if found is not None:
                finite = torch.isfinite(found.features).all(dim=1)
                broken = [i for i, ok in zip(batch.good, finite.tolist(), strict=True) if not ok]
                bad |= {i: f"{self.items[i].image}: its features are NaN or infinite" for i in broken}
                features.append(found.features[finite])
                usable = [self.items[i] for i in batch.good if i not in bad]
                good += usable
                if tokens is not None:
                    kept = [t for t, ok in zip(found.tokens, finite.tolist(), strict=True) if ok]
                    tokens.add(
                        "image", EncodedTokens(features[-1], kept), [item.image for item in usable], encoder.info
                    )
            skipped += [Skipped(self.items[i].image_id, str(self.items[i].image), bad[i]) for i in sorted(bad)]
            progress.add(len(batch.good) + len(batch.bad))
        image = torch.cat([torch.empty(0, encoder.info.dim), *features])
        if self.encoders.text is None:
            return ShardRows(image.numpy(), None, _metadata(good, per_caption=False)), skipped
        repeats = torch.tensor([len(item.captions) for item in good], dtype=torch.int64)
        rows = ShardRows(
            image.repeat_interleave(repeats, dim=0).numpy(),
            self._texts(good, tokens),
            _metadata(good, per_caption=True),
        )
        return rows, skipped

    def _truncated(self) -> int:
        """Return the number of texts truncated so far; 0 for encoders that do not count them."""
        encoder = self.encoders.text
        return encoder.truncated if isinstance(encoder, TruncatingEncoder) else 0

    def _texts(self, used: Sequence[Item], tokens: ShardTokens | None) -> Array:
        encoder = self.encoders.text
        assert encoder is not None
        captions = [caption for item in used for caption in item.captions]
        if not captions:
            return torch.empty(0, encoder.info.dim).numpy()
        ready = [encoder.prepare(caption) for caption in captions]
        if tokens is None:
            text = encode(encoder, ready)
        else:
            found = encode_with_tokens(encoder, "text", ready)
            text = found.features
            tokens.add("text", found, captions, encoder.info)
        finite = torch.isfinite(text).all(dim=1)
        if not bool(finite.all()):
            caption = captions[int((~finite).nonzero()[0])]
            raise InputError(f"text_encoder: {encoder.info.id} gives NaN or infinity for {caption!r}")
        return text.numpy()


class _Progress:
    def __init__(self, total: int, report: ProgressCallback | None) -> None:
        self._done, self._total, self._report = 0, total, report
        self.add(0)

    def add(self, n: int) -> None:
        self._done += n
        if self._report is not None:
            self._report(self._done, self._total)


def _metadata(used: Sequence[Item], *, per_caption: bool) -> list[tuple[str, ...]]:
    return [
        (item.image_id, caption, to_uri(item.image), item_split(item), item.group)
        for item in used
        for caption in (item.captions if per_caption else ("",))
    ]


@contextmanager
def _fewer_threads(workers: int) -> Iterator[None]:
    """Leave cores to the workers: torch's threads wait for each other, so one thread without a core delays all."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - workers))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
