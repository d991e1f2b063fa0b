"""Dataset checks: counts and problems of a dataset, before it is embedded."""

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
CHUNK = 64  # images per task of a worker
EXAMPLES = 3


@dataclass(frozen=True)
class CheckedImage:
    """digest: SHA-256 of the encoded bytes, "" if they cannot be read; trouble, reason: "" for a usable image."""

    digest: str
    trouble: Trouble = ""
    reason: str = ""


@dataclass(frozen=True)
class Finding:
    """Number of occurrences, and the first few as examples."""

    count: int = 0
    examples: tuple[str, ...] = ()

    @classmethod
    def of(cls, found: Sequence[str]) -> Finding:
        return cls(len(found), tuple(cut(example) for example in found[:EXAMPLES]))


@dataclass(frozen=True)
class DataReport:
    """splits: images and captions of each. captions_per_image: min, median, max over the images with a caption.

    broken_records, missing, unreadable: images that cannot be used. ids_of_two_pictures: ids of two different images.
    same_pictures: images identical, byte for byte, to an earlier one of another id. leaked_pictures, leaked_captions:
    in train and also in val or test (captions compared without case and without spaces at the ends). long_captions:
    captions of more than max_tokens tokens, if a text encoder was given.
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
        """Names of the findings that should be fixed before training."""
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
    """Decode every image and count every caption of a dataset.

    text_encoder: find the captions that it would truncate; it must have token_count(text) and max_tokens. workers:
    number of processes that decode. Raises InputError for a dataset without samples.
    """
    items = readable_items(dataset, dataset.items())
    images = _inspected([item.image for item in items], workers, progress)
    texts = [[caption.strip() for caption in item.captions if caption.strip()] for item in items]
    counts = [len(found) for found in texts if found]
    lost = {
        kind: [p.reason for p in images if p.trouble == kind] for kind in ("broken record", "missing", "unreadable")
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
        same_pictures=Finding.of(_same(items, images)),
        leaked_pictures=Finding.of(_leaked(zip(items, ([p.digest] for p in images), strict=True), "image")),
        leaked_captions=Finding.of(_leaked(zip(items, texts, strict=True), "caption")),
        max_tokens=limit,
        long_captions=Finding.of(long),
        notes=notes_of(dataset),
    )


class _Images(TorchDataset[list[CheckedImage]]):
    """Indexed by the start of a chunk."""

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self._sources = sources

    def __len__(self) -> int:
        return math.ceil(len(self._sources) / CHUNK)

    def __getitem__(self, chunk: int) -> list[CheckedImage]:
        return [inspect(source) for source in self._sources[chunk * CHUNK : (chunk + 1) * CHUNK]]


def inspect(source: ImageSource) -> CheckedImage:
    """Read and decode one image."""
    if isinstance(source, Unusable):
        return CheckedImage("", "broken record", source.reason)
    if isinstance(source, Path) and not is_file(source):
        return CheckedImage("", "missing", f"{name_of(source)}: no such file")
    try:
        digest = hashlib.sha256(read_bytes(source)).hexdigest()
    except ImageError as error:
        return CheckedImage("", "unreadable", str(error))
    try:
        load_image(source)
    except ImageError as error:
        return CheckedImage(digest, "unreadable", str(error))
    return CheckedImage(digest)


def _inspected(
    sources: Sequence[ImageSource], workers: int, progress: Callable[[int, int], object] | None
) -> list[CheckedImage]:
    found: list[CheckedImage] = []
    images = _Images(sources)
    loader: DataLoader[Any] = DataLoader(
        images, batch_size=None, num_workers=min(workers, len(images)), collate_fn=_identity
    )
    for chunk in loader:
        found += chunk
        if progress is not None:
            progress(len(found), len(sources))
    return found


def _identity(value: Any) -> Any:
    return value


def _splits(items: Sequence[Item], texts: Sequence[Sequence[str]]) -> dict[Split, tuple[int, int]]:
    images, captions = Counter[Split](), Counter[Split]()
    for item, found in zip(items, texts, strict=True):
        split = item_split(item)
        images[split] += not isinstance(item.image, Unusable)
        captions[split] += len(found)
    return {split: (images[split], captions[split]) for split in SPLITS if images[split] or captions[split]}


def _twice(items: Sequence[Item]) -> list[str]:
    images: defaultdict[str, set[ImageSource]] = defaultdict(set)
    for item in items:
        images[item.image_id].add(item.image)
    return [image_id for image_id, sources in images.items() if len(sources) > 1]


def _same(items: Sequence[Item], images: Sequence[CheckedImage]) -> list[str]:
    first: dict[str, str] = {}
    found = []
    for item, image in zip(items, images, strict=True):
        other = first.setdefault(image.digest, item.image_id)
        if image.digest and other != item.image_id:
            found.append(f"{item.image_id} is {other}")
    return found


def _leaked(marked: Iterable[tuple[Item, Sequence[str]]], what: Literal["image", "caption"]) -> list[str]:
    """Images (named by one id per split) or captions that are in train and also in another split."""
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
