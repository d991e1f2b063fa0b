"""A .txt file: one caption a line, no pictures. For stores of texts alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from csaligner.checks import InputError
from csaligner.datasets.images.source import Unusable
from csaligner.types import Item


class Texts:
    """The id of a caption is its line, "texts.txt:1"."""

    attribution = ""

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        if not self._path.is_file():
            raise InputError(f"{self._path}: no such file")

    @property
    def name(self) -> str:
        return self._path.name

    def items(self) -> Sequence[Item]:
        try:
            with self._path.open(encoding="utf-8-sig") as file:
                return [self._item(number, line) for number, line in enumerate(file, start=1) if line.strip()]
        except UnicodeDecodeError as error:
            raise InputError(f"{self._path}: is not UTF-8 text ({error})") from None

    def _item(self, number: int, line: str) -> Item:
        name = f"{self._path.name}:{number}"
        image = Unusable(name, f"{self._path} holds captions and no pictures; embed it with --text-only")
        return Item(name, image, (line.strip(),), group=name)
