"""Flickr8k's and Flickr30k's .token files: one caption a line, `1000092795.jpg#0<tab>Two young guys ...`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from csaligner.checks import InputError
from csaligner.types import Item

from .records import BadRecord, items_of, merged, root_of

USUAL = ("flickr30k-images", "Flicker8k_Dataset", "images")


class FlickrTokens:
    """image_root: the folder of the pictures; without it flickr30k-images, Flicker8k_Dataset or images beside the
    file, else the file's folder. The image id is the file name."""

    attribution = ""

    def __init__(self, path: Path | str, image_root: Path | str | None = None) -> None:
        self._path = Path(path)
        if not self._path.is_file():
            raise InputError(f"{self._path}: no such file")
        self._root = root_of(self._path, image_root, *(self._path.parent / name for name in USUAL))

    @property
    def name(self) -> str:
        return self._path.name

    def items(self) -> Sequence[Item]:
        return merged(items_of(self._path, self._lines(), self._item))

    def _lines(self) -> Iterator[tuple[str, str]]:
        try:
            with self._path.open(encoding="utf-8-sig") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield f"line {number}", line.rstrip("\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{self._path}: is not UTF-8 text ({error})") from None

    def _item(self, line: str) -> Item:
        key, tab, caption = line.partition("\t")
        name, mark, _ = key.rpartition("#")
        if not tab or not mark or not name:
            raise BadRecord("is not 'name.jpg#0<tab>caption'")
        return Item(name, self._root / name, (caption,), group=name)
