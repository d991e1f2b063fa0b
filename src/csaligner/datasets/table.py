"""Reader of tables of captions with image paths or embedded images: csv, tsv, JSON lines, JSON or parquet."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from csaligner.checks import InputError
from csaligner.datasets.images.load import ImageError
from csaligner.datasets.images.parquet_cell import Cell, holds_images
from csaligner.datasets.images.source import TextOnly, Unusable
from csaligner.parquet import open_parquet
from csaligner.types import Item, Split

from .delimited import header_of, records, separator_of
from .records import (
    SPLIT_NAMES,
    BadRecord,
    captions,
    image_at,
    items_of,
    json_lines,
    listed,
    merged,
    numbered,
    read_json,
)
from .text_files import TextFiles, shown, split_lines

Row = Mapping[str, Any]
Rows = Iterator[tuple[str, Row | BadRecord]]
SEPARATORS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".jsonlines", ".ndjson")
TABLE_SUFFIXES = (*SEPARATORS, *JSON_LINES, ".parquet")
SPREADSHEETS = (".xlsx", ".xls", ".ods")


class Table:
    """One row per caption; several rows with the same image are several captions of it.

    path: the table, whose format follows from the suffix (any other suffix: delimited text), or a folder of parquet
    shards. image_key, caption_key: columns; in JSON and parquet a caption may also be a list. id_key: column of image
    ids; default: the image path is the id. separator: separator of delimited text, a tab also as \\t; default: the one
    declared by a first line sep=;, else that of the suffix, else the first that yields the columns. encoding: encoding
    of delimited text and JSON lines, see TextFiles. image_root: folder that image paths are relative to; default: the
    table's folder.

    split_key: a column with train, val or test; default: the hash rule.

    In parquet the image_key column may hold the images: bytes, or the struct {bytes, path} of Hugging Face's
    `datasets`. Workers read them on demand. Without id_key the id is the table's name and the row number; with it,
    rows of one id must hold the same image.

    A row without an image is a text with the id of its row or of id_key, used where texts are wanted. A row with
    another image for an id, with too many or too few cells, or that does not parse is an unusable item; the other
    rows are read. Raises InputError for a missing file, a missing column (and lists the existing ones), and a file
    that does not parse.
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
        encoding: str | None = None,
    ) -> None:
        self._path = Path(path)
        self._image, self._caption, self._id, self._split = image_key, caption_key, id_key, split_key
        self._separator = "\t" if separator == r"\t" else separator  # a shell passes '\t' as two characters
        self._texts = TextFiles(encoding)
        self._root = (
            Path(image_root) if image_root is not None else self._path if self._path.is_dir() else self._path.parent
        )
        self._files = [self._path] if not self._path.is_dir() else shards_of(self._path)
        self._check()

    @property
    def name(self) -> str:
        return self._path.name

    @property
    def notes(self) -> tuple[str, ...]:
        """A line if the encoding was guessed."""
        return self._texts.notes

    def items(self) -> Sequence[Item]:
        return self._items(either=False)

    def documents(self) -> Sequence[Item]:
        """Like items(), but the column of images or that of captions may be missing."""
        return self._items(either=True)

    def _items(self, *, either: bool) -> list[Item]:
        self._texts.clear()
        found: list[Item] = []
        images: dict[str, Path] = {}
        for file in self._files:
            if file.suffix.lower() == ".parquet" and self._holds_images(file, either):
                found += items_of(file, self._cells(file), lambda item: item)
                continue
            for number, (where, row) in enumerate(self._rows(file, either), start=1):
                found += items_of(file, [(where, row)], partial(self._item, file, where, number, images))
        return merged(_with_images(found))

    def _item(self, file: Path, where: str, number: int, images: dict[str, Path], row: Row) -> Item:
        image, found = _name(row, self._image), captions(row.get(self._caption))
        image_id = _cell(row.get(self._id or self._image))
        if not image and any(caption.strip() for caption in found):
            name = image_id or (f"row-{number}" if len(self._files) == 1 else f"{self._shard(file)}/row-{number}")
            reason = f"{file}: {where} has nothing in column {self._image!r}"
            return Item(name, TextOnly(name, reason), found, group=name, split=self._split_of(row))
        if not image or not image_id:
            raise BadRecord(f"has nothing in column {(self._image if not image else self._id)!r}")
        path = image_at(self._root, image)
        first = images.setdefault(image_id, path)
        if first != path:
            raise BadRecord(f"has the id {shown(image_id)} for {path}, an earlier row for {first}")
        return Item(image_id, path, found, group=image_id, split=self._split_of(row))

    def _split_of(self, row: Row) -> Split | None:
        split = _cell(row.get(self._split)) if self._split else ""
        if split and split not in SPLIT_NAMES:
            raise BadRecord(f"has the split {shown(split)}, wanted train, val or test")
        return SPLIT_NAMES.get(split)

    def _check(self) -> None:
        if not self._files or not self._files[0].is_file():
            raise InputError(f"{self._path}: " + ("holds no .parquet" if self._path.is_dir() else "no such file"))
        if not self._root.is_dir():
            raise InputError(f"image_root: no such folder: {self._root}")
        if self._separator is not None and len(self._separator) != 1:
            raise InputError(f"separator: got {self._separator!r}, wanted one character")

    def _rows(self, file: Path, either: bool) -> Rows:
        suffix = file.suffix.lower()
        if suffix in JSON_LINES:
            return self._checked(json_lines(file, self._texts), either)
        if suffix == ".parquet":
            return numbered_rows(self._parquet(file, either))
        if suffix == ".json":
            values = numbered("records", listed(file, read_json(file)))
            return self._checked(
                ((w, v if isinstance(v, dict) else BadRecord("is not an object")) for w, v in values), either
            )
        if suffix in SPREADSHEETS:
            raise InputError(
                f"{file}: unknown format {suffix}; save it as .csv, or as one of {', '.join(TABLE_SUFFIXES)}"
            )
        return self._delimited(file, either)

    def _delimited(self, file: Path, either: bool) -> Rows:
        lines = split_lines(self._texts.read_all(file), keep_ends=True)
        default = SEPARATORS.get(file.suffix.lower(), ",")
        separator = self._separator or separator_of(lines, default, lambda names: not self._missing(names, either))
        names, start = header_of(lines, separator)
        self._check_columns(names, either)
        image = names.index(self._image) if self._image in names else None
        for number, cells in records(lines, start, separator, len(names), image):
            yield f"line {number}", cells if isinstance(cells, BadRecord) else dict(zip(names, cells, strict=True))

    def _checked(self, rows: Iterable[tuple[str, Row | BadRecord]], either: bool) -> Rows:
        """Check the columns of the first row; a later row without one of them is a bad record."""
        wanted: list[str] | None = None
        for where, row in rows:
            if isinstance(row, BadRecord):
                yield where, row
                continue
            if wanted is None:
                self._check_columns(row, either)
                wanted = [] if either else self._keys()
            missing = [key for key in wanted if key not in row]
            yield where, BadRecord(f"has no {missing[0]!r}") if missing else row

    def _parquet(self, file: Path, either: bool, skip: str | None = None) -> Iterator[Row]:
        with _opened(file) as opened:
            names = opened.names
            self._check_columns(names, either)
            for batch in opened.batches(sorted({*self._keys()} & {*names} - {skip})):
                yield from batch.to_pylist()

    def _holds_images(self, file: Path, either: bool) -> bool:
        with _opened(file) as opened:
            self._check_columns(opened.names, either)
            known = self._image in opened.names
            return known and holds_images(opened.schema.field(self._image).type)

    def _cells(self, file: Path) -> Iterator[tuple[str, Item | BadRecord]]:
        """Yield one item per row, whose image is a cell; images are read only for ids that occur more than once."""
        path, mark = file.absolute(), str(file.stat().st_size)
        rows = list(self._parquet(file, True, skip=self._image))
        counts = Counter(_cell(row.get(self._id)) for row in rows) if self._id else Counter[str]()
        first: dict[str, tuple[Cell, str]] = {}
        for number, row in enumerate(rows):
            cell = Cell(path, self._image, number, mark, self._root.absolute())
            image_id = _cell(row.get(self._id)) if self._id else f"{self._shard(file)}/{number}"
            try:
                if not image_id:
                    raise BadRecord(f"has nothing in column {self._id!r}")
                if counts[image_id] > 1:
                    cell = _same(image_id, cell, first)
                found = captions(row.get(self._caption))
                yield f"row {number + 1}", Item(image_id, cell, found, group=image_id, split=self._split_of(row))
            except BadRecord as error:
                yield f"row {number + 1}", error

    def _shard(self, file: Path) -> str:
        """Return the table's name in ids; for a shard, its path below the folder."""
        return file.relative_to(self._path).with_suffix("").as_posix() if file != self._path else file.stem

    def _keys(self) -> list[str]:
        return [key for key in (self._image, self._caption, self._id, self._split) if key]

    def _missing(self, columns: Iterable[str], either: bool) -> list[str]:
        """Return the missing columns; either: one of images and captions is enough."""
        names = set(columns)
        missing = [key for key in self._keys() if key not in names]
        if either and {self._image, self._caption} & names:
            return [key for key in missing if key not in {self._image, self._caption}]
        return missing

    def _check_columns(self, columns: Iterable[str], either: bool) -> None:
        names = list(columns)
        if twice := [key for key in self._keys() if names.count(key) > 1]:
            raise InputError(f"{self._path}: has the column {twice[0]!r} twice; rename one of them")
        if missing := self._missing(names, either):
            raise InputError(
                f"{self._path}: has no column {missing[0]!r}; its columns are {', '.join(map(repr, names))[:300]}"
            )


