"""Colour images of 16 bits per channel, of which Pillow keeps only the high bytes."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

DEEP = ("RGB;16", "RGBA;16")  # raw modes of Pillow's decoders, followed by the byte order: B, L or N (native)
LOW = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}  # the order whose high byte is the low byte

STRIP = 1 << 20  # numbers that are converted at once


def low_byte_tiles(image: Image.Image) -> list[Any] | None:
    """Return the tiles of an opened image with raw modes that decode the low bytes; None unless it is RGB or RGBA of 16
    bits per channel."""
    tiles = getattr(image, "tile", None)
    if image.mode not in ("RGB", "RGBA") or not tiles:
        return None
    found = []
    for tile in tiles:
        codec, extents, offset, arguments = tile
        rest = () if isinstance(arguments, str) else arguments[1:]
        raw = arguments if isinstance(arguments, str) else next(iter(arguments or ("",)))
        if not isinstance(raw, str) or raw[:-1] not in DEEP or raw[-1] not in LOW:
            return None
        low = raw[:-1] + LOW[raw[-1]]
        found.append(type(tile)(codec, extents, offset, low if isinstance(arguments, str) else (low, *rest)))
    return found


def restore_bits(image: Image.Image, tiles: list[Any], file: Path | io.BytesIO) -> None:
    """Scale the colours of a loaded image, in place, if they use fewer than 16 bits (see eight_bits)."""
    highest = max(high for _, high in _colours(image).getextrema())  # type: ignore[misc]  # a pair for each colour
    if highest >= 128:  # all 16 bits: the high bytes are the image
        return
    if isinstance(file, io.BytesIO):
        file.seek(0)
    with Image.open(file, formats=[str(image.format)]) as again:
        again.tile = tiles
        again.load()
        most = max(int(_both(*pair).max(initial=0)) for *pair, _ in _pairs(image, again))
        for high, low, top in _pairs(image, again):
            strip = Image.fromarray(eight_bits(_both(high, low), most))
            if image.mode == "RGBA":
                strip.putalpha(image.getchannel("A").crop((0, top, image.width, top + strip.height)))
            image.paste(strip, (0, top))


def eight_bits(values: npt.NDArray[np.uint16], most: int | None = None) -> npt.NDArray[np.uint8]:
    """Scale 9 to 16 bits: v * 255 / (2^b - 1), b = number of bits of the largest value, `most` if these are not all
    values; 8 bits are unchanged."""
    bits = max(8, (int(values.max(initial=0)) if most is None else most).bit_length())
    return (values.astype(np.uint32) * 255 // ((1 << bits) - 1)).astype(np.uint8)


def strips(image: Image.Image) -> Iterator[tuple[npt.NDArray[Any], int]]:
    """Yield the pixels in arrays of at most STRIP numbers, each with the number of its first row."""
    rows = max(1, STRIP // max(1, image.width * len(image.getbands())))
    for top in range(0, image.height, rows):
        yield np.asarray(image.crop((0, top, image.width, min(top + rows, image.height)))), top


def in_strips(image: Image.Image, scaled: Callable[[npt.NDArray[Any]], npt.NDArray[np.uint8]]) -> Image.Image:
    """Return the grey image of a function of each pixel, which needs little memory at once."""
    grey = Image.new("L", image.size)
    for values, top in strips(image):
        grey.paste(Image.fromarray(scaled(values)), (0, top))
    return grey


def _pairs(image: Image.Image, again: Image.Image) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any], int]]:
    for (high, top), (low, _) in zip(strips(image), strips(again), strict=True):
        yield high[..., :3], low[..., :3], top


def _both(high: npt.NDArray[Any], low: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    return (high.astype(np.uint16) << 8) | low  # type: ignore[no-any-return]


def _colours(image: Image.Image) -> Image.Image:
    return image.convert("RGB") if image.mode == "RGBA" else image
