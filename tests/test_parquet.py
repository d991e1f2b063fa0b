"""Parquet files of every common kind are read as pyarrow reads them, in bounded batches."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from csaligner.parquet import open_parquet

ROWS = 300
COLUMNS: dict[str, Any] = {
    "text": [f"caption {i % 7}" if i % 11 else None for i in range(ROWS)],
    "large": pa.array([f"{i}" for i in range(ROWS)], pa.large_string()),
    "bytes": [bytes([i % 256]) * 9 for i in range(ROWS)],
    "number": list(range(ROWS)),
    "vector": pa.array([[i + 0.5, 1.0] for i in range(ROWS)], pa.list_(pa.float32(), 2)),
    "texts": [[f"a{i % 5}", "b"][: i % 3] for i in range(ROWS)],
    "image": [{"bytes": b"x" * (i % 9), "path": f"{i}.png"} for i in range(ROWS)],
    "parts": [[{"name": f"n{i % 4}", "at": i}] * (i % 3) for i in range(ROWS)],
    "when": [datetime.datetime(2026, 1, 1) + datetime.timedelta(hours=i) for i in range(ROWS)],
    "map": pa.array([[("k", i)] for i in range(ROWS)], pa.map_(pa.string(), pa.int64())),
    "coded": pa.array([f"v{i % 3}" for i in range(ROWS)]).dictionary_encode(),
    "nothing": pa.nulls(ROWS),
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"row_group_size": 70},
        {"use_dictionary": False},
        {"data_page_version": "2.0", "compression": "zstd"},
        {"compression": None, "write_statistics": False, "data_page_size": 100},
        {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY", "number": "DELTA_BINARY_PACKED"}},
    ],
)
def test_tables_are_read_as_by_pyarrow(tmp_path: Path, options: dict[str, Any]) -> None:
    table = pa.table(COLUMNS).replace_schema_metadata({"note": "kept"})
    pq.write_table(table, tmp_path / "t.parquet", **options)
    with open_parquet(tmp_path / "t.parquet") as file:
        found = file.read(file.names)
        assert file.rows == ROWS
        assert file.read(["number"]).column_names == ["number"]
        assert sum(batch.num_rows for batch in file.batches(["text"], most_rows=50)) == ROWS
    assert found.to_pylist() == pq.read_table(tmp_path / "t.parquet").to_pylist()
    assert found.schema.metadata[b"note"] == b"kept"


@pytest.mark.parametrize("name", COLUMNS)
def test_a_table_without_rows_is_read(tmp_path: Path, name: str) -> None:
    pq.write_table(pa.table({name: COLUMNS[name]}).slice(0, 0), tmp_path / "t.parquet")
    with open_parquet(tmp_path / "t.parquet") as file:
        assert file.read(file.names).num_rows == 0


def test_a_file_that_is_no_parquet_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and nothing else PAR1")
    with pytest.raises(ValueError, match=r"^[^\n]+$"), open_parquet(tmp_path / "t.parquet"):
        pass
