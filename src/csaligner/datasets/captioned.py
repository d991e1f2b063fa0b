"""Reader of a folder of images with a caption file beside them, such as captions.csv."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from csaligner.datasets.images.load import SUFFIXES
from csaligner.datasets.images.source import TextOnly
from csaligner.types import Item
from csaligner.wording import count_of

from .caption_files import described, find_captions, unread
from .folder import DOCUMENTS, Folder
from .walk import Listing


class CaptionedFolder(Folder):
    """All images below `path`, as the reader Folder lists them, with the captions of the first caption file in the
    folder, or one below, whose entries name images that are there (datasets/caption_files.py).

    An image without captions in that file keeps those of its .txt file. Ids and groups are Folder's; splits are those
    of the caption file, if it has any. `notes` names the file that was read, and each other caption file with the
    reason why it was not. Raises InputError for a folder that is missing or cannot be listed.
    """

    def __init__(self, path: Path | str, follow_links: bool = False) -> None:
        super().__init__(path, follow_links)
        self._captions: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was read, what was not and why, and what items() ignored."""
        return (*self._captions, *super().notes)

    def _items(self, listing: Listing, lost: list[Item], documents: Sequence[Path] | None = None) -> list[Item]:
        chosen, reasons = find_captions(self._path, listing.files)
        count = sum(path.suffix.lower() in SUFFIXES for path in listing.files)
        said = {path for path in reasons if path.suffix.lower() not in DOCUMENTS}
        if chosen is not None:
            said.add(chosen.path)
            documents = documents if documents is None else [path for path in documents if path != chosen.path]
        listing.files = [path for path in listing.files if path not in said]
        self._captions = (*(described(chosen, count) if chosen else ()), *unread(reasons))
        items = super()._items(listing, lost, documents)
        if chosen is None:
            return items
        replaced = 0
        for number, item in enumerate(items):
            if isinstance(item.image, Path) and not isinstance(item.image, TextOnly) and item.image in chosen.captions:
                replaced += bool(item.captions)
                found = chosen.captions[item.image]
                items[number] = replace(item, captions=found, split=chosen.splits.get(item.image))
        if replaced:
            line = f"not read: {count_of(replaced, '.txt file')} beside images: {chosen.path.name} has captions of them"
            self._captions += (line,)
        return items
