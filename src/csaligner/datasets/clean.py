"""The door that every dataset passes: captions cleaned, empty ones counted, ids checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from csaligner.checks import InputError
from csaligner.datasets.images.source import Unusable
from csaligner.types import Dataset, Item, Modality, notes_of

from .text_files import SURROGATE, escaped, shown, without_surrogates


@dataclass(frozen=True)
class Cleaned:
    """items: ready to embed; empty_captions: dropped, with those that are not text; without_caption: ids of pictures
    left out for want of one; notes: what the reader says about what it left out."""

    items: tuple[Item, ...]
    empty_captions: int
    without_caption: tuple[str, ...]
    notes: tuple[str, ...] = ()


def clean_items(dataset: Dataset, sides: Sequence[Modality] = ("image", "text")) -> Cleaned:
    """Items with their captions stripped and empty captions dropped; the same id with the same picture is merged.

    Items without a caption are left out unless the image side alone is wanted. Unusable ones stay, to be listed
    with the pictures that cannot be read. A caption that is not text reaches here as "".

    Raises InputError for no items, no item with a caption, and one id with two different pictures.
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
        raise InputError(f"{dataset.name}: none of its {len(merged)} pictures has a caption that is not empty")
    return Cleaned(tuple(items), empty, tuple(without), notes_of(dataset))


def readable_items(dataset: Dataset, items: Sequence[Item]) -> list[Item]:
    """The items with text that every file can hold: in captions a lone surrogate becomes U+FFFD, in ids and groups it
    is escaped. Raises InputError where there are none, with what the reader ignored."""
    if not items:
        more = "".join(f" ({note})" for note in notes_of(dataset))
        raise InputError(f"{dataset.name}: holds no samples; wanted at least one image with a caption{more}")
    return [_readable(item) for item in items]


def clean_captions(item: Item) -> tuple[str, ...]:
    """Captions on one line each, without those that are empty."""
    return tuple(text for text in (" ".join(caption.split()) for caption in item.captions) if text)


def _readable(item: Item) -> Item:
    if not any(map(SURROGATE.search, (item.image_id, item.group, *item.captions))):
        return item
    captions = tuple(map(without_surrogates, item.captions))
    return replace(item, image_id=escaped(item.image_id), group=escaped(item.group), captions=captions)


def merge(name: str, items: Sequence[Item]) -> list[Item]:
    """Items of one id and one image made one. Raises InputError for one id with two images."""
    by_id: dict[str, Item] = {}
    for item in items:
        first = by_id.get(item.image_id)
        if first is None:
            by_id[item.image_id] = item
        elif first.image != item.image:
            raise InputError(
                f"{name}: the id {shown(item.image_id)} stands for two pictures, {first.image} and {item.image}; "
                "give each picture its own id"
            )
        else:
            by_id[item.image_id] = replace(first, captions=first.captions + item.captions)
    return list(by_id.values())
