"""Reader of Urban1k: the folders image/ and caption/, whose files are matched by stem."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from csaligner.checks import InputError
from csaligner.datasets.images.load import SUFFIXES
from csaligner.types import Item

from .folder import ids_and_groups
from .records import unusable
from .text_files import NotText, TextFiles
from .walk import walk


class Urban1k:
    """One long caption per image: the whole text file, with its lines joined. All images are in the test split, as
    published.

    A caption without an image is an unusable item; an image without a caption file has no caption.
    """

    attribution = ""

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._texts = TextFiles()
        self._notes: tuple[str, ...] = ()
        for name in ("image", "caption"):
            if not (self._path / name).is_dir():
                raise InputError(f"{self._path}: has no folder {name}; wanted image/ and caption/")

    @property
    def name(self) -> str:
        return self._path.resolve().name

    @property
    def notes(self) -> tuple[str, ...]:
        """What items() ignored or guessed."""
        return self._notes

    def items(self) -> Sequence[Item]:
        self._texts.clear()
        images, captions = (walk(self._path / name) for name in ("image", "caption"))
        texts = {_stem(path): path for path in captions.top if path.suffix.lower() == ".txt"}
        found = [path for path in images.top if path.suffix.lower() in SUFFIXES]
        names = ids_and_groups([path.name for path in found])
        items = [self._item(path, name, texts) for path, name in zip(found, names, strict=True)]
        self._notes = (*images.note(set(found)), *captions.note(set(texts.values())), *self._texts.notes)
        lost = texts.keys() - {_stem(path) for path in found}
        return [*items, *(unusable(texts[stem], "the caption", "has no image in image/") for stem in sorted(lost))]

    def _item(self, image: Path, name: tuple[str, str], texts: Mapping[str, Path]) -> Item:
        caption = texts.get(_stem(image))
        try:
            found = () if caption is None else (self._texts.read(caption),)
        except (NotText, OSError) as error:
            return unusable(image, "its caption", str(error))
        return Item(name[0], image, found, group=name[1], split="test")


def _stem(path: Path) -> str:
    return unicodedata.normalize("NFC", path.stem)
