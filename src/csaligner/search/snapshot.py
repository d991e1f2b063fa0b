"""Snapshot of the tables of an index in memory-mapped files, so that a search neither imports nor asks LanceDB.

The tables are the index; a snapshot repeats their rows and aligned vectors (an Arrow file and an array for each
kind), is written at the end of an update, and counts only as long as the tables have the versions that it names.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csaligner.files import write_folder, write_json

FOLDER, RECORD = "snapshot", "snapshot.json"
ROW = "_rowid"
BATCH = 8192


@dataclass(frozen=True)
class _Part:
    """The items of one kind. rows: Arrow table in the order of the row ids; vectors: (N, d); numbers: row ids (N,);
    order: positions in the order of the ids of the items (N,)."""

    rows: Any
    vectors: NDArray[np.float32]
    numbers: NDArray[np.int64]
    order: NDArray[np.int64]

    @cached_property
    def columns(self) -> dict[str, Any]:
        """The columns of an item by name: Arrow arrays, of one chunk as they are written."""
        return {
            name: self.rows[name].chunk(0) if self.rows[name].num_chunks == 1 else self.rows[name]
            for name in self.rows.column_names
            if name != ROW
        }

    def position(self, item_id: str) -> int | None:
        """Return the position of the item with this id."""
        ids = self.columns["id"]
        place = bisect_left(self.order, item_id, key=lambda position: ids[int(position)].as_py())
        found = int(self.order[place]) if place < len(self.order) else None
        return found if found is not None and ids[found].as_py() == item_id else None


class Snapshot:
    """An open snapshot; read by Items. Rows are dictionaries by column."""

    def __init__(self, parts: Mapping[Any, _Part], version: list[int]) -> None:
        """Use open_snapshot."""
        self._parts, self.version = parts, version

    @property
    def kinds(self) -> tuple[Any, ...]:
        return tuple(self._parts)

    def count(self, kind: str) -> int:
        return len(self._parts[kind].vectors)

    def vectors(self, kind: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return row ids (N,) and vectors (N, d), mapped into memory."""
        part = self._parts[kind]
        return part.numbers, part.vectors

    def by_row(self, kind: str, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Return the rows with these row ids, in the given order."""
        part = self._parts[kind]
        return _taken(part, np.searchsorted(part.numbers, np.asarray(rows, np.int64)))

    def by_id(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return the rows with these ids; unknown ids are skipped."""
        found: list[dict[str, Any]] = []
        for part in self._parts.values():
            places = [place for place in map(part.position, ids) if place is not None]
            found += _taken(part, np.asarray(places, np.int64))
        return found

    def columns(self, kind: str, names: Sequence[str]) -> Any:
        """Return columns of all rows as an Arrow table, in the order of the row ids."""
        return self._parts[kind].rows.select(list(names))


def write_snapshot(folder: Path, tables: Mapping[Any, Any], vector: str, columns: Sequence[str]) -> None:
    """Write the snapshot of open LanceDB tables into an index folder, atomically. vector, columns: to keep."""

    def write(out: Path) -> None:
        for kind, table in tables.items():
            _write_part(out, kind, table, vector, columns)
        versions = {kind: int(table.version) for kind, table in tables.items()}
        write_json(out / RECORD, {"format_version": 1, "versions": versions, "stamps": _stamps(folder)})

    write_folder(folder / FOLDER, write)


def open_snapshot(folder: Path) -> Snapshot | None:
    """Open the snapshot of an index folder; None if there is none, it is damaged, or the tables have changed."""
    try:
        record = json.loads((folder / FOLDER / RECORD).read_text(encoding="utf-8"))
        if record["format_version"] != 1 or record["stamps"] != _stamps(folder):
            return None
        versions: Mapping[str, int] = record["versions"]
        return Snapshot({m: _open_part(folder / FOLDER, m) for m in versions}, [int(v) for v in versions.values()])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # Arrow's errors are ValueErrors
        return None


def files_of(folder: Path) -> Iterator[Path]:
    """Yield the files of the snapshot in an index folder."""
    yield from sorted(path for path in (folder / FOLDER).glob("*") if path.is_file())


def _stamps(folder: Path) -> dict[str, list[str]]:
    """Return the names of the versions of each table, which every write changes."""
    return {
        table.name: sorted(path.name for path in (table / "_versions").glob("*.manifest"))
        for table in sorted(folder.glob("*.lance"))
    }


def _write_part(out: Path, kind: str, table: Any, vector: str, columns: Sequence[str]) -> None:
    import pyarrow as pa

    rows = table.search().select(list(columns)).with_row_id(True).to_arrow()
    order = np.argsort(rows[ROW].to_numpy(), kind="stable")
    rows = rows.take(order).combine_chunks()
    numbers = rows[ROW].to_numpy().astype(np.int64)
    with pa.OSFile(str(out / f"{kind}.arrow"), "wb") as file, pa.ipc.new_file(file, rows.schema) as writer:
        writer.write_table(rows)
    ids = np.argsort(np.asarray(rows["id"].to_pylist(), dtype=object), kind="stable")
    np.save(out / f"{kind}-order.npy", ids.astype(np.int64))
    np.save(out / f"{kind}-rows.npy", numbers)
    shape = (len(numbers), table.schema.field(vector).type.list_size)
    if not len(numbers):
        np.save(out / f"{kind}.npy", np.empty(shape, np.float32))
        return
    vectors: Any = np.lib.format.open_memmap(out / f"{kind}.npy", "w+", np.float32, shape)
    for batch in table.search().select([vector]).with_row_id(True).to_batches(BATCH):
        places = np.searchsorted(numbers, batch[ROW].to_numpy().astype(np.int64))
        vectors[places] = batch[vector].flatten().to_numpy().reshape(-1, shape[1])
    vectors.flush()


def _open_part(folder: Path, kind: str) -> _Part:
    import pyarrow as pa

    with pa.memory_map(str(folder / f"{kind}.arrow")) as file:
        rows = pa.ipc.open_file(file).read_all()
    # c: torch wants arrays that can be written. Arrow's own to_numpy would import pandas
    vectors, order, numbers = (
        np.load(folder / f"{kind}{name}.npy", mmap_mode="c" if len(rows) else None, allow_pickle=False)
        for name in ("", "-order", "-rows")
    )
    if not len(rows) == len(vectors) == len(order) == len(numbers):
        raise ValueError("the files differ in length")
    return _Part(rows, vectors, numbers, order)


def _taken(part: _Part, places: NDArray[np.int64]) -> list[dict[str, Any]]:
    # value by value: Arrow's take would import pyarrow.compute, which costs a tenth of a second
    return [{name: values[place].as_py() for name, values in part.columns.items()} for place in places.tolist()]
