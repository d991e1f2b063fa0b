"""Caption files in a folder of images: tables, Flickr's .token files, COCO's and Karpathy's JSON."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from csaligner.checks import InputError
from csaligner.datasets.images.load import SUFFIXES
from csaligner.parquet import open_parquet
from csaligner.registry import DATASETS, load
from csaligner.types import Dataset, Item, Split, notes_of
from csaligner.wording import count_of

from .delimited import header_of, records, separator_of
from .records import BadRecord, json_lines, read_json
from .table import JSON_LINES, SEPARATORS, TABLE_SUFFIXES, Table
from .text_files import NotText, TextFiles, split_lines

JSON_NAME = re.compile(r"caption|annotation|dataset|metadata|coco|flickr|descri|label|sentence", re.IGNORECASE)
TEXT_NAME = re.compile(r"caption|token|results|annotation|descri|metadata|label", re.IGNORECASE)
FIRST = (r"captions\.(csv|tsv|jsonl|jsonlines|ndjson)", r"metadata\.(csv|tsv|jsonl|jsonlines|ndjson|parquet)")
THEN = (r"captions\.parquet", r".*caption.*\.txt", r"results.*\.token", r".*\.token", r".*\.json", r".*")
ORDER = tuple(re.compile(pattern, re.IGNORECASE) for pattern in (*FIRST, *THEN))
FLICKR_LINE = re.compile(r"\S[^\t]*#\d+\t")
CAPTION_COLUMNS: tuple[str, ...] = ("caption", "captions", "text", "texts", "sentence", "sentences", "raw")
CAPTION_COLUMNS += ("comment", "description", "alt_text", "alt", "prompt", "title", "label")
CAPTION_WORD = re.compile(r"caption|text|sentence|comment|descri|prompt|title", re.IGNORECASE)
SAMPLED = 2000  # rows of a table that are compared with the names of the images
NAMED = 10  # caption files listed with the reason why they were not read
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Columns:
    """The columns of a table that hold image files and captions, and the separator of delimited text."""

    image: str
    caption: str
    separator: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The options of the reader Table."""
        return {"image_key": self.image, "caption_key": self.caption, "separator": self.separator}


