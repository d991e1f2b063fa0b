"""Safety checks of untrusted SVG files: no references to other files, and limits on size and complexity."""

from __future__ import annotations

import base64
import binascii
import gzip
import io
import re
import warnings
from collections.abc import Mapping
from urllib.parse import unquote_to_bytes
from xml.parsers import expat

from PIL import Image

MAX_BYTES = 10_000_000  # the largest of 12,864 drawings in three collections (the reference set) has 1.7 MB
MAX_DEPTH = 64  # nesting of elements, reference set: 13; the renderer's stack overflows below 500
MAX_ELEMENTS = 100_000  # reference set: 12,698
MAX_TEXT = 20_000  # characters; layout time is quadratic in their number
MAX_ENTITIES = 10_000  # characters of all entities, before and after expansion
MAX_FILTERS = 200
MAX_PICTURE = 10_000_000  # pixels of an image inside a drawing
# allowed references: an element of the drawing, or an embedded bitmap
INSIDE = re.compile(r"\s*(#|$|data:image/(png|jpe?g|gif|webp)[;,])", re.IGNORECASE)
REFERENCE = re.compile(r"""(\bhref\s*=\s*)("[^"]*"|'[^']*')""")


def harmless(content: bytes) -> str:
    """Return the text of an SVG or SVGZ without references to other files. Raises ValueError if it is not well-formed
    or exceeds the limits above."""
    content = _unpacked(content)
    if len(content) > MAX_BYTES:
        raise ValueError(f"has {len(content):,} bytes, wanted at most {MAX_BYTES:,}")
    text = REFERENCE.sub(_kept, content.decode("utf-8-sig"))
    _Reader().read(text)
    return text


def _unpacked(content: bytes) -> bytes:
    if content[:2] != b"\x1f\x8b":
        return content
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        return file.read(MAX_BYTES + 1)


def _kept(match: re.Match[str]) -> str:
    return match[0] if INSIDE.match(match[2][1:-1]) else f'{match[1]}""'


class _Reader:
    """Check of all elements with expat, which itself limits the expansion of entities."""

    def __init__(self) -> None:
        self._depth = self._elements = self._text = self._filters = self._entities = 0
        self._parser = expat.ParserCreate("utf-8")
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters
        self._parser.EntityDeclHandler = self._entity

    def read(self, text: str) -> None:
        try:
            self._parser.Parse(text.encode(), True)
        except expat.ExpatError as error:
            raise ValueError(str(error)) from None
        if self._entities and text.count("&") * self._entities > MAX_ENTITIES * 100:
            raise ValueError("its entities expand to too long a text")

    def _start(self, name: str, attributes: Mapping[str, str]) -> None:
        self._depth, self._elements = self._depth + 1, self._elements + 1
        self._filters += "filter" in attributes or "filter:" in attributes.get("style", "")
        _limit(self._depth, MAX_DEPTH, "levels of nested elements")
        _limit(self._elements, MAX_ELEMENTS, "elements")
        _limit(self._filters, MAX_FILTERS, "filters")
        for key, value in attributes.items():
            if key == "href" or key.endswith(":href"):
                _check_reference(value)

    def _end(self, name: str) -> None:
        self._depth -= 1

    def _characters(self, data: str) -> None:
        self._text += len(data.strip())
        _limit(self._text, MAX_TEXT, "characters of text")

    def _entity(self, name: str, is_parameter: int, value: str | None, *more: object) -> None:
        if value is None or is_parameter:
            raise ValueError(f"its entity {name!r} refers to another file")
        if "<" in value or "&" in value:
            raise ValueError(f"its entity {name!r} holds more than text")
        self._entities += len(value)
        _limit(self._entities, MAX_ENTITIES, "characters of entities")


def _check_reference(value: str) -> None:
    """Check the target of a reference, in which entities and character references are already expanded."""
    if not INSIDE.match(value):
        raise ValueError("refers to another file")
    head, comma, content = value.strip().partition(",")
    if not comma or not head.lower().startswith("data:"):
        return
    try:
        data = base64.b64decode(content) if head.lower().endswith("base64") else unquote_to_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "GIF", "WEBP")) as image:
                width, height = image.size
    except (binascii.Error, OSError, SyntaxError, ValueError):
        return  # not an image: the renderer ignores it
    except Image.DecompressionBombError:
        raise ValueError("has an embedded image above Pillow's pixel limit") from None
    _limit(width * height, MAX_PICTURE, "pixels of an embedded image")


def _limit(value: int, most: int, what: str) -> None:
    if value > most:
        raise ValueError(f"has {value:,} {what}, wanted at most {most:,}")
