"""Reader of DOCCI: docci_descriptions.jsonlines, one long description per image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from csaligner.checks import InputError
from csaligner.types import Item, Split

from .records import BadRecord, captions, field, image_at, items_of, json_lines, root_of, text
from .text_files import shown

FILE = "docci_descriptions.jsonlines"
SPLITS: dict[str, Split] = {"train": "train", "test": "test", "qual_dev": "val", "qual_test": "val"}


class Docci:
    """Lines of {split, image_file, description}.

    path: the file or its folder. image_root: folder of the images; default: images/ in the file's folder, else the
    file's folder. The image id is the stem of the file name. Splits: qual_dev and qual_test, 100 images each, are
    val, so that test is the 5,000 images of published results.
    """

    attribution = ""

    def __init__(self, path: Path | str, image_root: Path | str | None = None) -> None:
        self._path = Path(path) / FILE if Path(path).is_dir() else Path(path)
        if not self._path.is_file():
            raise InputError(f"{self._path}: no such file")
        self._root = root_of(self._path, image_root, self._path.parent / "images")

    @property
    def name(self) -> str:
        return "docci"

    def items(self) -> Sequence[Item]:
        return items_of(self._path, json_lines(self._path), self._item)

    def _item(self, record: Any) -> Item:
        name, split = text(record, "image_file"), text(record, "split")
        if split not in SPLITS:
            raise BadRecord(f"has the split {shown(split)}, wanted {', '.join(SPLITS)}")
        image_id = Path(name).stem
        found = captions(field(record, "description"))
        return Item(image_id, image_at(self._root, name), found, group=image_id, split=SPLITS[split])
