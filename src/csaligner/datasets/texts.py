"""A .txt file: one caption per line, no images. For stores and indexes of texts alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from csaligner.checks import InputError
from csaligner.datasets.images.source import TextOnly
from csaligner.types import Item

from .text_files import TextFiles, split_lines

HEADER = re.compile(r"\W*(image|img|file\w*|image_path|path|id)\W*[,;\t]\W*(caption|title|text)s?\W*", re.IGNORECASE)


class Texts:
    """The id of a caption is its line, "texts.txt:1"."""

    attribution = ""

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._texts = TextFiles()
        if not self._path.is_file():
            raise InputError(f"{self._path}: no such file")

    @property
    def name(self) -> str:
        return self._path.name

    @property
    def notes(self) -> tuple[str, ...]:
        """Whether the encoding was guessed."""
        return self._texts.notes

    def items(self) -> Sequence[Item]:
        """Raises InputError for a file that is not text, and for one that looks like a table."""
        self._texts.clear()
        lines = split_lines(self._texts.read_all(self._path))
        if lines and HEADER.fullmatch(lines[0]):
            raise InputError(f"{self._path}: looks like a table ({lines[0][:80]!r}); give --data-format table")
        return [self._item(number, line) for number, line in enumerate(lines, start=1) if line.strip()]

    def _item(self, number: int, line: str) -> Item:
        name = f"{self._path.name}:{number}"
        image = TextOnly(name, f"{self._path} holds captions and no pictures; embed it with --text-only")
        return Item(name, image, (line.strip(),), group=name)
