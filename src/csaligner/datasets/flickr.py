"""Reader of Flickr8k's and Flickr30k's .token files: one caption per line, `1000092795.jpg#0<tab>Two young guys`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from csaligner.checks import InputError
from csaligner.types import Item

from .records import BadRecord, image_at, items_of, merged, root_of
from .text_files import TextFiles, split_lines

DEFAULT_ROOTS = ("flickr30k-images", "Flicker8k_Dataset", "images")


class FlickrTokens:
    """image_root: folder of the images; default: flickr30k-images, Flicker8k_Dataset or images in the file's folder,
    else the file's folder. The image id is the file name."""

    attribution = ""

    def __init__(self, path: Path | str, image_root: Path | str | None = None) -> None:
        self._path = Path(path)
        self._texts = TextFiles()
        if not self._path.is_file():
            raise InputError(f"{self._path}: no such file")
        self._root = root_of(self._path, image_root, *(self._path.parent / name for name in DEFAULT_ROOTS))

    @property
    def name(self) -> str:
        return self._path.name

    @property
    def notes(self) -> tuple[str, ...]:
        """A line if the encoding was guessed."""
        return self._texts.notes

    def items(self) -> Sequence[Item]:
        return merged(items_of(self._path, self._lines(), self._item))

    def _lines(self) -> Iterator[tuple[str, str]]:
        self._texts.clear()
        for number, line in enumerate(split_lines(self._texts.read_all(self._path)), start=1):
            if line.strip():
                yield f"line {number}", line

    def _item(self, line: str) -> Item:
        key, tab, caption = line.partition("\t")
        name, mark, _ = key.rpartition("#")
        if not tab or not mark or not name:
            raise BadRecord("has another form, wanted 'name.jpg#0<tab>caption'")
        return Item(name, image_at(self._root, name), (caption,), group=name)
