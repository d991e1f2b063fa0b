"""Cleaning of dataset items: captions, duplicates and ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from csaligner.checks import InputError
from csaligner.datasets.clean import clean_items
from csaligner.types import Dataset, Item

Listed = Callable[[Sequence[Item]], Dataset]


def item(image_id: str, image: str, *captions: str) -> Item:
    return Item(image_id, Path(image), captions, group=image_id)


def test_empty_captions_are_dropped_and_counted(listed: Listed) -> None:
    found = clean_items(listed([item("a", "a.png", " x\n y ", "", "  "), item("b", "b.png", ""), item("c", "c.png")]))
    assert [(i.image_id, i.captions) for i in found.items] == [("a", ("x y",))]
    assert found.empty_captions == 3
    assert found.without_caption == ("b", "c")


def test_the_same_picture_twice_is_one_with_all_captions(listed: Listed) -> None:
    found = clean_items(listed([item("a", "a.png", "x"), item("b", "b.png", "y"), item("a", "a.png", "z")]))
    assert [(i.image_id, i.captions) for i in found.items] == [("a", ("x", "z")), ("b", ("y",))]


def test_repeated_captions_stay(listed: Listed) -> None:
    assert clean_items(listed([item("a", "a.png", "x", "x")])).items[0].captions == ("x", "x")


def test_one_id_for_two_pictures(listed: Listed) -> None:
    with pytest.raises(InputError, match=r"'a'.*a\.png.*b\.png"):
        clean_items(listed([item("a", "a.png", "x"), item("a", "b.png", "y")]))


def test_nothing_to_embed(listed: Listed) -> None:
    with pytest.raises(InputError, match=r"^listed"):
        clean_items(listed([]))
    with pytest.raises(InputError, match=r"2.*caption"):
        clean_items(listed([item("a", "a.png", ""), item("b", "b.png")]))
