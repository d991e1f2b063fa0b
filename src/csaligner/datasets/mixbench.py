"""Reader of MixBench: queries, a corpus of texts, images and items with both, and relevance judgements.

Two releases of the same benchmark (Li et al. 2025, arXiv 2507.19054) are read, also mixed in one folder:

    MSCOCO/queries.parquet, mixed_corpus.parquet      MixBench2026: columns id, text, image {bytes, path}
    MSCOCO/queries.jsonl, mixed_corpus.jsonl          MixBench25: query_id or corpus_id, text, image (a file in images/)
    MSCOCO/qrels/qrels.tsv                            MixBench25: query_id, corpus_id, score; MixBench2026 has none
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from csaligner.checks import InputError
from csaligner.parquet import open_parquet
from csaligner.types import ImageSource

from .images.load import is_file
from .images.parquet_cell import Cell, holds_images
from .records import BadRecord, image_at, json_lines
from .text_files import TextFiles, shown

QREL_COLUMNS = ("query_id", "corpus_id", "score")  # or with hyphens, as in BEIR
IDS = ("id", "query_id", "corpus_id", "_id")
QUERIES, CORPUS = ("queries",), ("mixed_corpus", "corpus")
QRELS = ("qrels/qrels.tsv", "qrels.tsv", "qrels.parquet")
QRELS_REPO = "mixed-modality-search/MixBench25"

ItemKind = Literal["text", "image", "both"]


@dataclass(frozen=True)
class MixItem:
    """A query or an item of the corpus. text: "" without one; image: None without one; never neither."""

    id: str
    text: str
    image: ImageSource | Image.Image | None

    @property
    def kind(self) -> ItemKind:
        return "text" if self.image is None else "both" if self.text else "image"


@dataclass(frozen=True)
class MixBenchSet:
    """One set. qrels: relevant items of each query, id -> id -> gain > 0; queries: those with a relevant item."""

    name: str
    queries: tuple[MixItem, ...]
    corpus: tuple[MixItem, ...]
    qrels: Mapping[str, Mapping[str, int]]


def read_mixbench(folder: Path | str) -> list[MixBenchSet]:
    """Read all sets of a folder, or the folder of one set, sorted by name.

    Raises InputError for a folder without a set, a damaged file, an image that is missing or outside the folder, a
    repeated id, and judgements that name unknown ids.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"mixbench: no such folder: {folder}")
    folders = (
        [root] if _table(root, QUERIES) else sorted(f for f in root.iterdir() if f.is_dir() and _table(f, QUERIES))
    )
    if not folders:
        raise InputError(
            f"mixbench: {folder} has no set; wanted folders such as MSCOCO with queries.parquet or queries.jsonl, "
            "mixed_corpus.* and qrels/qrels.tsv"
        )
    return [_read_set(each, root) for each in folders]


def _read_set(folder: Path, root: Path) -> MixBenchSet:
    queries, corpus = (_read_items(folder, names, root) for names in (QUERIES, CORPUS))
    qrels = _read_qrels(folder)
    known_queries, known = {query.id for query in queries}, {item.id for item in corpus}
    for query, relevant in qrels.items():
        lost = sorted({*relevant} - known) if query in known_queries else [query]
        if lost:
            raise InputError(f"mixbench: the qrels of {folder} name {lost[0]!r}, which is not in its queries or corpus")
    judged = tuple(query for query in queries if query.id in qrels)
    if not judged:
        raise InputError(f"mixbench: the qrels of {folder} have no relevant item")
    return MixBenchSet(folder.resolve().name, judged, tuple(corpus), qrels)


def _table(folder: Path, names: tuple[str, ...]) -> Path | None:
    """Return the first existing table of these names, parquet before jsonl."""
    paths = (folder / f"{name}{suffix}" for name in names for suffix in (".parquet", ".jsonl"))
    return next((path for path in paths if path.is_file()), None)


def _read_items(folder: Path, names: tuple[str, ...], root: Path) -> list[MixItem]:
    path = _table(folder, names)
    if path is None:
        raise InputError(f"mixbench: {folder} has no {names[0]}.parquet or {names[0]}.jsonl; download the whole set")
    rows = _parquet_items(path) if path.suffix == ".parquet" else _json_items(path, folder, root)
    found: dict[str, MixItem] = {}
    for item in rows:
        if item.id in found:
            raise InputError(f"mixbench: {path} has the id {item.id!r} twice")
        if not item.text and item.image is None:
            raise InputError(f"mixbench: {path}: {item.id!r} has neither a text nor an image")
        found[item.id] = item
    if not found:
        raise InputError(f"mixbench: {path} is empty")
    return list(found.values())


