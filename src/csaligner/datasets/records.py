"""Shared helpers of the readers: JSON files, image paths, and records, of which a broken one is skipped."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from csaligner.checks import InputError
from csaligner.datasets.images.load import is_file
from csaligner.datasets.images.source import Unusable
from csaligner.parsing import parse_json
from csaligner.types import Item, Split

from .text_files import TextFiles, shown, split_lines

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "restval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
R = TypeVar("R")
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
BASE64 = re.compile(r"data:|[A-Za-z0-9+/\s]{200,}={0,2}\Z")
LONGEST_NAME = 255  # bytes allowed by common file systems


class BadRecord(ValueError):
    """An invalid record of a dataset; the message describes the problem."""


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises InputError for a missing file and for invalid JSON."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        return parse_json(TextFiles().read_all(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: is not JSON ({error})") from None


def json_lines(path: Path, texts: TextFiles | None = None) -> Iterator[tuple[str, dict[str, Any] | BadRecord]]:
    """Yield ("line 3", its object or a BadRecord) for every non-empty line."""
    for number, line in enumerate(split_lines((texts or TextFiles()).read_all(path)), start=1):
        if line.strip():
            yield f"line {number}", _json_object(line)


def _json_object(line: str) -> dict[str, Any] | BadRecord:
    try:
        value = parse_json(line)
    except json.JSONDecodeError as error:
        return BadRecord(f"is not JSON ({error})")
    return value if isinstance(value, dict) else BadRecord("is not a JSON object")


def listed(path: Path, value: Any, *keys: str) -> list[Any]:
    """Return the list at value[key][key]..., or value itself. Raises InputError for another type: another format."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, list):
        raise InputError(f"{path}: has no list {'.'.join(keys) or 'of records'}; check --data-format")
    return value


def text(record: Any, key: str) -> str:
    """Return record[key], stripped. Raises BadRecord unless it is a non-empty text."""
    value = field(record, key)
    if not isinstance(value, str) or not value.strip():
        raise BadRecord(f"has the {key!r} {shown(value)}, wanted a text")
    return value.strip()


def field(record: Any, key: str) -> Any:
    if not isinstance(record, dict):
        raise BadRecord(f"is {type(record).__name__}, wanted an object")
    if key not in record:
        raise BadRecord(f"has no {key!r}")
    return record[key]


def captions(value: Any) -> tuple[str, ...]:
    """Return a caption or a list of captions as a tuple; what is not text becomes "", later counted as dropped."""
    values = value if isinstance(value, (list, tuple)) else [value]
    values = [entry.decode(errors="replace") if isinstance(entry, bytes) else entry for entry in values]
    return tuple(entry if isinstance(entry, str) else "" for entry in values)


def image_at(root: Path, name: str) -> Path:
    """Return the path of a record's image below `root`; a name in the other Unicode form (NFC, NFD), or with the
    separators of Windows, is found as well.

    Raises BadRecord for a value that is not a file name: a URL, an image as base64, a name that is too long.
    """
    if URL.match(name):
        raise BadRecord(
            f"has the URL {shown(name)}, wanted a file; csaligner downloads nothing: download it with img2dataset"
        )
    if BASE64.match(name):
        raise BadRecord("has the image as base64; store it as bytes in parquet")
    if len(name) * 4 > LONGEST_NAME:
        longest = max(len(part.encode("utf-8", "surrogatepass")) for part in name.split("/"))
        if longest > LONGEST_NAME:
            raise BadRecord(f"has a file name of {longest} bytes, {shown(name)}; wanted at most {LONGEST_NAME}")
    path = root / name
    if (name.isascii() and "\\" not in name) or is_file(path):
        return path
    names = (name, name.replace("\\", "/"))
    forms = (root / unicodedata.normalize(form, other) for other in names for form in ("NFC", "NFD"))
    return next((other for other in forms if is_file(other)), path)


def items_of(path: Path | str, records: Iterable[tuple[str, R | BadRecord]], make: Callable[[R], Item]) -> list[Item]:
    """Return one item per record; a record that raises BadRecord becomes an unusable item with that reason.

    records: each with its position in the file, for messages.
    """
    return [_item(path, where, record, make) for where, record in records]


def merged(items: Iterable[Item]) -> list[Item]:
    """Merge items of the same id and image, with all their captions, in the order of first appearance."""
    first: dict[tuple[str, object], Item] = {}
    found: dict[tuple[str, object], list[str]] = {}
    for item in items:
        key = (item.image_id, item.image)
        first.setdefault(key, item)
        found.setdefault(key, []).extend(item.captions)
    return [replace(item, captions=tuple(found[key])) for key, item in first.items()]


def numbered(name: str, records: Iterable[R]) -> Iterator[tuple[str, R]]:
    return ((f"{name}[{number}]", record) for number, record in enumerate(records))


def unusable(path: Path | str, where: str, reason: str) -> Item:
    """Return an item for a record that cannot be used; where: position in the file, "" for the whole file."""
    name = f"{path}: {where}" if where else f"{path}:"
    return Item(name, Unusable(name, f"{name} {reason}"), (), group=name)


def _item(path: Path | str, where: str, record: R | BadRecord, make: Callable[[R], Item]) -> Item:
    try:
        if isinstance(record, BadRecord):
            raise record
        return make(record)
    except BadRecord as error:
        return unusable(path, where, str(error))


def root_of(path: Path, image_root: Path | str | None, *defaults: Path) -> Path:
    """Return the folder that image paths are relative to: image_root, else the first existing default folder, else the
    folder of the file."""
    if image_root is None:
        return next((folder for folder in defaults if folder.is_dir()), path.parent)
    if not Path(image_root).is_dir():
        raise InputError(f"image_root: no such folder: {image_root}")
    return Path(image_root)
