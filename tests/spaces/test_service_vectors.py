"""Vectors as text services send them: cut (Matryoshka), int8, float16 and base64, beside images of another width."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from csaligner import CSAligner, Store
from csaligner.evaluation.evaluate import evaluate
from csaligner.export import export_aligner
from csaligner.paired_features import pair_features
from csaligner.store import load_features
from csaligner.store.import_features import FeatureFiles, import_features
from tests.support.commands import csaligner

N = 900


def service(width: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Image vectors (N, 96), and text vectors (N, width) of length 1, whose leading dimensions carry most.

    A text has 64 independent numbers, 48 of them of the image with noise, and each prefix holds all of them."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(N, 48)).astype("f4")
    image = shared @ rng.normal(size=(48, 96)).astype("f4") + 6 * rng.normal(size=(N, 96)).astype("f4")
    own = np.concatenate([shared + rng.normal(size=(N, 48)), rng.normal(size=(N, 16))], axis=1).astype("f4")
    text = own @ rng.normal(size=(64, width)).astype("f4") * np.arange(1, width + 1, dtype="f4") ** -0.5
    return image, text / np.linalg.norm(text, axis=1, keepdims=True)


def quantised(x: np.ndarray) -> np.ndarray:
    rows: np.ndarray = np.round(127 * x / np.abs(x).max()).astype(np.int8)
    return rows


def searched(folder: Path, image: np.ndarray, text: np.ndarray, form: str, cut: int) -> dict[str, float]:
    """Metrics of the last 300 pairs: written as a service answers, read, fitted, exported, searched."""
    folder.mkdir()
    for part, rows in (("train", slice(0, 600)), ("test", slice(600, None))):
        np.save(folder / f"image-{part}.npy", image[rows])
        if form == "float32":
            words = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in text[rows]]
            given = json.dumps({"data": [{"index": n, "embedding": word} for n, word in enumerate(words)]})
        else:
            given = json.dumps({"embeddings": {"int8": quantised(text[rows, :cut]).tolist()}})
        (folder / f"text-{part}.json").write_text(given)
    files = FeatureFiles(folder / "image-train.npy", folder / "text-train.json", cuts=(None, cut))
    pairs = import_features(files, folder / "store").features()
    assert pairs.text.shape[1] == cut
    aligner = CSAligner(epochs=0, start={"kind": "auto"}, image_adapter="linear", text_adapter="linear")
    export_aligner(aligner.fit_features(pairs).model, folder / "npz", "npz")
    mapped = []
    for side, test in (("image", image[600:]), ("text", load_features(folder / "text-test.json").numpy()[:, :cut])):
        adapter = np.load(folder / "npz" / f"{side}.npz")
        unit = test / np.linalg.norm(test, axis=1, keepdims=True)
        mapped.append(torch.from_numpy((unit - adapter["mean"]) @ adapter["map"] + adapter["offset"]).float())
    return evaluate(pair_features(*mapped), intervals=False).metrics


def test_3072_dimensions_cut_to_256_and_quantised_lose_at_most_two_points(tmp_path: Path) -> None:
    image, text = service(3072)
    whole = searched(tmp_path / "whole", image, text, "float32", 3072)
    small = searched(tmp_path / "small", image, text, "int8", 256)
    for name in ("image_to_text_recall@1", "text_to_image_recall@1", "mean_mixed_ndcg@10"):
        assert 0.2 < whole[name] < 0.9
        assert small[name] >= whole[name] - 0.02, name


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
