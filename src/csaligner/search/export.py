"""Export of aligned vectors to other vector databases: Parquet, NumPy, Qdrant, pgvector."""

from __future__ import annotations

import csv
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from csaligner.checks import InputError, check_choice
from csaligner.files import write_folder

from .index import Index
from .lance_table import ALIGNED

COLUMNS = ("id", "modality", "path", "text", "caption", "owner")
NAMESPACE = uuid.UUID("5b2f6c1e-3b7c-5a1d-9f5e-0d8f0a7c9e11")  # of the UUIDs that Qdrant requires as ids
BATCH = 256
GUIDE = """Vectors have unit length: inner product and cosine give the same ranking. Encode queries with the same model
(`Index.open(FOLDER).model.encode_text` or `encode_image`). Scores are plain cosines, without calibration.
"""


def export_index(index: Index, out: Path, kind: str) -> list[str]:
    """Write all items to the folder `out`; returns one line per file.

    parquet: items.parquet (id, modality, path, text, caption, owner, vector). npy: vectors.npy (N, d) float32,
    ids.json and items.jsonl in the order of the rows (FAISS, Milvus). qdrant: points.jsonl for Qdrant's
    client and REST interface. pgvector: items.csv and load.sql for psql.

    Raises InputError for an unknown format, an empty index, and if `out` exists.
    """
    check_choice("format", kind, WRITERS)
    if out.exists():
        raise InputError(f"out: {out} exists; choose another folder or delete it")
    if not len(index):
        raise InputError(f"index: {index.path} is empty; index some data first")
    table = index.items.to_arrow([*COLUMNS, ALIGNED])
    out.parent.mkdir(parents=True, exist_ok=True)

    def write(folder: Path) -> None:
        WRITERS[kind](table, folder)
        (folder / "README.txt").write_text(GUIDE, encoding="utf-8")

    write_folder(out, write)
    return [f"{out / file.name}: {file.stat().st_size:,} bytes" for file in sorted(out.iterdir())]


def point_id(item_id: str) -> str:
    """Return the UUID of an item in Qdrant; the payload contains the item's id."""
    return str(uuid.uuid5(NAMESPACE, item_id))


def _parquet(table: Any, folder: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table, folder / "items.parquet")


def _npy(table: Any, folder: Path) -> None:
    np.save(folder / "vectors.npy", _vectors(table))
    (folder / "ids.json").write_text(json.dumps(table["id"].to_pylist(), ensure_ascii=False), encoding="utf-8")
    with (folder / "items.jsonl").open("w", encoding="utf-8") as file:
        for row in table.select(list(COLUMNS)).to_pylist():
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _qdrant(table: Any, folder: Path) -> None:
    with (folder / "points.jsonl").open("w", encoding="utf-8") as file:
        for row, vector in _rows(table):
            point = {"id": point_id(row["id"]), "vector": vector, "payload": row}
            file.write(json.dumps(point, ensure_ascii=False) + "\n")


def _pgvector(table: Any, folder: Path) -> None:
    with (folder / "items.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        for row, vector in _rows(table):
            words = [row[name].replace("\0", "") for name in COLUMNS]  # PostgreSQL's text type has no null bytes
            writer.writerow([*words, "[" + ",".join(f"{v:.8g}" for v in vector) + "]"])
    dim = table.schema.field(ALIGNED).type.list_size
    columns = ", ".join(COLUMNS)
    (folder / "load.sql").write_text(
        "CREATE EXTENSION IF NOT EXISTS vector;\n"  # nosec B608
        "CREATE TABLE items (id text PRIMARY KEY, modality text, path text, text text, caption text, owner text, "
        f"vector vector({dim}));\n"
        f"\\copy items ({columns}, vector) FROM 'items.csv' WITH (FORMAT csv)\n"
        "CREATE INDEX ON items USING hnsw (vector vector_ip_ops);\n"
        "-- SELECT id, -(vector <#> '[...]') AS cosine FROM items ORDER BY vector <#> '[...]' LIMIT 10;\n",
        encoding="utf-8",
    )


def _rows(table: Any) -> Iterator[tuple[dict[str, str], list[float]]]:
    for start in range(0, len(table), BATCH):
        part = table.slice(start, BATCH)
        yield from zip(part.select(list(COLUMNS)).to_pylist(), _vectors(part).tolist(), strict=True)


def _vectors(table: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    dim = table.schema.field(ALIGNED).type.list_size
    return np.asarray(table[ALIGNED].combine_chunks().flatten(), dtype=np.float32).reshape(-1, dim)


WRITERS: Mapping[str, Callable[[Any, Path], None]] = {
    "parquet": _parquet,
    "npy": _npy,
    "qdrant": _qdrant,
    "pgvector": _pgvector,
}
