"""Counts in words, for messages."""

from __future__ import annotations


def count_of(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun, singular for 1. plural: if it is not `noun` + s.

    >>> count_of(1, "image"), count_of(1200, "image"), count_of(2, "index", "indexes")
    ('1 image', '1,200 images', '2 indexes')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def images_and_captions(images: int, captions: int) -> str:
    """Return both numbers in words.

    >>> images_and_captions(1, 5)
    '1 image, 5 captions'
    """
    return f"{count_of(images, 'image')}, {count_of(captions, 'caption')}"


def signed(value: float, digits: int = 1) -> str:
    """Return a number with its sign; a value that rounds to zero has none.

    >>> signed(0.24), signed(-0.04), signed(-1.5)
    ('+0.2', '0.0', '-1.5')
    """
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text
