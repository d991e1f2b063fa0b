"""Documents of an index: images, texts and captions with their owner, made from the items of a dataset."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from csaligner.checks import InputError
from csaligner.datasets import ALL, open_dataset
from csaligner.datasets.images.hf_cell import SavedCell
from csaligner.datasets.images.parquet_cell import Cell
from csaligner.datasets.images.source import TextOnly, Unusable, file_of, to_uri
from csaligner.types import Dataset, ImageSource, Item, Modality, TextHolder, notes_of

from .clean import clean_captions, merge, readable_items
from .text_files import shown
from .walk import INDEX_FILE

__all__ = ["INDEX_FILE", "Entry", "EntrySettings", "Found", "find_entries", "split_passages"]
PASSAGE = 800  # characters, about the input length of a small sentence encoder


@dataclass(frozen=True)
class Entry:
    """One searchable image or text.

    path: the image, a file or a part of one; or the document that a passage comes from. text: content of a text, ""
    for images. caption: caption of an image, for display. owner: id of the image that a caption describes, else "".
    """

    id: str
    modality: Modality
    path: ImageSource | None = None
    text: str = ""
    caption: str = ""
    owner: str = ""

    @property
    def place(self) -> str:
        """The URI of the path as stored in an index, "" without a path."""
        return to_uri(self.path) if self.path is not None else ""


@dataclass(frozen=True)
class Found:
    """source: name of the data, by which a later call finds deleted entries; skipped: one line per item that cannot be
    used; notes: what the reader ignored or guessed."""

    source: str
    entries: tuple[Entry, ...]
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class EntrySettings:
    """captions: also index the captions of images as texts. data_format and the others: options of the reader, None
    for its default (see open_dataset). image_root: also the folder that must contain all image files; default: the
    folder of the data. follow_links: also allow images outside this folder, as targets of links."""

    captions: bool = True
    image_key: str | None = None
    text_key: str | None = None
    id_key: str | None = None
    image_root: Path | None = None
    separator: str | None = None
    encoding: str | None = None
    data_format: str | None = None
    follow_links: bool = False

    def open(self, data: str) -> Dataset:
        """Open `data` with these options."""
        options = {"image_key": self.image_key, "caption_key": self.text_key, "id_key": self.id_key}
        options |= {"separator": self.separator, "encoding": self.encoding}
        more = {"image_root": self.image_root, "follow_links": self.follow_links or None}
        return open_dataset(data, self.data_format, **options, **more)


@dataclass
class _Collector:
    captions: bool
    root: Path | None  # must contain all image files
    entries: list[Entry] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def add(self, item: Item) -> None:
        try:
            self._add(item)
        except (OSError, ValueError):  # not a valid file name
            self.skipped.append(f"{shown(item.image_id)}: no such file")

    def _add(self, item: Item) -> None:
        if isinstance(item.image, TextOnly):
            self._texts(item, item.image.path)
        elif isinstance(item.image, Unusable):
            self.skipped.append(item.image.reason)
        elif self._inside(item.image):
            self._image(item, item.image)
        else:
            self.skipped.append(f"{shown(str(item.image))} is outside {self.root}; set image_root to its folder")

    def _image(self, item: Item, image: ImageSource) -> None:
        image = image.resolve() if isinstance(image, Path) else image
        if isinstance(image, (Cell, SavedCell)):
            image = replace(image, files=False)  # a cell could name any file on this machine
        captions = clean_captions(item)
        self.entries.append(Entry(item.image_id, "image", image, caption=captions[0] if captions else ""))
        for number, caption in enumerate(captions if self.captions else (), start=1):
            name = f"{item.image_id}#caption-{number}"
            self.entries.append(Entry(name, "text", image, text=caption, owner=item.image_id))

    def _texts(self, item: Item, path: Path | None) -> None:
        if path is not None and not self._inside(path):
            self.skipped.append(f"{shown(str(path))} is outside {self.root}")
            return
        if path is not None:
            passages = [passage for text in item.captions for passage in split_passages(text)]
        else:
            passages = list(clean_captions(item))
        for number, passage in enumerate(passages, start=1):
            name = item.image_id if path is None and len(passages) == 1 else f"{item.image_id}#{number}"
            self.entries.append(Entry(name, "text", path.resolve() if path else None, text=passage))

    def _inside(self, image: ImageSource) -> bool:
        return self.root is None or file_of(image).resolve().is_relative_to(self.root)


def find_entries(data: str | Dataset, settings: EntrySettings | None = None) -> Found:
    """Return all indexable entries of `data`, a Dataset or a spec that open_dataset accepts.

    Images have the ids of the dataset, as in a store; their captions are texts with ids ID#caption-1. Texts without an
    image (rows, lines of a .txt) have the id of their row; .txt and .md documents of a folder are split into passages,
    notes.md#1. Images outside the folder of the data are skipped.

    Raises InputError for missing data and for data without entries.
    """
    settings = settings or EntrySettings()
    root, source = _root_and_source(data, settings)
    dataset = settings.open(data) if isinstance(data, str) else data
    items = dataset.documents() if isinstance(dataset, TextHolder) else dataset.items()
    into = _Collector(settings.captions, root)
    for item in merge(dataset.name, readable_items(dataset, items)) if items else ():
        into.add(item)
    notes = notes_of(dataset)
    if not into.entries:
        more = "".join(f" ({line})" for line in [*into.skipped[:1], *notes])
        raise InputError(f"data: {dataset.name} holds no image or text to index{more}")
    return Found(source, tuple(into.entries), tuple(into.skipped), notes)


def _root_and_source(data: str | Dataset, settings: EntrySettings) -> tuple[Path | None, str]:
    """Return the folder that must contain all images (None: no limit), and the name of the data."""
    if not isinstance(data, str):
        return None, data.name
    if data in (*ALL, "all"):
        return None, data
    path = Path(data).resolve()
    root = (settings.image_root or (path if path.is_dir() else path.parent)).resolve()
    return None if settings.follow_links else root, str(path)


def split_passages(text: str, size: int = PASSAGE) -> list[str]:
    """Split text into passages: paragraphs, joined up to `size` characters; longer ones are cut at sentences or words.

    >>> split_passages("One.\\n\\nTwo.", size=8)
    ['One.', 'Two.']
    """
    passages: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        for piece in _pieces(" ".join(paragraph.split()), size):
            if passages and len(passages[-1]) + 1 + len(piece) <= size:
                passages[-1] += "\n" + piece
            else:
                passages.append(piece)
    return passages


def _pieces(text: str, size: int) -> Iterator[str]:
    while len(text) > size:
        head = text[: size + 1]
        sentence = max(head.rfind(mark) for mark in (". ", "! ", "? ", "。"))
        cut = sentence + 1 if sentence >= size // 3 else head.rfind(" ")
        cut = cut if cut > 0 else size
        yield text[:cut].strip()
        text = text[cut:].strip()
    if text:
        yield text
