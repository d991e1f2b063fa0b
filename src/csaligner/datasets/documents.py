"""What goes into an index: pictures and texts found in a folder, a table or a dataset."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from csaligner.checks import InputError
from csaligner.datasets import ALL, open_dataset
from csaligner.datasets.images.load import SUFFIXES
from csaligner.datasets.images.parquet_cell import Cell, holds_pictures
from csaligner.parsing import open_parquet
from csaligner.types import Modality

from .formats import TABLE_SUFFIXES
from .records import BadRecord, json_lines
from .table import JSON_LINES, SEPARATORS

DOCUMENTS = frozenset({".txt", ".md"})
MAX_DOCUMENT = 20_000_000  # bytes
PASSAGE = 800  # characters: about what a small sentence encoder reads
INDEX_FILE = "index.json"  # a folder that holds one is an index, not data


@dataclass(frozen=True)
class Entry:
    """One thing that can be found.

    path: the picture, a file or a cell of a table; or the document that a passage comes from. text: what a text entry
    says, "" for pictures. caption: of a picture, for people. owner: the id of the picture that a caption describes,
    else "".
    """

    id: str
    modality: Modality
    path: Path | Cell | None = None
    text: str = ""
    caption: str = ""
    owner: str = ""


@dataclass(frozen=True)
class Found:
    """source: names the data, so that a later call for the same data knows what went; skipped: reasons, one line
    each, for what was there and cannot be used."""

    source: str
    entries: tuple[Entry, ...]
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class EntrySettings:
    """captions: whether captions of pictures are texts of the index, too. The keys are columns of a table;
    image_root: the folder that its picture paths start from and must not leave (the table's own, if not given)."""

    captions: bool = True
    image_key: str = "image"
    text_key: str = "caption"
    id_key: str | None = None
    image_root: Path | None = None


@dataclass
class _Collector:
    captions: bool
    entries: dict[str, Entry] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        if entry.id in self.entries:
            raise InputError(f"data: the id {entry.id!r} is there twice; give each picture and each text its own id")
        self.entries[entry.id] = entry

    def picture(self, image_id: str, path: Path | Cell, captions: tuple[str, ...]) -> None:
        self.add(Entry(image_id, "image", path, caption=captions[0] if captions else ""))
        for number, caption in enumerate(captions if self.captions else (), start=1):
            self.add(Entry(f"{image_id}#caption-{number}", "text", path, text=caption, owner=image_id))


def find_entries(data: str, settings: EntrySettings | None = None) -> Found:
    """Everything that can be indexed in `data`.

    A folder: its pictures (ids: paths below it; a .txt of the same stem holds captions, one a line) and its .txt
    and .md documents, cut into passages. A table (csv, tsv, jsonl, parquet): rows with a picture, a text or both.
    In parquet the column of pictures may hold their paths or their bytes. A dataset's name (openmoji, say): its
    pictures and captions. Hidden files, folders that hold an index, and links that lead out of the folder are left
    out.

    Raises InputError where there is nothing of that name or nothing in it to index.
    """
    settings = settings or EntrySettings()
    path = Path(data)
    if data in (*ALL, "all"):
        found = _dataset(data, settings)
    elif path.is_dir():
        found = _folder(path.resolve(), settings)
    elif path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        found = _table(path.resolve(), settings)
    elif path.is_file():
        raise InputError(f"data: {path} is neither a folder nor one of {', '.join(TABLE_SUFFIXES)}")
    else:
        raise InputError(f"data: no such file or folder: {data}")
    if not found.entries:
        more = f" (first left out: {found.skipped[0]})" if found.skipped else ""
        raise InputError(f"data: {data} holds no picture and no text to index{more}")
    return found


def split_passages(text: str, size: int = PASSAGE) -> list[str]:
    """Paragraphs, joined while they fit into `size` characters; a longer one is cut between sentences or words.

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


def _folder(root: Path, settings: EntrySettings) -> Found:
    into = _Collector(settings.captions)
    files = list(_walk(root, into.skipped))
    stems = {path.with_suffix("") for path in files if path.suffix.lower() in SUFFIXES}
    for path in files:
        name = path.relative_to(root).as_posix()
        if path.suffix.lower() in SUFFIXES:
            captions = _read(path.with_suffix(".txt"), name, into.skipped) if path.with_suffix(".txt").is_file() else ""
            into.picture(name, path.resolve(), _clean(captions.splitlines()))
        elif path.with_suffix("") not in stems or path.suffix.lower() != ".txt":
            for number, passage in enumerate(split_passages(_read(path, name, into.skipped)), start=1):
                into.add(Entry(f"{name}#{number}", "text", path.resolve(), text=passage))
    return Found(str(root), tuple(into.entries.values()), tuple(into.skipped))


def _walk(root: Path, skipped: list[str]) -> Iterator[Path]:
    def refused(error: OSError) -> None:
        skipped.append(f"{error.filename}: {error.strerror}")

    for folder, names, files in os.walk(root, onerror=refused):
        if INDEX_FILE in files:
            names.clear()
            continue
        names[:] = sorted(name for name in names if not name.startswith("."))
        for file in sorted(files):
            path = Path(folder, file)
            if file.startswith(".") or path.suffix.lower() not in SUFFIXES | DOCUMENTS:
                continue
            if path.resolve().is_relative_to(root):
                yield path
            else:
                skipped.append(f"{path}: a link that leads out of {root}")


def _read(path: Path, name: str, skipped: list[str]) -> str:
    try:
        if path.stat().st_size > MAX_DOCUMENT:
            skipped.append(f"{name}: larger than {MAX_DOCUMENT // 1_000_000} MB")
            return ""
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        skipped.append(f"{name}: is not UTF-8 text")
    except OSError as error:
        skipped.append(f"{name}: cannot be read ({error.strerror})")
    return ""


def _dataset(name: str, settings: EntrySettings) -> Found:
    into = _Collector(settings.captions)
    for item in open_dataset(name).items():
        if isinstance(item.image, Path):
            into.picture(item.image_id, item.image.resolve(), _clean(item.captions))
        else:
            into.skipped.append(f"{item.image_id}: its picture is not a file of its own")
    return Found(name, tuple(into.entries.values()), tuple(into.skipped))


def _table(path: Path, settings: EntrySettings) -> Found:
    into = _Collector(settings.captions)
    root = (settings.image_root or path.parent).resolve()
    columns, rows = _rows(path, settings)
    wanted = {settings.image_key, settings.text_key} & set(columns)
    if not wanted:
        raise InputError(
            f"data: {path} has no column {settings.image_key!r} and none {settings.text_key!r}; "
            f"its columns are {', '.join(map(repr, columns))}"
        )
    if settings.id_key and settings.id_key not in columns:
        raise InputError(f"data: {path} has no column {settings.id_key!r}; it has {', '.join(map(repr, columns))}")
    pictures: dict[str, tuple[Path | Cell, list[str]]] = {}
    for number, row in enumerate(rows, start=1):
        cell = row.get(settings.image_key)
        image = str(cell or "").strip()
        value = row.get(settings.text_key)
        texts = _clean(value if isinstance(value, list) else [value])
        own_id = f"{path.stem}/{cell.row}" if isinstance(cell, Cell) else image or f"row-{number}"
        row_id = str(row[settings.id_key]) if settings.id_key else own_id
        if not image:
            for part, text in enumerate(texts, start=1):
                into.add(Entry(row_id if len(texts) == 1 else f"{row_id}#{part}", "text", text=text))
        elif isinstance(cell, Cell):
            pictures.setdefault(row_id, (cell, []))[1].extend(texts)
        elif "\0" in image or not (root / image).resolve().is_relative_to(root):
            into.skipped.append(f"row {number}: {image!r} lies outside {root}; name its folder as image_root")
        else:
            pictures.setdefault(row_id, ((root / image).resolve(), []))[1].extend(texts)
    for image_id, (picture, captions) in pictures.items():
        into.picture(image_id, picture, tuple(captions))
    return Found(str(path), tuple(into.entries.values()), tuple(into.skipped))


def _rows(path: Path, settings: EntrySettings) -> tuple[list[str], list[Mapping[str, Any]]]:
    import pyarrow as pa

    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            return _parquet_rows(path, settings)
        if suffix in JSON_LINES:  # not by pyarrow.json, which ends the process at some broken lines
            return _json_rows(path)
        return _text_rows(path, SEPARATORS[suffix])
    except (pa.ArrowException, csv.Error, OSError, ValueError) as error:
        raise InputError(f"data: {path} does not read as {suffix} ({str(error).splitlines()[0]})") from None


def _text_rows(path: Path, separator: str) -> tuple[list[str], list[Mapping[str, Any]]]:
    """Every value as the text that it is: 007 stays 007."""
    import pyarrow as pa
    import pyarrow.csv

    with path.open(encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file, delimiter=separator), [])
    parse = pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True)
    convert = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    table = pa.csv.read_csv(path, parse_options=parse, convert_options=convert)
    return table.column_names, table.to_pylist()


def _parquet_rows(path: Path, settings: EntrySettings) -> tuple[list[str], list[Mapping[str, Any]]]:
    """A column that holds pictures is not read: its values are the places where they are."""
    key = settings.image_key
    with open_parquet(path) as file:
        columns = list(file.schema_arrow.names)
        if key not in columns or not holds_pictures(file.schema_arrow.field(key).type):
            return columns, file.read(use_threads=False).to_pylist()
        words = [name for name in columns if name in (settings.text_key, settings.id_key)]
        others = file.read(columns=words, use_threads=False).to_pylist() if words else [{}] * file.metadata.num_rows
    size = str(path.stat().st_size)
    return columns, [row | {key: Cell(path, key, n, size, files=False)} for n, row in enumerate(others)]


def _json_rows(path: Path) -> tuple[list[str], list[Mapping[str, Any]]]:
    """Raises ValueError for a line that is no JSON object."""
    rows: list[Mapping[str, Any]] = []
    for where, row in json_lines(path):
        if isinstance(row, BadRecord):
            raise ValueError(f"{where} {row}")
        rows.append(row)
    return list(dict.fromkeys(key for row in rows for key in row)), rows


def _clean(captions: Any) -> tuple[str, ...]:
    texts = (" ".join(str(text).split()) for text in captions if text is not None)
    return tuple(text for text in texts if text)
