"""Reader of Hugging Face `datasets`: a folder written by save_to_disk, a dataset in memory, or a stream."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from csaligner.checks import InputError, nearest
from csaligner.datasets.images.hf_cell import SavedCell, bytes_or_path, load_saved, without_decoding
from csaligner.datasets.images.source import FilePart
from csaligner.types import ImageSource, Item

from .records import SPLIT_NAMES, BadRecord, captions, field, image_at, items_of

IMAGE_KEYS = ("image", "img", "jpg", "png")
CAPTION_KEYS = ("caption", "captions", "text", "sentences", "raw", "alt_caption")


class HuggingFace:
    """source: the folder, or a Dataset, DatasetDict, IterableDataset or any iterable of dicts (Python only).

    image_key, caption_key: columns; default: image, img, jpg or png; caption, captions, text, sentences, raw or
    alt_caption. An image is a PIL image, bytes, a dict of bytes and path as `datasets` stores it, or a path (relative
    to image_root); a caption is a text or a list of texts. id_key: column of image ids; default: part and row number.
    limit: maximum number of rows of each part, for endless streams. The splits of a DatasetDict are kept; otherwise
    the hash rule decides.

    Workers read the rows of a folder on demand. Rows in memory or of a stream are read once: their images go into a
    temporary file that lives as long as this object.
    """

    attribution = ""

    def __init__(
        self,
        source: Path | str | Iterable[Mapping[str, Any]],
        image_key: str | None = None,
        caption_key: str | None = None,
        id_key: str | None = None,
        image_root: Path | str | None = None,
        limit: int | None = None,
    ) -> None:
        self._folder = Path(source).absolute() if isinstance(source, (str, Path)) else None
        self._parts = _parts(load_saved(self._folder) if self._folder else source)
        self._image_key, self._caption_key, self._id_key = image_key, caption_key, id_key
        self._root = Path(image_root) if image_root else self._folder or Path()
        self._limit = limit
        self._spool: _Spool | None = None
        self._items: list[Item] | None = None

    @property
    def name(self) -> str:
        return self._folder.name if self._folder else "datasets"

    def items(self) -> Sequence[Item]:
        if self._items is None:  # a stream can be read only once
            try:
                self._items = [item for part, rows in self._parts.items() for item in self._of(part, rows)]
            except InputError:
                raise
            except Exception as error:
                if self._folder is None:  # keep the traceback of the caller's own iterable
                    raise
                reason = " ".join(str(error).split())
                raise InputError(f"{self._folder}: cannot read its rows ({reason})") from None
        return self._items

    def _of(self, part: str, rows: Any) -> list[Item]:
        rows = without_decoding(rows)
        stream = iter(rows)
        first = next(stream, None)
        if first is None:
            return []
        image_key = _column("image_key", self._image_key, IMAGE_KEYS, first)
        caption_key = _column("caption_key", self._caption_key, CAPTION_KEYS, first)
        if self._id_key is not None:
            _column("id_key", self._id_key, (), first)
        if self._folder is None:
            stream = chain([first], stream)
        else:
            stream = iter(rows.select_columns([name for name in (caption_key, self._id_key) if name is not None]))
        mark = str(getattr(rows, "_fingerprint", ""))

        def make(numbered: tuple[int, Mapping[str, Any]]) -> Item:
            number, row = numbered
            name = str(field(row, self._id_key)) if self._id_key else f"{part}/{number}" if part else str(number)
            image: ImageSource
            if self._folder is None:
                image = self._kept(field(row, image_key), name)
            else:
                image = SavedCell(self._folder, part, image_key, number, mark)
            return Item(name, image, captions(field(row, caption_key)), group=name, split=SPLIT_NAMES.get(part))

        records = ((f"{part or 'row'} {n}", (n, row)) for n, row in enumerate(islice(stream, self._limit)))
        return items_of(self.name, records, make)

    def _kept(self, value: Any, name: str) -> ImageSource:
        content, path = bytes_or_path(value)
        if content is not None:
            self._spool = self._spool or _Spool()
            return self._spool.add(content, name)
        if path is None:
            raise BadRecord(f"has an image of type {type(value).__name__}, wanted a PIL image, bytes or a path")
        return image_at(self._root, str(path))


class _Spool:
    """A temporary file of concatenated images, identified by their SHA-256."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="csaligner-")
        self._path = Path(self._folder.name) / "images"
        self._file: BinaryIO = self._path.open("wb", buffering=0)
        self._size = 0

    def add(self, content: bytes, name: str) -> FilePart:
        self._file.write(content)
        part = FilePart(self._path, self._size, len(content), name, hashlib.sha256(content).hexdigest())
        self._size += len(content)
        return part


def _parts(source: Any) -> dict[str, Any]:
    """Return part name -> rows; a dataset without parts is one part named ""."""
    if isinstance(source, Mapping):  # DatasetDict and IterableDatasetDict are dicts
        return {str(name): rows for name, rows in source.items()}
    return {"": source}


def _column(option: str, wanted: str | None, defaults: Sequence[str], row: Mapping[str, Any]) -> str:
    if wanted is not None:
        if wanted not in row:
            raise InputError(f"{option}: no column {wanted!r}; {nearest(wanted, row)}")
        return wanted
    found = [name for name in defaults if name in row]
    if not found:
        raise InputError(f"{option}: none of the columns {', '.join(map(repr, row))} has a default name; give {option}")
    return found[0]
