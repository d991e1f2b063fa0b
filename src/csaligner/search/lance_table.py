"""LanceDB tables of an index; the only module that imports lancedb."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from csaligner.checks import CSAlignerError, InputError
from csaligner.extras import install_command
from csaligner.remote import cause
from csaligner.types import Modality

from .snapshot import FOLDER as SNAPSHOT
from .snapshot import ROW, Snapshot, files_of, open_snapshot, write_snapshot

ItemKind = Literal["image", "text", "fused"]  # fused: an image and its captions, as one vector
TABLES: Mapping[Modality, str] = {"image": "images", "text": "texts"}
FUSED: ItemKind = "fused"  # also the name of its table, which only an index of fused items has
ALIGNED, RAW = "vector", "raw"
PARTS: Mapping[Modality, str] = {"image": "image_part", "text": "text_part"}  # aligned vectors of a fused item
KEEP_VERSIONS = timedelta(days=1)  # readers can use an older version for this long
INDEX_TYPES = ("ivf_sq", "ivf_pq", "ivf_rq", "hnsw")
AT_ONCE = 1000  # ids per condition
BATCH = 8192  # rows read at once
READ_DIRECTLY = "s3://"  # tables that LanceDB reads where they are


@dataclass(frozen=True)
class Row:
    """One item of an index. text: of a text; of a fused item its captions, one per line; "" for other images. source:
    the data it comes from; size, mtime_ns: of the file when it was embedded; sha256: of the image file or of the text,
    of a fused item both, joined with +."""

    id: str
    modality: Modality
    path: str
    text: str
    caption: str
    owner: str
    source: str
    size: int
    mtime_ns: int
    sha256: str

    @property
    def kind(self) -> ItemKind:
        return FUSED if self.modality == "image" and self.text else self.modality


@dataclass(frozen=True)
class Stamp:
    """The columns that determine whether a row must be embedded again (size, mtime_ns, sha256) or only updated.
    kind: the table it is in."""

    kind: ItemKind
    modality: str
    path: str
    caption: str
    owner: str
    source: str
    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class Matrix:
    """All vectors of one column and modality. rows: LanceDB row ids; vectors: (N, d) float32."""

    rows: Tensor
    vectors: Tensor


_NAMES = list(Row.__dataclass_fields__)


class Items:
    """One table of images, one of texts and in an index of fused items one of these, each with its own approximate
    index. Every write to a table is atomic and creates a version. Read through the snapshot, if there is one, until the
    first write."""

    def __init__(self, folder: Path, tables: Mapping[ItemKind, Any] | None, snapshot: Snapshot | None = None) -> None:
        """Use Items.create or Items.open. tables: None for those of the folder, opened on first use."""
        self._folder, self._opened, self._snapshot = folder, tables, snapshot
        self.is_remote = False  # whether the tables are on object storage

    @classmethod
    def create(cls, folder: Path, dim: int, raw_dim: int | None, *, fused: bool = False) -> Items:
        """Create empty tables. dim: of aligned vectors; raw_dim: of raw vectors, None: not kept; fused: also a table of
        fused items, which keeps their parts and no raw vectors."""
        import pyarrow as pa

        types: Mapping[str, Any] = {"size": pa.int64(), "mtime_ns": pa.int64()}
        fields = [pa.field(name, types.get(name, pa.string())) for name in _NAMES]
        fields.append(pa.field(ALIGNED, pa.list_(pa.float32(), dim)))
        if raw_dim is not None:
            fields.append(pa.field(RAW, pa.list_(pa.float16(), raw_dim)))
        database = _connect(folder)
        tables: dict[ItemKind, Any] = {
            m: database.create_table(name, schema=pa.schema(fields)) for m, name in TABLES.items()
        }
        if fused:
            parts = [pa.field(name, pa.list_(pa.float32(), dim)) for name in PARTS.values()]
            own = [each for each in fields if each.name != RAW]
            tables[FUSED] = database.create_table(FUSED, schema=pa.schema([*own, *parts]))
        return cls(folder, tables)

    @classmethod
    def open(cls, folder: Path) -> Items:
        """Open the tables. Raises InputError if a table is missing or damaged."""
        snapshot = open_snapshot(folder)
        return cls(folder, None if snapshot else cls._open_tables(folder), snapshot)

    @classmethod
    def open_url(cls, folder: Path, url: str, *, fused: bool) -> Items:
        """Open the tables at a URL to read them. folder: the other files of the index; fused: whether it has a table of
        fused items. Raises InputError if a table is missing or damaged."""
        items = cls(folder, cls._opened_tables(url, fused=fused))
        items.is_remote = True
        return items

    @classmethod
    def _open_tables(cls, folder: Path) -> Mapping[ItemKind, Any]:
        return cls._opened_tables(folder, fused=(folder / f"{FUSED}.lance").is_dir())

    @staticmethod
    def _opened_tables(where: Path | str, *, fused: bool) -> Mapping[ItemKind, Any]:
        names: dict[ItemKind, str] = {m: name for m, name in TABLES.items()}  # noqa: C416  (the keys are wider)
        if fused:
            names[FUSED] = FUSED
        try:
            database = _connect(where)
            return {kind: database.open_table(name) for kind, name in names.items()}
        except InputError:
            raise
        except Exception as error:  # ValueError, RuntimeError or OSError, depending on the damage
            raise InputError(f"index: {where} cannot be opened ({cause(error)}); delete it and index again") from None

    @property
    def _tables(self) -> Mapping[ItemKind, Any]:
        if self._opened is None:
            self._opened = self._open_tables(self._folder)
        return self._opened

    @property
    def _written(self) -> Mapping[ItemKind, Any]:
        """The tables, for a write: the snapshot counts no more. Raises InputError if they are on object storage."""
        if self.is_remote:
            raise InputError("index: is open at its URL to be read; change it with `csaligner index --out URL`")
        tables, self._snapshot = self._tables, None
        return tables

    @property
    def kinds(self) -> tuple[ItemKind, ...]:
        """The kinds of items that have a table."""
        return self._snapshot.kinds if self._snapshot is not None else tuple(self._tables)

    @property
    def version(self) -> list[int]:
        """Versions of the tables; changes with every write."""
        if self._snapshot is not None:
            return self._snapshot.version
        return [int(table.version) for table in self._tables.values()]

    def count(self, kind: ItemKind | None = None) -> int:
        wanted = [one for one in self.kinds if kind in {None, one}]
        if self._snapshot is not None:
            return sum(map(self._snapshot.count, wanted))
        return sum(int(self._tables[one].count_rows()) for one in wanted)

    def put(
        self,
        kind: ItemKind,
        rows: Sequence[Row],
        aligned: Tensor,
        raw: Tensor | None,
        *,
        new: bool = False,
        parts: Mapping[Modality, Tensor] | None = None,
    ) -> None:
        """Add rows of one kind, or replace rows with the same ids. aligned: (N, dim); raw: (N, raw_dim), if raw vectors
        are kept; parts: (N, dim) each, of fused items. new: all ids are new (faster)."""
        import pyarrow as pa

        target = self._written[kind]
        columns: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in _NAMES}
        of_parts = [(PARTS[m], vectors, np.float32) for m, vectors in (parts or {}).items()]
        for name, vectors, dtype in ((ALIGNED, aligned, np.float32), (RAW, raw, np.float16), *of_parts):
            if vectors is not None:
                flat = pa.array(vectors.cpu().numpy().astype(dtype).ravel())
                columns[name] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        table = pa.table(columns, schema=target.schema)
        if new:
            target.add(table)
        else:
            target.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(table)

    def restamp(self, changed: Mapping[str, Mapping[str, Any]]) -> None:
        """Update columns other than the vectors. changed: id -> column -> value."""
        import pyarrow as pa

        if not changed:
            return
        old = self.by_id(list(changed))
        for kind, table in self._written.items():
            rows = [asdict(row) | dict(changed[row.id]) for row in old if row.kind == kind]
            if rows:
                schema = pa.schema([table.schema.field(name) for name in _NAMES])
                table.merge_insert("id").when_matched_update_all().execute(pa.Table.from_pylist(rows, schema=schema))

    def delete(self, ids: Iterable[str]) -> None:
        wanted = list(ids)
        for start in range(0, len(wanted), AT_ONCE):
            for table in self._written.values():
                table.delete(_among(wanted[start : start + AT_ONCE]))

    def stamps(self) -> dict[str, Stamp]:
        names = [name for name in Stamp.__dataclass_fields__ if name != "kind"]
        found: dict[str, Stamp] = {}
        for kind in self.kinds:
            rows = self._columns(kind, ["id", *names]).to_pylist()
            found |= {row.pop("id"): Stamp(kind, **row) for row in rows}
        return found

    def first_texts(self, most: int) -> list[str]:
        """Return the first `most` texts."""
        if self._snapshot is not None:
            return list(self._snapshot.columns("text", ["text"]).slice(0, most)["text"].to_pylist())
        found: list[str] = self._tables["text"].search().select(["text"]).limit(most).to_arrow()["text"].to_pylist()
        return found

    def owners(self) -> dict[ItemKind, dict[int, tuple[str, str]]]:
        """Return the id and the owner of each item by LanceDB row id."""
        found: dict[ItemKind, dict[int, tuple[str, str]]] = {}
        for kind in self.kinds:
            rows = self._columns(kind, ["id", "owner"], row_ids=True).to_pylist()
            found[kind] = {row[ROW]: (row["id"], row["owner"]) for row in rows}
        return found

    def by_id(self, ids: Sequence[str]) -> list[Row]:
        """Return the rows with these ids, in no particular order; unknown ids are skipped."""
        if self._snapshot is not None:
            return [Row(**row) for row in self._snapshot.by_id(ids)]
        found: list[Row] = []
        for start in range(0, len(ids), AT_ONCE):
            condition = _among(ids[start : start + AT_ONCE])
            for table in self._tables.values():
                found += [Row(**row) for row in table.search().where(condition).select(_NAMES).to_list()]
        return found

    def by_row(self, kind: ItemKind, rows: Sequence[int]) -> list[Row]:
        """Return the rows with these row ids (from Matrix or `nearest`), in the given order."""
        if not rows:
            return []
        if self._snapshot is not None:
            return [Row(**row) for row in self._snapshot.by_row(kind, rows)]
        query = self._tables[kind].take_row_ids(list(rows)).select(_NAMES).with_row_id()
        found = {row.pop(ROW): Row(**row) for row in query.to_arrow().to_pylist()}  # unordered
        return [found[row] for row in rows]

    def matrix(self, kind: ItemKind, column: str = ALIGNED) -> Matrix:
        """Return all vectors of a column, in the order of the row ids; they are copied once, in batches, or mapped into
        memory by the snapshot."""
        if self._snapshot is not None and column == ALIGNED:
            known, mapped = self._snapshot.vectors(kind)
            return Matrix(torch.from_numpy(known), torch.from_numpy(mapped))
        table = self._tables[kind]
        dim = table.schema.field(column).type.list_size
        vectors, rows = np.empty((self.count(kind), dim), np.float32), np.empty(self.count(kind), np.int64)
        done = 0
        for batch in table.search().select([column]).with_row_id(True).to_batches(BATCH):
            end = done + len(batch)
            rows[done:end] = batch[ROW].to_numpy()
            vectors[done:end] = batch[column].flatten().to_numpy().reshape(-1, dim)
            done = end
        if len(rows) > 1 and (rows[1:] < rows[:-1]).any():
            order = rows.argsort()
            rows, vectors = rows[order], vectors[order]
        return Matrix(torch.from_numpy(rows), torch.from_numpy(vectors))

    def nearest(self, vector: Tensor, kind: ItemKind, k: int, *, nprobes: int, refine: int) -> tuple[list[int], Tensor]:
        """Return row ids and cosines of the k nearest items, best first, from the approximate index."""
        query = self._tables[kind].search(vector.numpy(), vector_column_name=ALIGNED).distance_type("dot")
        query = query.nprobes(nprobes).refine_factor(refine)
        found = query.select(["_distance"]).with_row_id(True).limit(k).to_arrow()
        return found[ROW].to_pylist(), 1 - torch.tensor(found["_distance"].to_pylist())

    def build_approximate(self, items: ItemKind, kind: str, partitions: int) -> None:
        table = self._written[items]
        options: dict[str, Any] = {"num_partitions": partitions}
        if kind == "ivf_pq":
            dim = table.schema.field(ALIGNED).type.list_size
            options["num_sub_vectors"] = next(n for n in range(max(1, dim // 4), 0, -1) if dim % n == 0)
        config = _index_config(kind)(distance_type="dot", **options)
        try:
            table.create_index(ALIGNED, config=config, replace=True)
        except Exception as error:  # for example too few rows, disk full
            reason = " ".join(str(error).split())[:200]
            rows = self.count(items)
            raise CSAlignerError(
                f"approximate: building {kind} over {rows} items ({items}) failed ({reason}); use exact"
            ) from None

    def tidy(self) -> None:
        """Merge small files, update the indexes, delete old versions."""
        from lancedb.index import BTree

        for kind, table in self._written.items():
            have = {name for index in table.list_indices() for name in index.columns}
            if self.count(kind) and "id" not in have:
                table.create_index("id", config=BTree())
            table.optimize(cleanup_older_than=KEEP_VERSIONS)

    def write_snapshot(self, *, keep: bool) -> None:
        """Write the snapshot of the tables, and read through it from now on; keep: False removes it instead."""
        if keep:
            write_snapshot(self._folder, self._tables, ALIGNED, _NAMES)
        else:
            shutil.rmtree(self._folder / SNAPSHOT, ignore_errors=True)
        self._snapshot = open_snapshot(self._folder)

    @staticmethod
    def files(folder: Path) -> list[Path]:
        """Return all files of the tables, including older versions, and of the snapshot."""
        names = (*TABLES.values(), FUSED)
        tables = [p for name in names for p in sorted((folder / f"{name}.lance").rglob("*")) if p.is_file()]
        return [*tables, *files_of(folder)]

    def to_arrow(self, columns: Sequence[str]) -> Any:
        """Return all rows as a pyarrow table."""
        import pyarrow as pa

        return pa.concat_tables([t.search().select(list(columns)).to_arrow() for t in self._tables.values()])

    def _columns(self, kind: ItemKind, names: Sequence[str], *, row_ids: bool = False) -> Any:
        """Return columns of all rows as a pyarrow table."""
        if self._snapshot is not None:
            return self._snapshot.columns(kind, [*names, ROW] if row_ids else names)
        query = self._tables[kind].search().select(list(names))
        return (query.with_row_id(True) if row_ids else query).to_arrow()


def _among(ids: Sequence[str]) -> str:
    quoted = ", ".join("'" + i.replace("'", "''") + "'" for i in ids)
    return f"id IN ({quoted})"


def _index_config(kind: str) -> Any:
    from lancedb import index

    name = {"ivf_pq": "IvfPq", "ivf_sq": "IvfSq", "ivf_rq": "IvfRq", "hnsw": "HnswSq"}[kind]
    if not hasattr(index, name):
        raise InputError(f"approximate: {kind} is not in this version of LanceDB; update lancedb, or use ivf_sq")
    return getattr(index, name)


def read_table(folder: Path, name: str, columns: Sequence[str] | None = None) -> Any:
    """Read a table of any LanceDB database as a pyarrow table. Raises InputError if it cannot be opened."""
    database = _connect(folder)
    try:
        table = database.open_table(name)
        query = table.search() if columns is None else table.search().select(list(columns))
        return query.to_arrow()
    except Exception as error:  # ValueError, RuntimeError or OSError, depending on the damage
        raise InputError(f"{folder / name}.lance: cannot be opened as a LanceDB table ({cause(error)})") from None


def require_lancedb() -> None:
    """Raise InputError if LanceDB is not installed."""
    if find_spec("lancedb") is None:
        raise InputError(f"index: needs LanceDB; {install_command('search')}")


def is_table(name: str) -> bool:
    """Whether a file of an index, by its name in the folder, is of the tables or their snapshot."""
    top = name.partition("/")[0]
    return top.endswith(".lance") or top == SNAPSHOT


def _connect(folder: Path | str) -> Any:
    require_lancedb()
    import lancedb

    os.environ.setdefault("LANCE_INCLUDE_VECTOR_CENTROIDS", "false")  # else every tidy() warns
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    plain = endpoint.startswith("http://") and str(folder).startswith(READ_DIRECTLY)
    options = {"aws_endpoint": endpoint, "allow_http": "true"} if plain else {}
    if str(folder).startswith(READ_DIRECTLY):
        options |= {"client_max_retries": "3", "client_retry_timeout": "20"}  # s; default: 10 retries in 180 s
    return cast(Any, lancedb.connect(str(folder), storage_options=options or None))
