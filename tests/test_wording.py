"""Counts in messages."""

from __future__ import annotations

import pytest

from csaligner.wording import count_of, images_and_captions, signed


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (12_345, "12,345 images")]
)
def test_one_is_singular(number: int, words: str) -> None:
    assert count_of(number, "image") == words


def test_other_plurals() -> None:
    assert count_of(2, "entry", "entries") == "2 entries"
    assert images_and_captions(1, 2) == "1 image, 2 captions"


@pytest.mark.parametrize(("value", "text"), [(0.26, "+0.3"), (-0.26, "-0.3"), (-0.001, "0.0"), (0.0, "0.0")])
def test_zero_has_no_sign(value: float, text: str) -> None:
    assert signed(value) == text
