"""Urban1k: a folder image/ and a folder caption/, joined by the stem of the names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from csaligner.checks import InputError
from csaligner.datasets.images.load import SUFFIXES
from csaligner.types import Item

from .records import unusable


class Urban1k:
    """One long caption an image: the whole text file, its lines joined. All of it is test, as it is published.

    A caption without a picture is an unusable item; a picture without a caption has none.
    """

    attribution = ""

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        for name in ("image", "caption"):
            if not (self._path / name).is_dir():
                raise InputError(f"{self._path}: has no folder {name}; wanted image/ and caption/")

    @property
    def name(self) -> str:
        return self._path.resolve().name

    def items(self) -> Sequence[Item]:
        texts = {path.stem: path for path in sorted((self._path / "caption").glob("*.txt"))}
        images = [path for path in sorted((self._path / "image").iterdir()) if path.suffix.lower() in SUFFIXES]
        items = [self._item(image, texts.pop(image.stem, None)) for image in images]
        return [*items, *(unusable(path, "the caption", "has no picture in image/") for path in texts.values())]

    def _item(self, image: Path, caption: Path | None) -> Item:
        if caption is None:
            return Item(image.stem, image, (), group=image.stem, split="test")
        try:
            text = caption.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            return unusable(caption, "the caption", f"is not UTF-8 text ({error})")
        return Item(image.stem, image, (text,), group=image.stem, split="test")
