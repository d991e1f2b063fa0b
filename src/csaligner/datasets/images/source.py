"""Image sources other than files: parts of larger files, unusable records, and the URIs of all sources."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

from csaligner.types import ImageSource

from .hf_cell import SavedCell
from .load import MAX_ENCODED, ImageError
from .parquet_cell import Cell

ENCODED = "file:"
CELL = re.compile(r"(?P<file>.+\.parquet)#(?P<column>.+)\[(?P<row>\d+)\]", re.DOTALL | re.IGNORECASE)
SAVED = re.compile(r"(?P<folder>.+)#datasets:(?P<part>[^/]*)/(?P<column>.+)\[(?P<row>\d+)\]", re.DOTALL)
PART = re.compile(r"(?P<file>.+)#(?P<name>[^#]+)@(?P<offset>\d+)\+(?P<size>\d+)", re.DOTALL)


@dataclass(frozen=True)
class FilePart:
    """`size` bytes of `file` from `offset` on, for example a member of a tar.

    digest: SHA-256 of the bytes if `file` is temporary, else "".
    """

    file: Path
    offset: int
    size: int
    name: str
    digest: str = ""

    @property
    def stamp(self) -> str:
        return self.digest or str(self)

    def read(self) -> bytes:
        if not self.file.is_file():
            raise ImageError(f"{self}: no such file")
        if self.offset + self.size > self.file.stat().st_size:
            raise ImageError(f"{self}: the file ends before the image; copy it again")
        if self.size > MAX_ENCODED:
            raise ImageError(f"{self}: {self.size:,} bytes, more than the limit of {MAX_ENCODED:,}")
        with self.file.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def __str__(self) -> str:
        return f"{self.file.absolute()}#{self.name}@{self.offset}+{self.size}"


@dataclass(frozen=True)
class Unusable:
    """Placeholder for a record without a usable image, which is counted, reported and skipped.

    mark: the stamp; by default one that does not depend on the wording of the reason, so that a store resumes after
    an update of csaligner.
    """

    name: str
    reason: str
    mark: str = field(default="", kw_only=True, compare=False)

    @property
    def stamp(self) -> str:
        return self.mark or "unusable"

    def read(self) -> bytes:
        raise ImageError(self.reason)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class TextOnly(Unusable):
    """Placeholder for the image of a text without one. path: the document of the text, None for a row or a line."""

    path: Path | None = None


def to_uri(source: ImageSource) -> str:
    """Return the text that identifies a source in a store: an absolute path, or str(source); from_uri is the inverse.

    A name that is not UTF-8 becomes "file:" with its bytes percent-encoded.
    """
    text = str(source.absolute()) if isinstance(source, Path) else str(source)
    try:
        text.encode()
    except UnicodeEncodeError:
        return ENCODED + quote(text.encode("utf-8", "surrogateescape" if _is_bytes(text) else "surrogatepass"))
    return text


def _is_bytes(text: str) -> bool:
    """Return whether the lone surrogates of a text represent bytes of a file name."""
    return not any("\ud800" <= c < "\udc80" or "\udcff" < c <= "\udfff" for c in text)


def file_of(source: ImageSource) -> Path:
    """Return the file that contains an image, or the folder of a saved dataset."""
    if isinstance(source, Path):
        return source
    if isinstance(source, (Cell, FilePart)):
        return source.file
    return source.folder if isinstance(source, SavedCell) else Path(str(source))


def stamp_of(source: ImageSource) -> list[str | int]:
    """Return a value that changes with the image, without reading it: path and size, or the stamp of the source."""
    if not isinstance(source, Path):
        return [source.stamp]
    try:
        size = os.stat(source).st_size
    except (OSError, ValueError):  # ValueError: a name with a zero byte
        size = -1
    return [str(source.absolute()), size]


def from_uri(text: str) -> ImageSource:
    """Return the source of a URI from to_uri: a cell of a table or saved dataset, a part of a file, or a path."""
    if text.startswith(ENCODED):
        text = unquote(text.removeprefix(ENCODED), errors="surrogateescape")
    saved = SAVED.fullmatch(text)
    if saved is not None:
        return SavedCell(Path(saved["folder"]), saved["part"], saved["column"], int(saved["row"]))
    cell = CELL.fullmatch(text)
    if cell is not None:
        return Cell(Path(cell["file"]), cell["column"], int(cell["row"]))
    part = PART.fullmatch(text)
    if part is None:
        return Path(text)
    return FilePart(Path(part["file"]), int(part["offset"]), int(part["size"]), part["name"])
