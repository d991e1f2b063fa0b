"""A table of captions with image paths, or with the pictures themselves: csv, tsv, jsonl or parquet."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from csaligner.checks import InputError
from csaligner.datasets.images.load import ImageError
from csaligner.datasets.images.parquet_cell import Cell, holds_pictures
from csaligner.parsing import open_parquet
from csaligner.types import Item, Split

from .records import SPLIT_NAMES, BadRecord, captions, items_of, json_lines, merged

Row = Mapping[str, Any]
SEPARATORS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".jsonlines")
KINDS = ".csv, .tsv, .jsonl, .jsonlines or .parquet"


class Table:
    """One row per caption; several rows with one image are several captions of it.

    path: the table, its kind told by the suffix. image_key, caption_key: its columns; in jsonl and parquet a
    caption may also be a list. id_key: a column with image ids; without it the image path is the id. separator:
    of csv and tsv files, a tab also as \\t. image_root: what relative image paths start from; without it
    the table's folder.

    split_key: a column with train, val or test; without it the hash rule decides.

    In parquet image_key may hold the pictures: bytes, or the struct {bytes, path} of Hugging Face's `datasets`. They
    are read by workers when they are wanted. Without id_key the id is the table's name and the row; with it, rows of
    one id must hold the same picture.

    A row without an image, with another picture for an id, or that does not parse is an unusable item: the rest goes
    on. Raises InputError for a missing file, a column that is not there (and says which are), and a file that does
    not parse at all.
    """

    attribution = ""

    def __init__(
        self,
        path: Path | str,
        image_key: str = "image",
        caption_key: str = "caption",
        id_key: str | None = None,
        separator: str | None = None,
        image_root: Path | str | None = None,
        split_key: str | None = None,
    ) -> None:
        self._path = Path(path)
        self._keys = (image_key, caption_key, id_key or image_key, *([split_key] if split_key else []))
        self._separator = separator or SEPARATORS.get(self._path.suffix.lower(), ",")
        if self._separator == r"\t":  # what a shell makes of '\t'
            self._separator = "\t"
        self._root = Path(image_root) if image_root is not None else self._path.parent
        self._check()

    @property
    def name(self) -> str:
        return self._path.name

    def items(self) -> Sequence[Item]:
        if self._path.suffix.lower() == ".parquet" and self._holds_pictures():
            return merged(items_of(self._path, self._cells(), lambda row: row))
        pictures: dict[str, Path] = {}
        return merged(items_of(self._path, self._rows(), lambda row: self._item(row, pictures)))

    def _item(self, row: Row, pictures: dict[str, Path]) -> Item:
        image_key, caption_key, id_key, *_ = self._keys
        image, image_id = _cell(row.get(image_key)), _cell(row.get(id_key))
        if not image or not image_id:
            raise BadRecord(f"has nothing in column {(image_key if not image else id_key)!r}")
        path = self._root / image
        first = pictures.setdefault(image_id, path)
        if first != path:
            raise BadRecord(f"gives the id {image_id!r} to {path}, but it stands for {first}")
        return Item(image_id, path, captions(row.get(caption_key)), group=image_id, split=self._split(row))

    def _split(self, row: Row) -> Split | None:
        split = _cell(row.get(self._keys[3])) if len(self._keys) > 3 else ""
        if split and split not in SPLIT_NAMES:
            raise BadRecord(f"has the split {split!r}, wanted train, val or test")
        return SPLIT_NAMES.get(split)

    def _check(self) -> None:
        if not self._path.is_file():
            raise InputError(f"{self._path}: no such file")
        if not self._root.is_dir():
            raise InputError(f"image_root: no such folder: {self._root}")
        if len(self._separator) != 1:
            raise InputError(f"separator: got {self._separator!r}, wanted one character")

    def _rows(self) -> Iterator[tuple[str, Row | BadRecord]]:
        suffix = self._path.suffix.lower()
        if suffix in SEPARATORS:
            return _numbered(self._csv())
        if suffix in JSON_LINES:
            return self._json_lines()
        if suffix == ".parquet":
            return _numbered(self._parquet())
        raise InputError(f"{self._path}: {suffix or 'a file without suffix'} is not known; wanted {KINDS}")

    def _csv(self) -> Iterator[Row]:
        try:
            with self._path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file, delimiter=self._separator)
                self._check_columns(reader.fieldnames or [])
                yield from reader
        except (csv.Error, UnicodeDecodeError, OSError) as error:
            raise InputError(f"{self._path}: does not read as UTF-8 text with separators ({error})") from None

    def _json_lines(self) -> Iterator[tuple[str, Row | BadRecord]]:
        """The columns are those of the first line; another that lacks one is a bad record."""
        checked = False
        for where, row in json_lines(self._path):
            if not checked and not isinstance(row, BadRecord):
                self._check_columns(row)
                checked = True
            missing = [] if isinstance(row, BadRecord) else [key for key in self._keys if key not in row]
            yield where, BadRecord(f"has no {missing[0]!r}") if missing else row

    def _parquet(self, keys: Sequence[str] | None = None) -> Iterator[Row]:
        with _opened(self._path) as file:
            self._check_columns(file.schema_arrow.names)
            for batch in file.iter_batches(columns=sorted(set(keys or self._keys))):
                yield from batch.to_pylist()

    def _holds_pictures(self) -> bool:
        with _opened(self._path) as file:
            self._check_columns(file.schema_arrow.names)
            return holds_pictures(file.schema_arrow.field(self._keys[0]).type)

    def _cells(self) -> Iterator[tuple[str, Item | BadRecord]]:
        """An item a row, whose picture is a cell; the column of pictures is not read where ids do not repeat."""
        image_key, caption_key, id_key, *split_key = self._keys
        file, mark = self._path.absolute(), str(self._path.stat().st_size)
        own_ids = id_key != image_key
        rows = list(self._parquet([caption_key, *([id_key] if own_ids else []), *split_key]))
        counts = Counter(_cell(row.get(id_key)) for row in rows) if own_ids else Counter[str]()
        first: dict[str, tuple[Cell, str]] = {}
        for number, row in enumerate(rows):
            cell = Cell(file, image_key, number, mark, self._root.absolute())
            image_id = _cell(row.get(id_key)) if own_ids else f"{self._path.stem}/{number}"
            try:
                if not image_id:
                    raise BadRecord(f"has nothing in column {id_key!r}")
                if counts[image_id] > 1:
                    cell = _same(image_id, cell, first)
                found = captions(row.get(caption_key))
                yield f"row {number + 1}", Item(image_id, cell, found, group=image_id, split=self._split(row))
            except BadRecord as error:
                yield f"row {number + 1}", error

    def _check_columns(self, columns: Any) -> None:
        for key in self._keys:
            if key not in columns:
                raise InputError(
                    f"{self._path}: has no column {key!r}; its columns are {', '.join(map(repr, columns))}"
                )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A pyarrow ParquetFile; what goes wrong with it is an InputError."""
    try:
        with open_parquet(path) as file:
            yield file
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: does not read as parquet ({error})") from None


def _same(image_id: str, cell: Cell, first: dict[str, tuple[Cell, str]]) -> Cell:
    """The cell that stands for the id: the first one, which must hold the same picture."""
    try:
        digest = hashlib.sha256(cell.read()).hexdigest()
    except (ImageError, OSError) as error:
        raise BadRecord(f"has no picture that can be read ({error})") from None
    seen, known = first.setdefault(image_id, (cell, digest))
    if digest != known:
        raise BadRecord(f"gives the id {image_id!r} to another picture than row {seen.row + 1}")
    return seen


def _numbered(rows: Iterator[Row]) -> Iterator[tuple[str, Row]]:
    return ((f"row {number}", row) for number, row in enumerate(rows, start=1))


def _cell(value: Any) -> str:
    return "" if value is None else str(value).strip()
