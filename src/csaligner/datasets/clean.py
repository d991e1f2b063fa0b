"""Cleaning of dataset items: captions stripped, empty ones counted, ids checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from csaligner.checks import InputError
from csaligner.datasets.images.source import Unusable
from csaligner.types import Dataset, Item, Modality, notes_of
from csaligner.wording import count_of

from .text_files import SURROGATE, escaped, shown, without_surrogates

LONGEST_CAPTION = 100_000  # characters, many times what an encoder reads


@dataclass(frozen=True)
class Cleaned:
    """items: ready to embed; empty_captions: number of captions dropped, empty or not text; without_caption: ids of
    images skipped because they have none; notes: the reader's notes on what it skipped."""

    items: tuple[Item, ...]
    empty_captions: int
    without_caption: tuple[str, ...]
    notes: tuple[str, ...] = ()


def clean_items(dataset: Dataset, sides: Sequence[Modality] = ("image", "text")) -> Cleaned:
    """Strip the captions of a dataset's items, drop empty captions, and merge items of the same id and image.

    Items without a caption are skipped unless only images are wanted. Unusable items stay and are reported with
    the unreadable images. Readers pass a caption that is not text as "".

    Raises InputError for no items, no item with a caption, and one id with two different images.
    """
    merged = merge(dataset.name, readable_items(dataset, dataset.items()))
    items, without, empty = [], [], 0
    for item in merged:
        captions = clean_captions(item)
        empty += len(item.captions) - len(captions)
        if captions or "text" not in sides or (isinstance(item.image, Unusable) and "image" in sides):
            items.append(replace(item, captions=captions))
        else:
            without.append(item.image_id)
    if not items:
        raise InputError(
            f"{dataset.name}: none of its {count_of(len(merged), 'image')} has a caption with words; add captions"
        )
    return Cleaned(tuple(items), empty, tuple(without), notes_of(dataset))


def readable_items(dataset: Dataset, items: Sequence[Item]) -> list[Item]:
    """Return the items with text that can be encoded as UTF-8: a lone surrogate becomes U+FFFD in captions and is
    escaped in ids and groups. Raises InputError, with the reader's notes, if there are no items."""
    if not items:
        more = "".join(f" ({note})" for note in notes_of(dataset))
        raise InputError(f"{dataset.name}: holds no samples; wanted at least one image with a caption{more}")
    return [_readable(item) for item in items]


def clean_captions(item: Item) -> tuple[str, ...]:
    """Return the non-empty captions of an item, each on one line and with at most LONGEST_CAPTION characters."""
    return tuple(text for text in (" ".join(caption.split())[:LONGEST_CAPTION] for caption in item.captions) if text)


def _readable(item: Item) -> Item:
    if not any(map(SURROGATE.search, (item.image_id, item.group, *item.captions))):
        return item
    captions = tuple(map(without_surrogates, item.captions))
    return replace(item, image_id=escaped(item.image_id), group=escaped(item.group), captions=captions)


def merge(name: str, items: Sequence[Item]) -> list[Item]:
    """Merge the items of each id. Raises InputError for one id with two images."""
    by_id: dict[str, Item] = {}
    for item in items:
        first = by_id.get(item.image_id)
        if first is None:
            by_id[item.image_id] = item
        elif first.image != item.image:
            raise InputError(
                f"{name}: the id {shown(item.image_id)} stands for two images, {first.image} and {item.image}; "
                "give each image its own id"
            )
        else:
            by_id[item.image_id] = replace(first, captions=first.captions + item.captions)
    return list(by_id.values())