@dataclass(frozen=True)
class CaptionFile:
    """A caption file of a folder: captions and split by image, and the number of entries that name none of its
    images."""

    path: Path
    how: str
    captions: Mapping[Path, tuple[str, ...]]
    splits: Mapping[Path, Split | None]
    unmatched: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class ImageFiles:
    """The images of a folder, found by path, by file name or by stem where it names only one of them."""

    root: Path
    images: Sequence[Path]
    _by_path: dict[str, Path] = field(default_factory=dict)
    _by_name: dict[str, list[Path]] = field(default_factory=dict)
    _by_stem: dict[str, list[Path]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in self.images:
            self._by_path[_form(path.relative_to(self.root).as_posix())] = path
            self._by_name.setdefault(_form(path.name), []).append(path)
            self._by_stem.setdefault(_form(path.stem), []).append(path)

    def find(self, name: str, folder: Path) -> Path | None:
        """Return the image that a caption file in `folder` calls `name`, None if there is none or more than one."""
        name = _form(name.strip().replace("\\", "/"))
        if not name:
            return None
        beside = folder.relative_to(self.root).as_posix() if folder.is_relative_to(self.root) else "."
        tried = (name, name.removeprefix("./"), name if beside == "." else f"{beside}/{name}")
        known = next((self._by_path[path] for path in tried if path in self._by_path), None)
        if known is not None:
            return known
        last = name.rsplit("/", 1)[-1]
        found = self._by_name.get(last) or ([] if Path(last).suffix.lower() in SUFFIXES else self._by_stem.get(last))
        return found[0] if found and len(found) == 1 else None


def caption_like(root: Path, files: Iterable[Path]) -> list[Path]:
    """Return the files that may hold the captions of a folder's images, the most likely first: tables, .token, JSON
    and .txt named like captions, in the folder or one below, without those that belong to one image (cat.json beside
    cat.jpg)."""
    files = list(files)
    images = {_form(str(p)) for p in files if p.suffix.lower() in SUFFIXES}
    stems = {name.rsplit(".", 1)[0] for name in images}
    found = [path for path in files if len(path.relative_to(root).parts) <= 2 and _is_like(path)]
    found = [path for path in found if _form(str(path.with_suffix(""))) not in stems | images]
    if images:
        shapes = tuple(images)
        found = [path for path in found if path.suffix.lower() != ".json" or not str(path).startswith(shapes)]
    return sorted(found, key=lambda path: (len(path.relative_to(root).parts), _rank(path.name), path))


def has_caption_file(root: Path) -> bool:
    """Whether a folder, or one directly below, holds a file that may be a caption file."""
    folders = [root, *(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")]
    files = (path for folder in folders for path in _listed(folder))
    return bool(caption_like(root, (path for path in files if path.name[0] != ".")))


def find_captions(root: Path, files: Sequence[Path]) -> tuple[CaptionFile | None, dict[Path, str]]:
    """Return the first caption file whose entries name images among `files`, and the reason for each other one.

    A file with any other name than those of caption files is read only where no image has a .txt file.
    """
    images = ImageFiles(root, [path for path in files if path.suffix.lower() in SUFFIXES])
    chosen: CaptionFile | None = None
    reasons: dict[Path, str] = {}
    stems = {_form(str(path.with_suffix(""))) for path in files if path.suffix.lower() == ".txt"}
    beside = any(_form(str(path.with_suffix(""))) in stems for path in images.images)
    for path in caption_like(root, files):
        if chosen is not None:
            reasons[path] = f"{chosen.path.name} is read instead"
            continue
        if beside and not (JSON_NAME.search(path.name) or TEXT_NAME.search(path.name)):
            reasons[path] = (
                f"the .txt files beside the images are read instead; to read it, call it captions{path.suffix}"
            )
            continue
        try:
            chosen = _read(path, images)
        except InputError as error:
            reasons[path] = str(error).removeprefix(f"{path}: ")
        except (NotText, OSError) as error:
            reasons[path] = getattr(error, "strerror", None) or str(error)
    return chosen, reasons


def columns_of(path: Path, names_image: Callable[[str], bool]) -> Columns:
    """Return the columns of a table: of images, the one most of whose first rows satisfy `names_image`; of captions,
    by its name, else, in a file named like captions, the one with most letters.

    Raises InputError, which lists the columns, if there is none.
    """
    names, rows, separator = _sample(path)
    counts = {
        name: sum(isinstance(v, str) and names_image(v) for v in (row.get(name) for row in rows)) for name in names
    }
    image = max(counts, key=lambda name: counts[name], default="")
    if any(map(names_image, names)):
        raise InputError(f"{path}: has no header; add a first line such as image,caption")
    if not counts or not counts[image]:
        raise InputError(f"{path}: no column names an image that is there; it has {', '.join(map(repr, names))[:200]}")
    known = {name.strip().lower(): name for name in names if name != image}
    caption = next((known[name] for name in CAPTION_COLUMNS if name in known), None)
    caption = caption or next((known[name] for name in known if CAPTION_WORD.search(name)), None)
    if caption is None and "caption" in path.name.lower():
        caption = max(known.values(), key=lambda name: _letters(rows, name), default=None)
    if caption is None or not any(row.get(caption) for row in rows):
        raise InputError(f"{path}: has no column of captions; it has {', '.join(map(repr, names))[:200]}")
    return Columns(image, caption, separator)


def table_columns(path: Path, image_root: Path | None = None) -> Columns:
    """Return the columns of a table of images that are stored relative to `image_root`, default: the table's folder."""
    root = image_root or path.parent

    def is_there(name: str) -> bool:
        try:
            return bool(name.strip()) and (root / name.strip()).is_file()
        except (OSError, ValueError):  # not a valid file name
            return False

    return columns_of(path, is_there)


def described(found: CaptionFile, images: int) -> tuple[str, ...]:
    """Return the lines that say what was read from a caption file of a folder with that many images."""
    line = f"captions: {found.path.name} ({found.how}), for {len(found.captions):,} of {count_of(images, 'image')}"
    if not found.unmatched:
        return (line, *found.notes)
    first = found.unmatched[0]
    unknown = count_of(len(found.unmatched), "entry", "entries")
    return (
        line,
        f"{found.path.name}: {unknown} without an image here (first: {first})",
        *found.notes,
    )


def unread(reasons: Mapping[Path, str]) -> tuple[str, ...]:
    """Return one line for each caption file that was not read, at most NAMED of them."""
    lines = [f"not read: {path.name}: {reason}" for path, reason in islice(reasons.items(), NAMED)]
    more = Counter(path.suffix.lower() for path in islice(reasons, NAMED, None))
    return (*lines, *(f"not read: {number} more {suffix}" for suffix, number in sorted(more.items())))


def _read(path: Path, images: ImageFiles) -> CaptionFile:
    """Read a caption file. Raises InputError if it names none of the images."""
    dataset, how = _opened(path, images)
    captions: dict[Path, tuple[str, ...]] = {}
    splits: dict[Path, Split | None] = {}
    unmatched: list[str] = []
    for item in dataset.items():
        image = _image_of(item, images, path.parent)
        found = tuple(caption.strip() for caption in item.captions if caption.strip())
        if image is None:
            unmatched.append(str(item.image_id)[:80])
        elif found:
            captions[image] = captions.get(image, ()) + found
            splits.setdefault(image, item.split)
    if not captions:
        raise InputError(f"{path}: names no image that is there (first: {unmatched[0] if unmatched else 'no entry'})")
    return CaptionFile(path, how, captions, splits, tuple(unmatched), notes_of(dataset))


def _opened(path: Path, images: ImageFiles) -> tuple[Dataset, str]:
    """Open a caption file with the reader of its format; returns the reader and the format in words."""
    suffix = path.suffix.lower()
    if suffix == ".token" or (suffix == ".txt" and FLICKR_LINE.match(_first_line(path))):
        return load("dataset", DATASETS, "flickr")(path), "Flickr's format"
    if suffix == ".json":
        from .formats import format_of

        name = format_of(path)
        if name != "table":
            return load("dataset", DATASETS, name)(path), f"{name} JSON"
    columns = columns_of(path, lambda cell: images.find(cell, path.parent) is not None)
    return Table(path, **columns.options), f"columns {columns.image!r} and {columns.caption!r}"


def _image_of(item: Item, images: ImageFiles, folder: Path) -> Path | None:
    """Return the image of an item, by its id (a path or a name) or by its path."""
    if not isinstance(item.image, Path):
        return None
    if item.image.is_relative_to(images.root):
        found = images.find(item.image.relative_to(images.root).as_posix(), images.root)
        if found is not None:
            return found
    return images.find(item.image_id, folder) or images.find(item.image.name, folder)


def _sample(path: Path) -> tuple[list[str], list[Row], str | None]:
    """Return the column names, the first rows, and the separator of a table."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet_sample(path)
    if suffix in JSON_LINES:
        rows: list[Row] = [row for _, row in islice(json_lines(path), SAMPLED) if isinstance(row, dict)]
        return _keys(rows), rows, None
    if suffix == ".json":
        value = read_json(path)
        rows = [row for row in islice(value if isinstance(value, list) else [], SAMPLED) if isinstance(row, dict)]
        return _keys(rows), rows, None
    lines = split_lines(TextFiles().read_all(path), keep_ends=True)
    separator = separator_of(lines, SEPARATORS.get(suffix, ","), lambda cells: len(cells) > 1)
    names, start = header_of(lines, separator)
    found = (cells for _, cells in records(lines, start, separator, len(names), None))
    return names, [dict(zip(names, row, strict=True)) for row in islice(_good(found), SAMPLED)], separator


def _good(rows: Iterable[list[str] | BadRecord]) -> Iterator[list[str]]:
    return (row for row in rows if not isinstance(row, BadRecord))


def _parquet_sample(path: Path) -> tuple[list[str], list[Row], None]:
    import pyarrow as pa

    try:
        with open_parquet(path) as file:
            schema = file.schema
            names = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
            lists = [f.name for f in schema if pa.types.is_list(f.type) or pa.types.is_large_list(f.type)]
            if not names and any(pa.types.is_struct(f.type) or pa.types.is_binary(f.type) for f in schema):
                raise InputError(f"{path}: holds the images themselves; give this file instead of its folder")
            batch = next(file.batches([*names, *lists], most_rows=SAMPLED), None)
    except ValueError as error:
        raise InputError(f"{path}: cannot be read as parquet ({error})") from None
    return [*names, *lists], batch.to_pylist() if batch is not None else [], None


def _keys(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _letters(rows: Sequence[Row], name: str) -> int:
    """Return the number of letters in a column of the sample."""
    values = (row.get(name) for row in rows)
    texts = (" ".join(map(str, v)) if isinstance(v, list) else v if isinstance(v, str) else "" for v in values)
    return sum(sum(map(str.isalpha, text)) for text in texts)


def _first_line(path: Path) -> str:
    return next((line for line in split_lines(TextFiles().read_all(path)) if line.strip()), "")


def _is_like(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix == ".json":
        return bool(JSON_NAME.search(path.name))
    if suffix == ".txt":
        return bool(TEXT_NAME.search(path.name))
    return suffix in (*TABLE_SUFFIXES, ".token")


def _rank(name: str) -> int:
    return next(number for number, pattern in enumerate(ORDER) if pattern.fullmatch(name))


def _listed(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not path.is_dir()]
    except OSError:
        return []


def _form(text: str) -> str:
    return unicodedata.normalize("NFC", text)
