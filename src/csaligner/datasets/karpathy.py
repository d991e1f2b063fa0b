"""Reader of Karpathy's JSON of COCO and Flickr30k, with the splits of published retrieval results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from csaligner.types import Item

from .records import (
    SPLIT_NAMES,
    BadRecord,
    captions,
    field,
    image_at,
    items_of,
    listed,
    numbered,
    read_json,
    root_of,
    text,
)
from .text_files import shown


class Karpathy:
    """dataset_coco.json, dataset_flickr30k.json: images[].{filepath, filename, split, sentences[].raw}.

    image_root: folder of train2014/ and val2014/ (COCO) or of the images (Flickr30k); default: flickr30k-images in the
    file's folder, else the file's folder. The image id is the file name. The split is the file's; restval is train.
    All captions of an image are kept, including a sixth and a seventh.
    """

    attribution = ""

    def __init__(self, path: Path | str, image_root: Path | str | None = None) -> None:
        self._path = Path(path)
        self._root = root_of(self._path, image_root, self._path.parent / "flickr30k-images")

    @property
    def name(self) -> str:
        return self._path.stem

    def items(self) -> Sequence[Item]:
        images = listed(self._path, read_json(self._path), "images")
        return items_of(self._path, numbered("images", images), self._item)

    def _item(self, record: dict[str, Any]) -> Item:
        name, split = text(record, "filename"), text(record, "split")
        if split not in SPLIT_NAMES:
            raise BadRecord(f"has the split {shown(split)}, wanted train, restval, val or test")
        folder = record.get("filepath", "")
        if not isinstance(folder, str):
            raise BadRecord(f"has the 'filepath' {shown(folder)}, wanted a text")
        sentences = field(record, "sentences")
        if not isinstance(sentences, list):
            raise BadRecord("has no list 'sentences'")
        raw = [sentence.get("raw") if isinstance(sentence, dict) else None for sentence in sentences]
        return Item(name, image_at(self._root / folder, name), captions(raw), group=name, split=SPLIT_NAMES[split])
