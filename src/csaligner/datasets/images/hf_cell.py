"""Images in a folder written by `save_to_disk` of Hugging Face's `datasets`, read in place."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from csaligner.checks import InputError
from csaligner.extras import install_command

from .load import ImageError, read_file


@dataclass(frozen=True)
class SavedCell:
    """The image in one row of a column of a part (for example "train"; "" if the folder has no parts).

    mark: the part's `datasets` fingerprint, which identifies its version. files: whether a row without bytes may name
    a file.
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
        """Return the encoded image. Raises ImageError for a row without an image, OSError for its file."""
        try:
            value = _rows(self.folder, self.part, self.column)[self.row][self.column]
        except (KeyError, IndexError, ValueError) as error:
            raise ImageError(f"{self}: cannot be read ({error})") from None
        content, path = bytes_or_path(value)
        if content is not None:
            return content
        if path is None or not self.files:
            raise ImageError(f"{self}: has no image")
        return read_file(self.folder / path)

    def __str__(self) -> str:
        return f"{self.folder}#datasets:{self.part}/{self.column}[{self.row}]"


def load_saved(folder: Path) -> Any:
    """Open a saved dataset. Raises InputError if the package is missing or the folder cannot be read."""
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise InputError(f"dataset: {error}; {install_command('hf')}") from None
    try:
        return load_from_disk(str(folder))
    except Exception as error:  # the errors of its files have no common class
        reason = " ".join(str(error).split())
        raise InputError(f"{folder}: cannot be read as a dataset written by save_to_disk ({reason})") from None


def without_decoding(rows: Any) -> Any:
    """Return the rows with images as bytes and paths instead of decoded PIL images."""
    for name, feature in (getattr(rows, "features", None) or {}).items():
        if type(feature).__name__ == "Image":
            from datasets import Image

            rows = rows.cast_column(name, Image(decode=False))
    return rows


def bytes_or_path(value: Any) -> tuple[bytes | None, str | None]:
    """Return the bytes of an image, or the path of its file; (None, None) for anything else.

    value: a PIL image, bytes, a path, or a dict of bytes and path as `datasets` stores it.
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
