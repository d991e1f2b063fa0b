"""Colour images of 16 bits per channel, of which Pillow keeps only the high bytes."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

DEEP = ("RGB;16", "RGBA;16")  # raw modes of Pillow's decoders, followed by the byte order: B, L or N (native)
LOW = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}  # the order whose high byte is the low byte


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
    high = np.asarray(image)[..., :3]
    if high.max(initial=0) >= 128:  # all 16 bits: the high bytes are the image
        return
    if isinstance(file, io.BytesIO):
        file.seek(0)
    with Image.open(file, formats=[str(image.format)]) as again:
        again.tile = tiles
        again.load()
        low = np.asarray(again)[..., :3]
    colours = Image.fromarray(eight_bits((high.astype(np.uint16) << 8) | low))
    if image.mode == "RGBA":
        colours.putalpha(image.getchannel("A"))
    image.paste(colours)


def eight_bits(values: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint8]:
    """Scale 9 to 16 bits: v * 255 / (2^b - 1), b = number of bits of the largest value; 8 bits are unchanged."""
    bits = max(8, int(values.max(initial=0)).bit_length())
    return (values.astype(np.uint32) * 255 // ((1 << bits) - 1)).astype(np.uint8)
