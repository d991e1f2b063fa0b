"""Pictures in a folder that `save_to_disk` of Hugging Face's `datasets` wrote, read in place."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from csaligner.checks import InputError

from .load import ImageError, read_file


@dataclass(frozen=True)
class SavedCell:
    """The picture in one row of a column of a part ("train", say; "" where the folder has no parts).

    mark: the fingerprint that `datasets` gives the part, which tells another version of it. files: whether a row
    without bytes may name a file.
    """

    folder: Path
    part: str
    column: str
    row: int
    mark: str = field(default="", compare=False)
    files: bool = field(default=True, compare=False)

    @property
    def name(self) -> str:
        return f"{self.row}"

    @property
    def stamp(self) -> str:
        return f"{self.mark} {self.part} {self.row}"

    def read(self) -> bytes:
        """Raises ImageError for a row that is not there or holds no picture, OSError for a file that it names."""
        try:
            value = _rows(self.folder, self.part, self.column)[self.row][self.column]
        except (KeyError, IndexError, ValueError) as error:
            raise ImageError(f"{self}: does not read ({error})") from None
        content, path = bytes_or_path(value)
        if content is not None:
            return content
        if path is None or not self.files:
            raise ImageError(f"{self}: holds no picture")
        return read_file(self.folder / path)

    def __str__(self) -> str:
        return f"{self.folder}#datasets:{self.part}/{self.column}[{self.row}]"


def load_saved(folder: Path) -> Any:
    """InputError where the package or the folder is missing."""
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise InputError(f"dataset: {error}; pip install 'csaligner[hf]'") from None
    try:
        return load_from_disk(str(folder))
    except Exception as error:  # each of its files fails in its own way
        reason = " ".join(str(error).split())
        raise InputError(f"{folder}: does not read as a dataset that save_to_disk wrote ({reason})") from None


def without_decoding(rows: Any) -> Any:
    """Rows whose pictures stay bytes and paths, where `datasets` would make PIL images of them."""
    for name, feature in (getattr(rows, "features", None) or {}).items():
        if type(feature).__name__ == "Image":
            from datasets import Image

            rows = rows.cast_column(name, Image(decode=False))
    return rows


def bytes_or_path(value: Any) -> tuple[bytes | None, str | None]:
    """A picture as bytes, or the path of its file; (None, None) for what is neither.

    value: a PIL image, bytes, a path, or the dict of bytes and path that `datasets` keeps.
    """
    if isinstance(value, Mapping):
        return value.get("bytes"), value.get("path")
    if isinstance(value, (bytes, bytearray)):
        return bytes(value), None
    if isinstance(value, (str, Path)):
        return None, str(value)
    if hasattr(value, "save") and hasattr(value, "mode"):  # a PIL image
        stream = io.BytesIO()
        value.save(stream, format="PNG" if value.mode not in ("CMYK", "F", "YCbCr", "LAB", "HSV") else "TIFF")
        return stream.getvalue(), None
    return None, None


@lru_cache(maxsize=8)
def _rows(folder: Path, part: str, column: str) -> Any:
    found = load_saved(folder)
    return without_decoding((found[part] if part else found).select_columns([column]))
