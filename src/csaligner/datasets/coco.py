"""Reader of COCO's caption files, such as annotations/captions_val2017.json."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from csaligner.types import Item

from .records import captions, field, image_at, items_of, listed, numbered, read_json, root_of, text, unusable


class CocoCaptions:
    """images[].{id, file_name} and annotations[].{image_id, caption}.

    image_root: folder of the images; default: the folder named like the file (val2017 for captions_val2017.json) in
    the file's folder or its parent, else the file's folder. The image id is COCO's number. The split follows the
    hash rule (datasets/split.py); for the published splits use Karpathy's JSON.
    """

    attribution = ""

    def __init__(self, path: Path | str, image_root: Path | str | None = None) -> None:
        self._path = Path(path)
        part = self._path.stem.removeprefix("captions_")
        self._root = root_of(self._path, image_root, self._path.parent / part, self._path.parent.parent / part)

    @property
    def name(self) -> str:
        return self._path.stem

    def items(self) -> Sequence[Item]:
        value = read_json(self._path)
        images, annotations = (listed(self._path, value, key) for key in ("images", "annotations"))
        found: defaultdict[str, list[Any]] = defaultdict(list)
        lost = []
        known = {str(image["id"]) for image in images if isinstance(image, dict) and "id" in image}
        for number, annotation in enumerate(annotations):
            image_id = str(annotation.get("image_id")) if isinstance(annotation, dict) else ""
            if image_id in known and "caption" in annotation:
                found[image_id].append(annotation["caption"])
            else:
                lost.append(unusable(self._path, f"annotations[{number}]", "has no caption, or no image in images"))
        return [*items_of(self._path, numbered("images", images), lambda image: self._item(image, found)), *lost]

    def _item(self, image: dict[str, Any], found: dict[str, list[Any]]) -> Item:
        image_id = str(field(image, "id"))
        return Item(image_id, image_at(self._root, text(image, "file_name")), captions(found[image_id]), group=image_id)
