"""What is in a dataset, and what is wrong with it, before anything is embedded."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from csaligner.checks import InputError
from csaligner.datasets.images.load import ImageError, is_file, load_image, name_of, read_bytes
from csaligner.datasets.images.source import Unusable
from csaligner.types import SPLITS, Dataset, Encoder, ImageSource, Item, Split, TokenCounter, notes_of

from .clean import readable_items
from .split import item_split
from .text_files import SHOWN, cut

Trouble = Literal["", "broken record", "missing", "unreadable"]
CHUNK = 64  # pictures that a worker takes at once
EXAMPLES = 3


@dataclass(frozen=True)
class Picture:
    """digest: SHA-256 of the encoded bytes, "" where they cannot be had; trouble and reason: "" for a good one."""

    digest: str
    trouble: Trouble = ""
    reason: str = ""


@dataclass(frozen=True)
class Finding:
    """How often, and the first few."""

    count: int = 0
    examples: tuple[str, ...] = ()

    @classmethod
    def of(cls, found: Sequence[str]) -> Finding:
        return cls(len(found), tuple(cut(example) for example in found[:EXAMPLES]))


@dataclass(frozen=True)
class DataReport:
    """splits: images and captions of each. captions_per_image: min, median, max over the pictures with a caption.

    broken_records, missing, unreadable: pictures that cannot be had. ids_of_two_pictures: one id, other pictures.
    same_pictures: byte-identical to an earlier one of another id. leaked_pictures, leaked_captions: in train and in
    val or test too (captions compared without case and spaces at the ends). long_captions: of more tokens than
    max_tokens, where a text encoder was given.
    """

    dataset: str
    images: int
    captions: int
    splits: Mapping[Split, tuple[int, int]]
    captions_per_image: tuple[float, float, float]
    without_caption: int
    empty_captions: int
    broken_records: Finding
    missing: Finding
    unreadable: Finding
    ids_of_two_pictures: Finding
    same_pictures: Finding
    leaked_pictures: Finding
    leaked_captions: Finding
    max_tokens: int | None = None
    long_captions: Finding = field(default_factory=Finding)
    notes: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """What should be mended before training: names of the findings."""
        serious = ("broken_records", "missing", "unreadable", "ids_of_two_pictures", "leaked_pictures")
        return tuple(name for name in serious if getattr(self, name).count)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"problems": list(self.problems)}


def check_data(
    dataset: Dataset,
    text_encoder: Encoder | None = None,
    workers: int = 2,
    progress: Callable[[int, int], object] | None = None,
) -> DataReport:
    """Read everything once: every picture is decoded, every caption counted.

    text_encoder: tells which captions it would cut off; it must have token_count(text) and max_tokens. workers:
    processes that decode. Raises InputError where there is not one sample.
    """
    items = readable_items(dataset, dataset.items())
    pictures = _inspected([item.image for item in items], workers, progress)
    texts = [[caption.strip() for caption in item.captions if caption.strip()] for item in items]
    counts = [len(found) for found in texts if found]
    lost = {
        kind: [p.reason for p in pictures if p.trouble == kind] for kind in ("broken record", "missing", "unreadable")
    }
    limit, long = _too_long(text_encoder, (caption for found in texts for caption in found))
    usable = [not isinstance(item.image, Unusable) for item in items]
    return DataReport(
        dataset=dataset.name,
        images=sum(usable),
        captions=sum(counts),
        splits=_splits(items, texts),
        captions_per_image=(min(counts, default=0), float(median(counts or [0])), max(counts, default=0)),
        without_caption=sum(not found for found, ok in zip(texts, usable, strict=True) if ok),
        empty_captions=sum(len(item.captions) for item in items) - sum(counts),
        broken_records=Finding.of(lost["broken record"]),
        missing=Finding.of(lost["missing"]),
        unreadable=Finding.of(lost["unreadable"]),
        ids_of_two_pictures=Finding.of(_twice(items)),
        same_pictures=Finding.of(_same(items, pictures)),
        leaked_pictures=Finding.of(_leaked(zip(items, ([p.digest] for p in pictures), strict=True), "image")),
        leaked_captions=Finding.of(_leaked(zip(items, texts, strict=True), "caption")),
        max_tokens=limit,
        long_captions=Finding.of(long),
        notes=notes_of(dataset),
    )


class _Pictures(TorchDataset[list[Picture]]):
    """Indexed by the start of a chunk."""

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self._sources = sources

    def __len__(self) -> int:
        return math.ceil(len(self._sources) / CHUNK)

    def __getitem__(self, chunk: int) -> list[Picture]:
        return [inspect(source) for source in self._sources[chunk * CHUNK : (chunk + 1) * CHUNK]]


def inspect(source: ImageSource) -> Picture:
    """Read and decode one picture."""
    if isinstance(source, Unusable):
        return Picture("", "broken record", source.reason)
    if isinstance(source, Path) and not is_file(source):
        return Picture("", "missing", f"{name_of(source)}: no such file")
    try:
        digest = hashlib.sha256(read_bytes(source)).hexdigest()
    except ImageError as error:
        return Picture("", "unreadable", str(error))
    try:
        load_image(source)
    except ImageError as error:
        return Picture(digest, "unreadable", str(error))
    return Picture(digest)


def _inspected(
    sources: Sequence[ImageSource], workers: int, progress: Callable[[int, int], object] | None
) -> list[Picture]:
    found: list[Picture] = []
    pictures = _Pictures(sources)
    loader: DataLoader[Any] = DataLoader(
        pictures, batch_size=None, num_workers=min(workers, len(pictures)), collate_fn=_as_it_is
    )
    for chunk in loader:
        found += chunk
        if progress is not None:
            progress(len(found), len(sources))
    return found


def _as_it_is(value: Any) -> Any:
    return value


def _splits(items: Sequence[Item], texts: Sequence[Sequence[str]]) -> dict[Split, tuple[int, int]]:
    images, captions = Counter[Split](), Counter[Split]()
    for item, found in zip(items, texts, strict=True):
        split = item_split(item)
        images[split] += not isinstance(item.image, Unusable)
        captions[split] += len(found)
    return {split: (images[split], captions[split]) for split in SPLITS if images[split] or captions[split]}


def _twice(items: Sequence[Item]) -> list[str]:
    pictures: defaultdict[str, set[ImageSource]] = defaultdict(set)
    for item in items:
        pictures[item.image_id].add(item.image)
    return [image_id for image_id, sources in pictures.items() if len(sources) > 1]


def _same(items: Sequence[Item], pictures: Sequence[Picture]) -> list[str]:
    first: dict[str, str] = {}
    found = []
    for item, picture in zip(items, pictures, strict=True):
        other = first.setdefault(picture.digest, item.image_id)
        if picture.digest and other != item.image_id:
            found.append(f"{item.image_id} is {other}")
    return found


def _leaked(marked: Iterable[tuple[Item, Sequence[str]]], what: Literal["image", "caption"]) -> list[str]:
    """Pictures (told by an id in each split) or captions that are in train and elsewhere too."""
    seen: defaultdict[str, dict[Split, str]] = defaultdict(dict)
    for item, marks in marked:
        for mark in filter(None, marks):
            seen[mark.casefold()].setdefault(item_split(item), cut(item.image_id if what == "image" else mark, SHOWN))
    both = [found for found in seen.values() if "train" in found and len(found) > 1]
    return [", ".join(f"{name} ({split})" for split, name in found.items()) for found in both]


def _too_long(encoder: Encoder | None, captions: Iterable[str]) -> tuple[int | None, list[str]]:
    if encoder is None:
        return None, []
    if not isinstance(encoder, TokenCounter):
        raise InputError(f"text_encoder: {encoder.info.id} does not count tokens; choose one that does")
    return encoder.max_tokens, [caption for caption in captions if encoder.token_count(caption) > encoder.max_tokens]