def shards_of(folder: Path) -> list[Path]:
    """Return the parquet files in a folder and in its subfolder `data`, as on the Hugging Face hub."""
    found = [path for path in (*folder.glob("*.parquet"), *folder.glob("data/*.parquet")) if path.name[0] != "."]
    return sorted(found)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a pyarrow ParquetFile; errors become an InputError."""
    try:
        with open_parquet(path) as file:
            yield file
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: cannot be read as parquet ({error})") from None


def _same(image_id: str, cell: Cell, first: dict[str, tuple[Cell, str]]) -> Cell:
    """Return the first cell of the id. Raises BadRecord if it holds another image."""
    try:
        digest = hashlib.sha256(cell.read()).hexdigest()
    except (ImageError, OSError) as error:
        raise BadRecord(f"has an unreadable image ({error})") from None
    seen, known = first.setdefault(image_id, (cell, digest))
    if digest != known:
        raise BadRecord(f"has the id {shown(image_id)} of row {seen.row + 1}, which holds another image")
    return seen


def _with_images(items: Sequence[Item]) -> list[Item]:
    """Make texts captions of the image with the same id; merge other texts of the same id."""
    images = {item.image_id: item.image for item in reversed(items) if not isinstance(item.image, Unusable)}
    for item in items:
        if isinstance(item.image, TextOnly):
            images.setdefault(item.image_id, item.image)
    return [replace(i, image=images[i.image_id]) if isinstance(i.image, TextOnly) else i for i in items]


def numbered_rows(rows: Iterable[Row]) -> Rows:
    return ((f"row {number}", row) for number, row in enumerate(rows, start=1))


def _name(row: Row, key: str) -> str:
    """Return the file name in a cell. Raises BadRecord for a list, an object or bytes."""
    value = row.get(key)
    if isinstance(value, (list, tuple, dict, bytes)):
        raise BadRecord(f"has the {key!r} {shown(value)}, wanted a file name")
    return _cell(value)


def _cell(value: Any) -> str:
    return "" if value is None else str(value).strip()