def _parquet_items(path: Path) -> Iterator[MixItem]:
    try:
        with open_parquet(path) as table:
            key = next((name for name in IDS if name in table.names), None)
            if key is None:
                raise InputError(f"mixbench: {path} has no column {', '.join(IDS[:-1])} or {IDS[-1]}")
            columns = [key, *(["text"] if "text" in table.names else [])]
            rows = table.read(columns).to_pylist()
            has_image = [False] * len(rows)
            if "image" in table.names and holds_images(table.schema.field("image").type):
                has_image = [bool(value) for batch in table.batches(["image"], most_rows=256) for value in _full(batch)]
    except ValueError as error:
        raise InputError(f"mixbench: {path} cannot be read ({error})") from None
    for number, (row, full) in enumerate(zip(rows, has_image, strict=True)):
        image = Cell(path.resolve(), "image", number, files=False) if full else None
        yield MixItem(str(row[key]), (row.get("text") or "").strip(), image)


def _full(batch: Any) -> Iterator[bool]:
    """Yield for each row of a batch with one column of images whether it has bytes."""
    for value in batch.column(0).to_pylist():
        yield bool(value.get("bytes") if isinstance(value, dict) else value)


def _json_items(path: Path, folder: Path, root: Path) -> Iterator[MixItem]:
    for where, row in json_lines(path):
        yield _json_item(f"{path}: {where}", row, folder, root)


def _json_item(where: str, row: dict[str, Any] | BadRecord, folder: Path, root: Path) -> MixItem:
    try:
        return _item_of(row, folder, root)
    except BadRecord as error:
        raise InputError(f"mixbench: {where} {error}") from None


def _item_of(row: dict[str, Any] | BadRecord, folder: Path, root: Path) -> MixItem:
    if isinstance(row, BadRecord):
        raise row
    key = next((name for name in IDS if name in row), None)
    if key is None:
        raise BadRecord(f"has no {', '.join(IDS[:-1])} or {IDS[-1]}")
    name = row.get("image") or ""
    image = _image(name, folder, root) if isinstance(name, str) and name else None
    return MixItem(str(row[key]), str(row.get("text") or "").strip(), image)


def _image(name: str, folder: Path, root: Path) -> Path:
    """Return the file of an image: in images/ of the set, else in the set, else in the folder of all sets."""
    for parent in (folder / "images", folder, root):
        path = image_at(parent, name)
        if is_file(path):
            if not path.resolve().is_relative_to(root.resolve()):
                raise BadRecord(f"has the image {shown(name)}, which is outside {root}")
            return path
    raise BadRecord(f"has the image {shown(name)}, which is not in {folder / 'images'}; download the images")


def _read_qrels(folder: Path) -> dict[str, dict[str, int]]:
    path = next((folder / name for name in QRELS if (folder / name).is_file()), None)
    if path is None:
        raise InputError(
            f"mixbench: {folder} has no {QRELS[0]}; MixBench2026 has none: add those of {QRELS_REPO} "
            "(hf download --repo-type dataset --include '*/qrels/*')"
        )
    found: dict[str, dict[str, int]] = {}
    for number, row in enumerate(_qrel_rows(path), start=2):
        try:
            query, item, gain = (row[key] if key in row else row[key.replace("_", "-")] for key in QREL_COLUMNS)
            gain = int(gain)
        except (KeyError, TypeError, ValueError):
            raise InputError(
                f"mixbench: {path}: row {number}: wanted the columns {', '.join(QREL_COLUMNS)} and a whole score"
            ) from None
        if gain > 0:
            found.setdefault(str(query), {})[str(item)] = gain
    return found


def _qrel_rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".tsv":
        return [*csv.DictReader(TextFiles().read_all(path).splitlines(), delimiter="\t")]
    try:
        with open_parquet(path) as table:
            rows: list[dict[str, Any]] = table.read(table.names).to_pylist()
            return rows
    except ValueError as error:
        raise InputError(f"mixbench: {path} cannot be read ({error})") from None
