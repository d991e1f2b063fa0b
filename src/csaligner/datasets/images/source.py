"""Pictures that are no files of their own: parts of larger files, and what cannot be used and says why."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
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
    """`size` bytes of `file`, from `offset` on: a member of a tar, read without looking for it again.

    digest: SHA-256 of the bytes where it is known and `file` does not last, else "".
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
            raise ImageError(f"{self}: the file ends before the picture does")
        if self.size > MAX_ENCODED:
            raise ImageError(f"{self}: {self.size:,} bytes are more than the limit of {MAX_ENCODED:,}")
        with self.file.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def __str__(self) -> str:
        return f"{self.file.absolute()}#{self.name}@{self.offset}+{self.size}"


@dataclass(frozen=True)
class Unusable:
    """What stands where a picture should be: it is counted, listed and left out, and the rest goes on."""

    name: str
    reason: str

    @property
    def stamp(self) -> str:
        return self.reason

    def read(self) -> bytes:
        raise ImageError(self.reason)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class TextOnly(Unusable):
    """What stands where a text has no image. path: the document that the text is, None for a row or a line."""

    path: Path | None = None


def to_uri(source: ImageSource) -> str:
    """What a store writes down of a source: an absolute path, or str() of it.

    A name that is not UTF-8 is written as "file:" with its bytes percent-encoded.
    """
    text = str(source.absolute()) if isinstance(source, Path) else str(source)
    try:
        text.encode()
    except UnicodeEncodeError:
        return ENCODED + quote(text.encode("utf-8", "surrogateescape" if _is_bytes(text) else "surrogatepass"))
    return text


def _is_bytes(text: str) -> bool:
    """Do its lone surrogates stand for bytes of a file name?"""
    return not any("\ud800" <= c < "\udc80" or "\udcff" < c <= "\udfff" for c in text)


def file_of(source: ImageSource) -> Path:
    """The file that a picture is, or is a part of; the folder of a saved dataset."""
    if isinstance(source, Path):
        return source
    if isinstance(source, (Cell, FilePart)):
        return source.file
    return source.folder if isinstance(source, SavedCell) else Path(str(source))


def stamp_of(source: ImageSource) -> list[str | int]:
    """Another value where the picture is another one, without reading it: path and size, or the source's own stamp."""
    if not isinstance(source, Path):
        return [source.stamp]
    try:
        size = os.stat(source).st_size
    except (OSError, ValueError):  # ValueError: a name with a zero byte
        size = -1
    return [str(source.absolute()), size]


def from_uri(text: str) -> ImageSource:
    """The source that `written` described: a cell of a table or of a saved dataset, a part of a file, or a path."""
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
