"""Vectors in JSON: answers of embedding services, lists of vectors, and records with a vector, one per line or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from csaligner.parsing import parse_json

from .number_formats import AUTO, CODES, decoded

MAX_JSON = 2 << 30  # bytes
FIELDS = ("embedding", "vector", "values")
WANTED = 'wanted a service\'s answer ({"data": [{"embedding"}]} or {"embeddings"}), or a list of vectors or records'


class Choice(ValueError):
    """Several kinds of vectors and no key, or a key that is not there; names: what there is."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(f"holds {', '.join(names)}")
        self.names = list(names)


def read_json_vectors(path: Path, key: str | None = None, dtype: str = AUTO) -> tuple[list[Any], str]:
    """Return the rows of a .json or .jsonl file and their number format.

    Answers of OpenAI, Voyage, Mistral and Jina ({"data": [{"index", "embedding"}]}, in the order of the index), Cohere
    ({"embeddings": {"int8": ...}}; key chooses the type, which is the format, too), Gemini and Ollama ({"embeddings"}),
    lists of vectors, and records with a vector in the field `key`, or embedding, vector or values. A vector is a list
    of numbers or base64. Raises Choice, and ValueError for a file without vectors.
    """
    if path.stat().st_size > MAX_JSON:
        raise ValueError("has more than 2 GiB; write .npy or .parquet")
    found, kinds = list[Any](), set[str]()
    for content in _contents(path):
        rows, kind = _rows(content, key)
        kinds.add(kind)
        form = kind if dtype == AUTO else dtype
        found += [_row(row, form, len(found) + number) for number, row in enumerate(rows)]
    if not found:
        raise ValueError(f"holds no vectors; {WANTED}")
    if any(row.dtype.kind == "f" for row in found):
        found = [row.astype(np.float32, copy=False) for row in found]
    return found, kinds.pop() if dtype == AUTO else dtype


def _contents(path: Path) -> Any:
    if path.suffix.lower() == ".json":
        yield parse_json(path.read_text(encoding="utf-8-sig"))
        return
    with path.open(encoding="utf-8-sig") as lines:
        yield from (parse_json(line) for line in lines if line.strip())


def _rows(content: Any, key: str | None) -> tuple[list[Any], str]:
    """The vectors of one JSON value, and their format: auto, or the type that Cohere names."""
    if isinstance(content, list):
        if content and isinstance(content[0], (list, dict, str)):
            return [row for each in content for row in ([each] if isinstance(each, str) else _rows(each, key)[0])], AUTO
        return [content], AUTO
    if not isinstance(content, dict):
        raise ValueError(f"holds no vectors; {WANTED}")
    if "custom_id" in content and "response" in content:
        raise ValueError("a batch writes its lines in any order; sort them by custom_id and write the vectors alone")
    if isinstance(content.get("data"), list):
        records = content["data"]
        if all(isinstance(each, dict) and isinstance(each.get("index"), int) for each in records):
            records = sorted(records, key=lambda each: int(each["index"]))
        return [row for each in records for row in _rows(each, key)[0]], AUTO
    if "embeddings" in content:
        given = content["embeddings"]
        return _of_type(given, key) if isinstance(given, dict) else _rows(given, None)
    names = [key] if key is not None else [name for name in FIELDS if name in content]
    if not names or names[0] not in content:
        raise Choice(list(content)) if key is not None else ValueError(f"holds no vectors; {WANTED}")
    value = content[names[0]]
    return _rows(value, None) if isinstance(value, dict) else ([value], AUTO)


def _of_type(given: dict[str, Any], key: str | None) -> tuple[list[Any], str]:
    """Cohere's vectors of one type: float, int8, uint8, binary, ubinary or base64 (of float32)."""
    names = [name for name, rows in given.items() if rows]
    if key not in names and (key is not None or len(names) != 1):
        raise Choice(names)
    name = key or names[0]
    return list(given[name]), name if name in CODES else AUTO


def _row(value: Any, dtype: str, number: int) -> Any:
    if isinstance(value, str):
        row = decoded(value, AUTO if dtype == "float32" else dtype)
        if row is None:
            wanted = "float32" if dtype == AUTO else dtype
            raise ValueError(f"row {number} is no vector of {wanted} in base64; give its format, --text-dtype")
        return row
    row = np.asarray(value) if isinstance(value, list) and all(type(each) in (int, float) for each in value) else None
    if row is None or row.dtype.kind not in "iuf":
        raise ValueError(f"row {number} is no list of numbers; remove it")
    return row
