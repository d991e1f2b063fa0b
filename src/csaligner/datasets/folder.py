"""Reader of a folder of images, each with a .txt file of the same stem that holds one caption per line."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from csaligner.checks import InputError
from csaligner.datasets.images.load import SUFFIXES
from csaligner.datasets.images.source import TextOnly
from csaligner.types import Item
from csaligner.wording import count_of

from .records import unusable
from .text_files import NotText, TextFiles, split_lines
from .walk import Listing, walk

DOCUMENTS = frozenset({".txt", ".md"})
MAX_DOCUMENT = 20_000_000  # bytes


class Folder:
    """All images below `path`; the image id is the relative path without suffix.

    Images that share a stem keep the suffix in their ids, share captions, and form one group. An image without a .txt
    file, or whose .txt is not text (`notes` reports it), has no caption. Hidden and system files are ignored; `notes`
    counts them and every other file by suffix. follow_links: also read the folders that links point to.

    Raises InputError for a folder that is missing or cannot be listed, and OSError for a .txt that cannot be read.
    """

    attribution = ""

    def __init__(self, path: Path | str, follow_links: bool = False) -> None:
        self._path = Path(path)
        self._follow_links = follow_links
        self._texts = TextFiles()
        self._notes: tuple[str, ...] = ()
        if not self._path.is_dir():
            raise InputError(f"{self._path}: no such folder")

    @property
    def name(self) -> str:
        return self._path.resolve().name

    @property
    def notes(self) -> tuple[str, ...]:
        """What items() ignored, and the text files that are not UTF-8."""
        return self._notes

    def items(self) -> Sequence[Item]:
        listing = walk(self._path, follow_links=self._follow_links)
        for error in listing.refused:
            raise InputError(
                f"{error.filename}: cannot be listed ({error.strerror}); change its permissions or remove it"
            )
        return self._items(listing, [])

    def documents(self) -> Sequence[Item]:
        """Return the items, and .txt and .md files that hold no captions; unreadable files become unusable items."""
        listing = walk(self._path, follow_links=self._follow_links)
        lost = [_lost(Path(error.filename), error) for error in listing.refused]
        images = [path for path in listing.files if path.suffix.lower() in SUFFIXES]
        owned = {_stem(path) for path in images}
        texts = [path for path in listing.files if path.suffix.lower() in DOCUMENTS]
        texts = [path for path in texts if path.suffix.lower() != ".txt" or _stem(path) not in owned]
        return [*self._items(listing, lost, texts), *lost]

    def _items(self, listing: Listing, lost: list[Item], documents: Sequence[Path] | None = None) -> list[Item]:
        """documents: files that are texts without an image; None: an unreadable file is an error."""
        self._texts.clear()
        images = [path for path in listing.files if path.suffix.lower() in SUFFIXES]
        texts = {_stem(path): path for path in listing.files if path.suffix.lower() == ".txt"}
        names = ids_and_groups([path.relative_to(self._path).as_posix() for path in images])
        used, broken, items = {*images, *(documents or ())}, list[str](), list[Item]()
        for image, (image_id, group) in zip(images, names, strict=True):
            captions: tuple[str, ...] = ()
            if (path := texts.get(_stem(image))) is not None:
                used.add(path)
                try:
                    captions = tuple(line for line in split_lines(self._texts.read(path)) if line.strip())
                except NotText as error:
                    broken.append(f"{path}: {error}")
                except OSError as error:
                    if documents is None:
                        raise
                    lost.append(_lost(path, error))
            items.append(Item(image_id, image, captions, group=group))
        items += self._documents(documents or (), lost)
        more = (f"captions that are not text: {count_of(len(broken), 'file')} (first: {broken[0]})",) if broken else ()
        self._notes = (*listing.note(used), *self._texts.notes, *more)
        return items

    def _documents(self, paths: Sequence[Path], lost: list[Item]) -> Iterator[Item]:
        for path in paths:
            name = path.relative_to(self._path).as_posix()
            try:
                if path.stat().st_size > MAX_DOCUMENT:
                    lost.append(unusable(path, "", f"is larger than {MAX_DOCUMENT // 1_000_000} MB"))
                    continue
                text = self._texts.read(path)
            except NotText as error:
                lost.append(unusable(path, "", str(error)))
            except OSError as error:
                lost.append(_lost(path, error))
            else:
                yield Item(name, TextOnly(name, f"{path} is text", path), (text,), group=name)


def _lost(path: Path, error: OSError) -> Item:
    return unusable(path, "", f"{error.strerror}")


def _stem(path: Path) -> str:
    return unicodedata.normalize("NFC", str(path.with_suffix("")))


def ids_and_groups(paths: Sequence[str]) -> list[tuple[str, str]]:
    """Return (id, group) of each path: the id without suffix if that names only one image."""
    stems = [path[: -len(Path(path).suffix)] for path in paths]
    counts = Counter(stems)
    whole = {path for path, stem in zip(paths, stems, strict=True) if counts[stem] > 1}
    while more := {path for path, stem in zip(paths, stems, strict=True) if stem in whole} - whole:
        whole |= more
    return [(path if path in whole else stem, stem) for path, stem in zip(paths, stems, strict=True)]
