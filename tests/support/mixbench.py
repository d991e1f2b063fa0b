"""A small MixBench folder in the layouts of both releases."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SETS = ("MSCOCO", "OVEN")
COLOURS = {"2.png": (0, 200, 40), "3.png": (200, 30, 90), "q3.png": (198, 33, 88)}
QUERIES: tuple[tuple[str, str | None, str | None], ...] = (
    ("q1", "a red apple", None),
    ("q2", "a green field", None),
    ("q3", "what is this?", "q3.png"),
)
CORPUS: tuple[tuple[str, str | None, str | None], ...] = (
    ("c1", "an apple that is red", None),
    ("c2", None, "2.png"),
    ("c3", "a pink flower", "3.png"),
    ("c4", "the timetable of a railway", None),
)
QRELS = (("q1", "c1", 1), ("q2", "c2", 1), ("q3", "c3", 2), ("q3", "c4", 0))


def write_2025(root: Path, name: str = "MSCOCO") -> None:
    """Write jsonl tables, images/ and qrels/qrels.tsv."""
    folder = root / name
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for file, colour in COLOURS.items():
        Image.new("RGB", (8, 8), colour).save(folder / "images" / file)
    for table, key, rows in (("queries", "query_id", QUERIES), ("mixed_corpus", "corpus_id", CORPUS)):
        lines = [json.dumps({key: i, "text": text, "image": image}) for i, text, image in rows]
        (folder / f"{table}.jsonl").write_text("\n".join(lines) + "\n")
    _write_qrels(folder)


def write_2026(root: Path, name: str = "MSCOCO") -> None:
    """Write parquet tables with the images in their cells; with the judgements of 2025, since this release has none."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("image", image)])
    for table, rows in (("queries", QUERIES), ("mixed_corpus", CORPUS)):
        values = [{"id": i, "text": text, "image": _cell(file)} for i, text, file in rows]
        pq.write_table(pa.Table.from_pylist(values, schema=schema), folder / f"{table}.parquet")
    _write_qrels(folder)


def _cell(file: str | None) -> dict[str, Any] | None:
    if file is None:
        return None
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), COLOURS[file]).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": file}


def _write_qrels(folder: Path) -> None:
    (folder / "qrels").mkdir(exist_ok=True)
    lines = ["\t".join(map(str, row)) for row in (("query_id", "corpus_id", "score"), *QRELS)]
    (folder / "qrels" / "qrels.tsv").write_text("\n".join(lines) + "\n")
