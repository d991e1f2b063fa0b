"""Reader of a .txt file with one caption per line and no images, for text-only stores and indexes."""

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
    """One caption per non-empty line; its id is the file name and line number, "texts.txt:1"."""

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
        """A line if the encoding was guessed."""
        return self._texts.notes

    def items(self) -> Sequence[Item]:
        """Return the captions. Raises InputError for a file that is not text or that looks like a table."""
        self._texts.clear()
        lines = split_lines(self._texts.read_all(self._path))
        if lines and HEADER.fullmatch(lines[0]):
            raise InputError(f"{self._path}: looks like a table ({lines[0][:80]!r}); give --data-format table")
        return [self._item(number, line) for number, line in enumerate(lines, start=1) if line.strip()]

    def _item(self, number: int, line: str) -> Item:
        name = f"{self._path.name}:{number}"
        reason = f"{self._path} holds captions but no images; embed it with --text-only"
        # the stamp enters the plan of stores, so its words must not change
        image = TextOnly(name, reason, mark=f"{self._path} holds captions and no pictures; embed it with --text-only")
        return Item(name, image, (line.strip(),), group=name)
