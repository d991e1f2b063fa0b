"""Reader of ShareGPT4V's JSON and similar files: conversations about an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from csaligner.types import Item

from .records import BadRecord, captions, field, image_at, items_of, listed, merged, numbered, read_json, root_of, text

SPEAKERS = ("gpt", "assistant")


class ShareGPT4V:
    """A list of {image, conversations: [{from: human, value}, {from: gpt, value}]}; the caption is the first turn
    of gpt.

    image_root: folder that image paths are relative to; default: data/ in the file's folder, else the file's folder.
    The image id is its path; several conversations about one image are several captions.
    """

    attribution = ""

    def __init__(self, path: Path | str, image_root: Path | str | None = None) -> None:
        self._path = Path(path)
        self._root = root_of(self._path, image_root, self._path.parent / "data")

    @property
    def name(self) -> str:
        return self._path.stem

    def items(self) -> Sequence[Item]:
        records = listed(self._path, read_json(self._path))
        return merged(items_of(self._path, numbered("records", records), self._item))

    def _item(self, record: dict[str, Any]) -> Item:
        image, turns = text(record, "image"), field(record, "conversations")
        answers = [
            turn.get("value")
            for turn in (turns if isinstance(turns, list) else [])
            if isinstance(turn, dict) and turn.get("from") in SPEAKERS
        ]
        if not answers:
            raise BadRecord("has no turn of gpt in 'conversations'")
        return Item(image, image_at(self._root, image), captions(answers[0]), group=image)
