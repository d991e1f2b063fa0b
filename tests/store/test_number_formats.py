"""Vectors of embedding services: JSON answers, base64, integers and packed bits."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from csaligner.checks import InputError
from csaligner.spaces.read import read_spaces
from csaligner.store.read_features import load_features

X = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
X /= np.linalg.norm(X, axis=1, keepdims=True)
INT8 = np.round(127 * X / np.abs(X).max()).astype(np.int8)
BITS = np.packbits(X > 0, axis=1)
SIGNS = np.where(X > 0, 1.0, -1.0).astype(np.float32)


def text_of(rows: np.ndarray[Any, Any]) -> list[str]:
    return [base64.b64encode(row.tobytes()).decode() for row in rows]


def read(folder: Path, content: Any, key: str | None = None, dtype: str = "auto", name: str = "x.json") -> Any:
    path = folder / name
    lines = content if name.endswith(".jsonl") else [content]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return load_features(path, key, dtype=dtype).numpy()


ANSWERS = {
    "OpenAI, Voyage, Mistral, Jina": {"data": [{"index": n, "embedding": row} for n, row in enumerate(X.tolist())]},
    "OpenAI, base64": {"data": [{"index": n, "embedding": row} for n, row in enumerate(text_of(X))]},
    "in another order": {"data": [{"index": n, "embedding": X[n].tolist()} for n in (3, 0, 4, 1, 2)]},
    "Cohere": {"id": "a", "embeddings": {"float": X.tolist()}, "texts": list("abcde")},
    "Cohere, base64": {"embeddings": {"base64": text_of(X)}},
    "Ollama, Cohere 1": {"embeddings": X.tolist()},
    "Gemini": {"embeddings": [{"values": row} for row in X.tolist()]},
    "a list of vectors": X.tolist(),
    "a list of base64": text_of(X),
    "records": [{"id": n, "vector": row} for n, row in enumerate(X.tolist())],
}


@pytest.mark.parametrize("name", list(ANSWERS))
def test_the_answer_of_a_service_is_its_vectors(tmp_path: Path, name: str) -> None:
    assert np.array_equal(read(tmp_path, ANSWERS[name]), X)
    once_more = read(tmp_path, [ANSWERS[name], ANSWERS[name]], name="x.jsonl")  # an answer per request
    assert np.array_equal(once_more, np.concatenate([X, X]))


def test_lines_with_one_vector_each(tmp_path: Path) -> None:
    assert np.array_equal(read(tmp_path, [{"e": row} for row in X.tolist()], "e", name="x.jsonl"), X)
    assert np.array_equal(read(tmp_path, X.tolist(), name="x.jsonl"), X)


def test_of_several_types_one_is_chosen_and_names_its_format(tmp_path: Path) -> None:
    given = {"embeddings": {"float": X.tolist(), "int8": INT8.tolist(), "ubinary": BITS.tolist(), "uint8": None}}
    assert np.array_equal(read(tmp_path, given, "float"), X)
    assert np.array_equal(read(tmp_path, given, "int8"), INT8)
    assert np.array_equal(read(tmp_path, given, "ubinary"), SIGNS)
    with pytest.raises(InputError, match=r"choose one of float, int8, ubinary"):
        read(tmp_path, given)
    with pytest.raises(InputError, match="did you mean 'int8'"):
        read(tmp_path, given, "int9")


@pytest.mark.parametrize(
    ("dtype", "rows", "wanted"),
    [
        ("float32", X, X),
        ("float16", X.astype(np.float16), X.astype(np.float16).astype(np.float32)),
        ("int8", INT8, INT8),
        ("uint8", (INT8.astype(int) + 128).astype(np.uint8), INT8),
        ("ubinary", BITS, SIGNS),
        ("binary", (BITS.astype(int) - 128).astype(np.int8), SIGNS),
    ],
)
@pytest.mark.parametrize("kind", ["json base64", "json numbers", "parquet base64", "parquet bytes", "npy"])
def test_every_format_in_every_container(
    tmp_path: Path, kind: str, dtype: str, rows: np.ndarray[Any, Any], wanted: Any
) -> None:
    if kind.startswith("json"):
        words = text_of(rows) if kind.endswith("base64") else rows.astype(float if rows.dtype.kind == "f" else int)
        found = read(tmp_path, list(words) if isinstance(words, list) else words.tolist(), dtype=dtype)
    elif kind == "npy":
        np.save(tmp_path / "x.npy", rows)
        found = load_features(tmp_path / "x.npy", dtype=dtype).numpy()
    else:
        column = text_of(rows) if kind.endswith("base64") else [row.tobytes() for row in rows]
        pq.write_table(pa.table({"embedding": column}), tmp_path / "x.parquet")
        found = load_features(tmp_path / "x.parquet", dtype=dtype).numpy()
    assert np.array_equal(found.astype(np.float32), np.asarray(wanted, dtype=np.float32))


@pytest.mark.parametrize("rows", [INT8, X.astype(np.float16), BITS], ids=["int8", "float16", "ubinary"])
def test_base64_of_another_format_is_not_read_as_float32(tmp_path: Path, rows: np.ndarray[Any, Any]) -> None:
    """Half precision would give finite numbers, and half as many."""
    rows = np.tile(rows, 8)
    with pytest.raises(InputError, match="--text-dtype"):
        read(tmp_path, text_of(rows))
    pq.write_table(pa.table({"embedding": text_of(rows)}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="--text-dtype"):
        load_features(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("content", "key", "dtype", "message"),
    [
        ({"error": "quota"}, None, "auto", "no vectors"),
        ([], None, "auto", "shape"),
        ([{"embedding": [0.1, 0.2]}, {"embedding": [0.1]}], None, "auto", "row 1 has 1 numbers"),
        ([[1, 2], [3]], None, "int8", "row 1 has 1 numbers"),
        ([{"embedding": None}], None, "auto", "row 0"),
        ([{"embedding": [0.1, "x"]}], None, "auto", "row 0"),
        ([{"vector": [1.0]}], "vectr", "auto", "vector"),
        ([[300, 0]], None, "uint8", "from 0 to 255"),
        ([[0.5, 0.25]], None, "int8", "whole numbers"),
        ([[1, 2]], None, "int4", "int4"),
        ([{"custom_id": "a", "response": {"body": {}}}], None, "auto", "custom_id"),
        (7, None, "auto", "no vectors"),
        ([[10**400]], None, "auto", "row 0"),
    ],
)
def test_what_is_no_vector_is_one_line(tmp_path: Path, content: Any, key: str, dtype: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        read(tmp_path, content, key, dtype)
    assert "\n" not in str(raised.value)


def test_diagnose_reads_answers_too(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(ANSWERS["OpenAI, base64"]))
    first, second = read_spaces([tmp_path / "a.json", tmp_path / "b.json"], ["old", "new"])
    assert torch.equal(first.rows, torch.from_numpy(X))
    assert (first.name, second.name) == ("old", "new")
