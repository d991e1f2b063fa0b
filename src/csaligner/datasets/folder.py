"""A folder of pictures, each with a .txt of the same stem: one caption a line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from csaligner.checks import InputError
from csaligner.datasets.images.load import SUFFIXES
from csaligner.types import Item


class Folder:
    """All pictures below `path`; the image id is the path below it, without suffix.

    A picture without a .txt has no caption. Raises InputError for a folder that is not there or cannot be listed, and
    for a text that is not UTF-8.
    """

    attribution = ""

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        if not self._path.is_dir():
            raise InputError(f"{self._path}: no such folder")

    @property
    def name(self) -> str:
        return self._path.resolve().name

    def items(self) -> Sequence[Item]:
        files = (Path(folder, name) for folder, _, names in os.walk(self._path, onerror=_refuse) for name in names)
        images = sorted(path for path in files if path.suffix.lower() in SUFFIXES)
        return [self._item(path) for path in images if path.is_file()]

    def _item(self, image: Path) -> Item:
        image_id = image.relative_to(self._path).with_suffix("").as_posix()
        return Item(image_id, image, _captions(image.with_suffix(".txt")), group=image_id)


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be listed ({error.strerror}); change its permissions or move it away")


def _captions(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return ()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text ({error})") from None
    return tuple(line for line in lines if line.strip())
