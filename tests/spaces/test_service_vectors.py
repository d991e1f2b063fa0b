"""Vectors as text services send them: cut (Matryoshka), int8, float16 and base64, beside images of another width."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from csaligner import CSAligner, Store
from tests.support.commands import csaligner

N = 900


def service() -> tuple[np.ndarray, np.ndarray]:
    """Image vectors (N, 96), and text vectors (N, 512) whose leading dimensions carry most, of length 1."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(N, 48)).astype("f4")
    image = shared @ rng.normal(size=(48, 96)).astype("f4") + 6 * rng.normal(size=(N, 96)).astype("f4")
    weight = np.arange(1, 513, dtype="f4") ** -0.5
    seen = shared + 1.6 * rng.normal(size=(N, 48)).astype("f4")
    text = (seen @ rng.normal(size=(48, 512)).astype("f4") + rng.normal(size=(N, 512)).astype("f4")) * weight
    return image, text / np.linalg.norm(text, axis=1, keepdims=True)


def quantised(x: np.ndarray) -> np.ndarray:
    rows: np.ndarray = np.round(127 * x / np.abs(x).max()).astype(np.int8)
    return rows


def score(image: np.ndarray, text: np.ndarray) -> float:
    train, test = slice(0, 600), slice(600, None)
    return CSAligner(epochs=0).fit(image[train], text[train]).score(image[test], text[test])


def test_quantised_vectors_lose_at_most_two_points() -> None:
    image, text = service()
    cut = text[:, :128]
    whole = score(image, cut)
    assert 0.2 < whole < 0.9
    assert score(image, quantised(cut)) >= whole - 0.02
    assert score(image, cut.astype(np.float16)) >= whole - 0.02


@pytest.mark.parametrize("kind", ["base64", "int8"])
def test_import_cuts_and_decodes(tmp_path: Path, kind: str) -> None:
    image, text = service()
    np.save(tmp_path / "image.npy", image)
    if kind == "base64":
        words = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in text]
        pq.write_table(pa.table({"embedding": words}), tmp_path / "text.parquet")
        source, wanted = "text.parquet", text
    else:
        wanted = quantised(text)
        np.save(tmp_path / "text.npy", wanted)
        source = "text.npy"
    files = ("--image-features", tmp_path / "image.npy", "--text-features", tmp_path / source)
    done = csaligner("import", *files, "--text-cut", 128, "--out", tmp_path / "store")
    assert done.returncode == 0, done.stderr
    rows = Store.open(tmp_path / "store").features().text.numpy()
    assert np.array_equal(rows, wanted[:, :128].astype("f4"))
    assert csaligner("import", *files, "--text-cut", 4000, "--out", tmp_path / "other").returncode == 1
