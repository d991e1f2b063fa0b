"""Export of an index to other vector databases."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from csaligner.checks import InputError
from csaligner.search.build import build_index
from csaligner.search.export import export_index
from csaligner.search.index import Index


@pytest.fixture
def index(world: Any, write: Any, tmp_path: Path) -> Index:
    world.many(12)
    write("odd.txt", 'quotes " and, commas\n\nand a\0zero')
    return build_index(str(world.folder), tmp_path / "ix", str(world.run), encoders=world.encoders)[0]


def query_vector(index: Index, words: str) -> np.ndarray[Any, Any]:
    return np.asarray(index.model.encode_text([words])[0])


def cosines(index: Index, words: str) -> dict[str, float]:
    return {hit.id: hit.cosine for hit in index.search(words, k=100, calibrated=False)}


def test_parquet_holds_everything(index: Index, tmp_path: Path) -> None:
    export_index(index, tmp_path / "p", "parquet")
    rows = pq.read_table(tmp_path / "p" / "items.parquet").to_pylist()
    known = cosines(index, "200 30 90")
    q = query_vector(index, "200 30 90")
    assert {row["id"]: pytest.approx(float(q @ np.array(row["vector"])), abs=1e-5) for row in rows} == known
    assert {row["modality"] for row in rows} == {"image", "text"}


def test_npy_and_its_ids_are_in_one_order(index: Index, tmp_path: Path) -> None:
    export_index(index, tmp_path / "n", "npy")
    vectors = np.load(tmp_path / "n" / "vectors.npy", allow_pickle=False)
    ids = json.loads((tmp_path / "n" / "ids.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "n" / "items.jsonl").read_text().split("\n") if line]
    assert [row["id"] for row in rows] == ids
    assert vectors.dtype == np.float32
    found = dict(zip(ids, (vectors @ query_vector(index, "1 200 30")).tolist(), strict=True))
    assert found == {key: pytest.approx(value, abs=1e-5) for key, value in cosines(index, "1 200 30").items()}


def test_pgvector_reads_back_as_csv(index: Index, tmp_path: Path) -> None:
    export_index(index, tmp_path / "g", "pgvector")
    with (tmp_path / "g" / "items.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert len(rows) == len(index)
    assert "\0" not in (tmp_path / "g" / "items.csv").read_text()
    sql = (tmp_path / "g" / "load.sql").read_text()
    found = re.search(r"copy items \((.*?)\)", sql)
    assert found is not None
    assert len(found[1].split(",")) == len(rows[0])
    assert f"vector({len(json.loads(rows[0][-1]))})" in sql


def test_qdrant_returns_the_same_best(index: Index, tmp_path: Path) -> None:
    qdrant = pytest.importorskip("qdrant_client", reason="qdrant-client is not installed")
    export_index(index, tmp_path / "q", "qdrant")
    client = qdrant.QdrantClient(":memory:")
    model = qdrant.models
    params = model.VectorParams(size=4, distance=model.Distance.DOT)
    client.create_collection("items", vectors_config=params)
    lines = (tmp_path / "q" / "points.jsonl").read_text(encoding="utf-8").splitlines()
    client.upsert("items", [model.PointStruct(**json.loads(line)) for line in lines])
    found = client.query_points("items", query=query_vector(index, "10 20 250").tolist(), limit=8).points
    known = index.search("10 20 250", k=8, calibrated=False)
    assert [point.payload["id"] for point in found] == [hit.id for hit in known] or {
        round(point.score, 5) for point in found
    } == {round(hit.cosine, 5) for hit in known}
    assert [point.score for point in found] == pytest.approx([hit.cosine for hit in known], abs=1e-5)


def test_what_cannot_be_exported(index: Index, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'qdrant'"):
        export_index(index, tmp_path / "x", "qdrand")
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="exists"):
        export_index(index, tmp_path / "there", "npy")
