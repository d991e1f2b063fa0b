"""Every section of docs/bring_your_vectors.md reads its source, aligns, writes back, and finds what NumPy finds.

Qdrant, LanceDB and Milvus run embedded, pgvector on a PostgreSQL server that pip installs, Elasticsearch's client on a
stand-in for its server. A section whose client is not installed is skipped.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.docs.test_code_blocks import ROOT, Block, blocks_of, check_session
from tests.support.elasticsearch import elasticsearch

PAGE = ROOT / "docs" / "bring_your_vectors.md"
NEEDS = {  # packages of each section
    "NumPy": (),
    "pandas": ("pandas",),
    "Qdrant": ("qdrant_client",),
    "pgvector": ("psycopg", "pgvector", "pgserver"),
    "LanceDB": ("lancedb",),
    "Milvus": ("pymilvus", "milvus_lite"),
    "Elasticsearch": ("elasticsearch",),
}


@dataclass(frozen=True)
class Source:
    """Vectors of 100 images and 120 texts; the first 20 images have two texts."""

    images: np.ndarray[Any, Any]
    texts: np.ndarray[Any, Any]
    image_ids: list[Any]
    text_ids: list[Any]
    text_image_ids: list[Any]


def make_source(section: str) -> Source:
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(100, 16))
    owners = [*range(100), *range(20)]
    images = (shared @ rng.normal(size=(16, 64))).astype(np.float32)
    texts = (shared[owners] @ rng.normal(size=(16, 48)) + rng.normal(size=(120, 48)) / 9).astype(np.float32)
    if section == "Qdrant":  # which takes numbers or UUIDs
        return Source(images, texts, [*range(100)], [*range(1000, 1120)], owners)
    names = [f"image-{i}" for i in range(100)]
    return Source(images, texts, names, [f"text-{i}" for i in range(120)], [names[i] for i in owners])


def sections() -> dict[str, list[Block]]:
    parts = re.split(r"^## (.*)\n", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {"": blocks_of(parts[0])} | {
        name: blocks_of(text) for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def run(block: Block, names: dict[str, Any], replaced: dict[str, str]) -> None:
    text = block.text
    for here, there in replaced.items():
        text = text.replace(here, there)
    exec(compile(text, "<bring_your_vectors>", "exec", dont_inherit=True), names)


@contextmanager
def numpy_file(source: Source) -> Iterator[dict[str, str]]:
    np.savez("vectors.npz", **vars(source))
    yield {}


@contextmanager
def parquet(source: Source) -> Iterator[dict[str, str]]:
    import pandas as pd

    pd.DataFrame({"id": source.image_ids, "vector": list(source.images)}).to_parquet("images.parquet")
    texts = {"id": source.text_ids, "image_id": source.text_image_ids, "vector": list(source.texts)}
    pd.DataFrame(texts).to_parquet("texts.parquet")
    yield {}


@contextmanager
def qdrant(source: Source) -> Iterator[dict[str, str]]:
    from qdrant_client import QdrantClient, models

    client = QdrantClient(path="qdrant")
    payloads = [{"image_id": i} for i in source.text_image_ids]
    for name, ids, vectors, payload in (
        ("images", source.image_ids, source.images, None),
        ("texts", source.text_ids, source.texts, payloads),
    ):
        size = models.VectorParams(size=vectors.shape[1], distance=models.Distance.COSINE)
        client.create_collection(name, vectors_config=size)
        client.upload_collection(name, vectors=vectors, ids=ids, payload=payload)
    client.close()
    yield {}


@contextmanager
def postgres_server() -> Iterator[str]:
    """The address of a database of a new PostgreSQL server. As root it runs as another user, who cannot read pytest's
    folders."""
    import psycopg

    pgserver = pytest.importorskip("pgserver")
    folder = Path(tempfile.mkdtemp(prefix="csaligner-pg-"))
    folder.chmod(0o755)
    try:
        with pgserver.get_server(str(folder / "data"), cleanup_mode="stop") as server:
            server.psql("CREATE DATABASE vectors")
            with psycopg.connect(server.get_uri("vectors"), autocommit=True) as connection:
                connection.execute("CREATE EXTENSION vector")
            yield server.get_uri("vectors")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def postgres(source: Source) -> Iterator[dict[str, str]]:
    import psycopg

    with postgres_server() as address:
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute("CREATE TABLE images (id text PRIMARY KEY, vector vector(64))")
            connection.execute("CREATE TABLE texts (id text PRIMARY KEY, image_id text, vector vector(48))")
            cursor = connection.cursor()
            rows = zip(source.image_ids, map(str, source.images.tolist()), strict=True)
            cursor.executemany("INSERT INTO images VALUES (%s, %s)", list(rows))
            texts = map(str, source.texts.tolist())
            captions = zip(source.text_ids, source.text_image_ids, texts, strict=True)
            cursor.executemany("INSERT INTO texts VALUES (%s, %s, %s)", list(captions))
        yield {"dbname=vectors": address}


@contextmanager
def lance(source: Source) -> Iterator[dict[str, str]]:
    import lancedb

    db = lancedb.connect("lancedb")
    images = zip(source.image_ids, source.images, strict=True)
    db.create_table("images", [{"id": i, "vector": vector} for i, vector in images])
    texts = zip(source.text_ids, source.text_image_ids, source.texts, strict=True)
    db.create_table("texts", [{"id": i, "image_id": image, "vector": vector} for i, image, vector in texts])
    yield {}


@contextmanager
def milvus(source: Source) -> Iterator[dict[str, str]]:
    pymilvus = pytest.importorskip("pymilvus")
    client = pymilvus.MilvusClient("milvus.db")
    texts = zip(source.text_ids, source.text_image_ids, source.texts.tolist(), strict=True)
    rows = {
        "images": [
            {"id": i, "vector": vector} for i, vector in zip(source.image_ids, source.images.tolist(), strict=True)
        ],
        "texts": [{"id": i, "image_id": image, "vector": vector} for i, image, vector in texts],
    }
    for name, given in rows.items():
        size = len(given[0]["vector"])
        client.create_collection(name, dimension=size, metric_type="COSINE", id_type="string", max_length=64)
        client.insert(name, given)
    yield {}
    client.close()


@contextmanager
def elastic(source: Source) -> Iterator[dict[str, str]]:
    library = pytest.importorskip("elasticsearch")
    with elasticsearch() as address, library.Elasticsearch(address) as client:
        for name, dims in (("images", 64), ("texts", 48)):
            vector = {"type": "dense_vector", "dims": dims, "similarity": "cosine"}
            fields = {"vector": vector, "image_id": {"type": "keyword"}}
            client.indices.create(index=name, mappings={"properties": fields})
        rows = [
            {"_index": "images", "_id": i, "vector": vector}
            for i, vector in zip(source.image_ids, source.images.tolist(), strict=True)
        ] + [
            {"_index": "texts", "_id": i, "image_id": image, "vector": vector}
            for i, image, vector in zip(source.text_ids, source.text_image_ids, source.texts.tolist(), strict=True)
        ]
        pytest.importorskip("elasticsearch.helpers").bulk(client, rows, refresh=True)
        yield {"http://localhost:9200": address}


FILLED = {
    "NumPy": numpy_file,
    "pandas": parquet,
    "Qdrant": qdrant,
    "pgvector": postgres,
    "LanceDB": lance,
    "Milvus": milvus,
    "Elasticsearch": elastic,
}


def unit(rows: Any) -> np.ndarray[Any, Any]:
    rows = np.asarray(rows, dtype=np.float64)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def check_read(names: dict[str, Any], source: Source) -> None:
    """What was read is the source, in any order and, as databases normalise, up to the length of the rows."""
    for kind in ("image", "text"):
        wanted = {i: row for row, i in enumerate(getattr(source, f"{kind}_ids"))}
        rows = [wanted.pop(i) for i in names[f"{kind}_ids"]]
        assert not wanted
        np.testing.assert_allclose(unit(names[f"{kind}s"]), unit(getattr(source, f"{kind}s"))[rows], atol=1e-5)
        if kind == "text":
            assert list(names["text_image_ids"]) == [source.text_image_ids[row] for row in rows]


@pytest.mark.parametrize("section", list(NEEDS))
def test_the_section_reads_aligns_writes_and_finds(
    section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in NEEDS[section]:
        pytest.importorskip(package, reason=f"pip install {package}")
    monkeypatch.chdir(tmp_path)
    source, page = make_source(section), sections()
    names: dict[str, Any] = {"__name__": "page"}
    (fit,) = page[""]
    read, write = page[section]
    with FILLED[section](source) as replaced:
        try:
            run(read, names, replaced)
            check_read(names, source)
            run(fit, names, {"CSAligner()": "CSAligner(epochs=0)"})
            run(write, names, replaced)
        finally:
            for opened in ("client", "connection"):
                if hasattr(names.get(opened), "close"):
                    names[opened].close()
    scores = unit(names["vectors"]) @ unit(names["query"][None])[0]
    exact = [names["ids"][row] for row in np.argsort(-scores)[:10]]
    assert names["hits"][0] == exact[0]
    assert len(set(names["hits"]) & set(exact)) >= 9, names["hits"]
    assert len(names["hits"]) == 10


def test_every_section_of_the_page_is_run_and_its_errors_are_the_real_ones(tmp_path: Path) -> None:
    page = sections()
    assert [name for name, found in page.items() if any(b.kind == "python" for b in found)] == ["", *NEEDS]
    assert not any(block.not_run for found in page.values() for block in found)
    source = make_source("NumPy")
    names = dict(vars(source))
    exec("from csaligner import CSAligner", names)
    (session,) = page["What can go wrong"]
    check_session(session.text, names)
