"""A table of image paths and captions: csv, tsv, jsonl or parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from csaligner.checks import InputError
from csaligner.types import Item

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

    Raises InputError for a missing file, a column that is not there (and says which are), a row without an image,
    an id with two pictures, and a file that does not parse.
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
    ) -> None:
        self._path = Path(path)
        self._keys = (image_key, caption_key, id_key or image_key)
        self._separator = separator or SEPARATORS.get(self._path.suffix.lower(), ",")
        if self._separator == r"\t":  # what a shell makes of '\t'
            self._separator = "\t"
        self._root = Path(image_root) if image_root is not None else self._path.parent
        self._check()

    @property
    def name(self) -> str:
        return self._path.name

    def items(self) -> Sequence[Item]:
        image_key, caption_key, id_key = self._keys
        images: dict[str, Path] = {}
        captions: dict[str, list[str]] = {}
        for number, row in enumerate(self._rows(), start=1):
            image, image_id = _cell(row.get(image_key)), _cell(row.get(id_key))
            if not image or not image_id:
                missing = image_key if not image else id_key
                raise InputError(
                    f"{self._path}: row {number} has nothing in column {missing!r}; fill it or remove the row"
                )
            path = self._root / image
            first = images.setdefault(image_id, path)
            if first != path:
                raise InputError(
                    f"{self._path}: row {number} gives the id {image_id!r} to {path}, but it stands for {first}; "
                    "give each picture its own id"
                )
            captions.setdefault(image_id, []).extend(_captions(row.get(caption_key)))
        return [Item(i, path, tuple(captions[i]), group=i) for i, path in images.items()]

    def _check(self) -> None:
        if not self._path.is_file():
            raise InputError(f"{self._path}: no such file")
        if not self._root.is_dir():
            raise InputError(f"image_root: no such folder: {self._root}")
        if len(self._separator) != 1:
            raise InputError(f"separator: got {self._separator!r}, wanted one character")

    def _rows(self) -> Iterator[Row]:
        suffix = self._path.suffix.lower()
        if suffix in SEPARATORS:
            return self._csv()
        if suffix in JSON_LINES:
            return self._json_lines()
        if suffix == ".parquet":
            return self._parquet()
        raise InputError(f"{self._path}: {suffix or 'a file without suffix'} is not known; wanted {KINDS}")

    def _csv(self) -> Iterator[Row]:
        try:
            with self._path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file, delimiter=self._separator)
                self._check_columns(reader.fieldnames or [])
                yield from reader
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{self._path}: does not read as UTF-8 text with separators ({error})") from None

    def _json_lines(self) -> Iterator[Row]:
        try:
            text = self._path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{self._path}: is not UTF-8 text ({error})") from None
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{self._path}: line {number} is not JSON ({error})") from None
            if not isinstance(row, dict):
                raise InputError(f"{self._path}: line {number} is not a JSON object")
            self._check_columns(row)
            yield row

    def _parquet(self) -> Iterator[Row]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self._path) as file:
                self._check_columns(file.schema_arrow.names)
                for batch in file.iter_batches(columns=sorted(set(self._keys))):
                    yield from batch.to_pylist()
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{self._path}: does not read as parquet ({reason})") from None

    def _check_columns(self, columns: Any) -> None:
        for key in self._keys:
            if key not in columns:
                raise InputError(
                    f"{self._path}: has no column {key!r}; its columns are {', '.join(map(repr, columns))}"
                )


def _cell(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _captions(value: Any) -> list[str]:
    return [_cell(entry) for entry in value] if isinstance(value, list) else [_cell(value)]
