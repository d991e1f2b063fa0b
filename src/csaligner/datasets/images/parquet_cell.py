"""Images in the cells of a parquet table, read in place."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from csaligner.parquet import open_parquet

from .load import ImageError, read_file

CHUNK_BYTES = 64 << 20  # of images in memory at once, estimated from the table's averages
CHUNK_ROWS = 256


@dataclass(frozen=True)
class Cell:
    """The image in one row of a column: bytes, or the {bytes, path} of Hugging Face's `datasets`.

    row: row number in the whole file, from 0. mark: the file's size, which identifies its version. files: whether a
    cell without bytes may name a file; root: folder its path is relative to, None: the table's folder.
    """

    file: Path
    column: str
    row: int
    mark: str = field(default="", compare=False)
    root: Path | None = field(default=None, compare=False)
    files: bool = field(default=True, compare=False)

    @property
    def name(self) -> str:
        return f"{self.column}[{self.row}]"

    @property
    def stamp(self) -> str:
        return f"{self} {self.mark}"

    def read(self) -> bytes:
        """Return the encoded image. Raises ImageError for an empty cell, OSError for an unreadable image file."""
        import pyarrow as pa

        try:
            reader = (os.getpid(), threading.get_ident(), self.file.stat().st_mtime_ns)
            value = _column(self.file, self.column, reader).value(self.row)
        except (pa.ArrowException, OSError, ValueError, KeyError, StopIteration, MemoryError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ImageError(f"{self}: cannot be read ({reason})") from None
        content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if content:
            return bytes(content)
        if not path or not self.files:
            raise ImageError(f"{self}: has no image")
        return read_file(Path(self.root or self.file.parent, path))

    def __str__(self) -> str:
        return f"{self.file}#{self.name}"


class _Column:
    """Reader of one column, optimised for sequential access: one chunk of rows is in memory."""

    def __init__(self, file: Path, column: str) -> None:
        with open_parquet(file) as table:
            self._table, self._column = table, column
        self._starts = [0]
        for rows, _ in table.groups:
            self._starts.append(self._starts[-1] + rows)
        self._rest: Iterator[Any] = iter(())
        self._group = -1
        self._first, self._values = 0, []  # type: int, list[Any]

    def value(self, row: int) -> Any:
        if row >= self._starts[-1]:
            raise ValueError(f"the table has {self._starts[-1]} rows")
        group = next(n for n, end in enumerate(self._starts[1:]) if row < end)
        if group != self._group or row < self._first:
            self._rest, self._group = self._read(group), group
            self._first, self._values = self._starts[group], []
        while row >= self._first + len(self._values):
            self._first += len(self._values)
            self._values = next(self._rest).column(0)
        return self._values[row - self._first].as_py()

    def _read(self, group: int) -> Iterator[Any]:
        rows, size = self._table.groups[group]
        chunk = max(1, min(CHUNK_ROWS, CHUNK_BYTES * rows // max(size, 1)))
        return self._table.batches([self._column], most_rows=chunk, row_groups=[group])


@lru_cache(maxsize=4)
def _column(file: Path, column: str, reader: tuple[int, ...]) -> _Column:
    """Open a column; reader: process, thread and modification time, which share no open file."""
    return _Column(file, column)


def holds_images(kind: Any) -> bool:
    """Return whether a pyarrow type can hold images."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        return "bytes" in [kind.field(n).name for n in range(kind.num_fields)]
    tests = ("is_binary", "is_large_binary", "is_fixed_size_binary", "is_binary_view")
    return any(getattr(pa.types, test, lambda _: False)(kind) for test in tests)
