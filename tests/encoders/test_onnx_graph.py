"""Bundled encoders on ONNX Runtime against torch."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch

from csaligner.encoders import onnx_graph, open_encoder
from csaligner.encoders.efficientnet import EfficientNetLite0
from csaligner.encoders.minilm import MiniLM, model_folder
from csaligner.encoders.word_pieces import WordPieces

pytest.importorskip("onnxruntime", reason="the extra bundled brings onnxruntime")

TEXTS = ["a cat", "", "Ünïcödé 猫 😀 [MASK] don't", "one two three " * 100, " \t\n", "x" * 300]
PIXELS = list(torch.randint(0, 256, (5, 3, 224, 224), generator=torch.Generator().manual_seed(0), dtype=torch.uint8))


@pytest.fixture(scope="module")
def on_torch() -> Any:
    """Open a bundled encoder as on a machine without ONNX Runtime."""

    def opened(name: str) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(onnx_graph, "find_spec", lambda name: None)
            with pytest.warns(UserWarning, match="onnxruntime is not installed"):
                return open_encoder(name)

    return opened


@pytest.mark.parametrize(
    ("name", "items"), [("bundled:efficientnet-lite0", PIXELS), ("bundled:all-MiniLM-L6-v2?long_text=split", TEXTS)]
)
def test_both_runtimes_give_the_same_features_and_fingerprint(name: str, items: list[Any], on_torch: Any) -> None:
    fast, slow = open_encoder(name), on_torch(name)
    assert fast.info == slow.info  # old stores stay valid
    found, wanted = fast.encode_with_tokens(items), slow.encode_with_tokens(items)  # type: ignore[attr-defined]
    assert not torch.equal(found.features, wanted.features)  # else both are torch
    assert (found.features - wanted.features).abs().max() < 1e-5 * wanted.features.abs().max()
    assert list(map(len, found.tokens)) == list(map(len, wanted.tokens))
    ours, theirs = torch.cat(list(found.tokens)), torch.cat(list(wanted.tokens))
    assert (ours - theirs).abs().max() < 2e-5 * theirs.abs().max()
    copy = pickle.loads(pickle.dumps(fast))
    assert torch.equal(copy.encode(items), fast.encode(items))


@pytest.mark.parametrize("options", ["", "?prompt=a photo of ", "?long_text=split", "?max_tokens=8"])
def test_one_text_has_the_features_that_it_has_in_the_code_for_batches(options: str) -> None:
    encoder = open_encoder(f"bundled:all-MiniLM-L6-v2{options}")
    for text in TEXTS:
        assert torch.equal(encoder.encode([text]), encoder.encode_with_tokens([text]).features)  # type: ignore[attr-defined]


def test_the_same_token_ids_as_transformers() -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(model_folder(), local_files_only=True)
    ours = WordPieces(model_folder() / "tokenizer.json", 16)
    wanted = theirs(TEXTS, truncation=True, max_length=16, return_overflowing_tokens=True)
    found = ours(TEXTS)
    for key in ("input_ids", "overflow_to_sample_mapping", "token_type_ids", "attention_mask"):
        assert found[key] == wanted[key]
    for text in TEXTS:
        assert ours(text, truncation=False)["input_ids"] == theirs(text, verbose=False)["input_ids"]


def test_torch_computes_the_features_where_the_probe_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "TOLERANCE", 0.0)
    with pytest.warns(UserWarning, match="differ"):
        encoder = EfficientNetLite0()
    monkeypatch.setattr(onnx_graph.OnnxGraph, "run", lambda *_: pytest.fail("ran the graph"))
    assert encoder.encode(PIXELS[:1]).isfinite().all()


def test_weights_without_a_graph_run_on_torch() -> None:
    with pytest.warns(UserWarning, match="other weights"):
        assert onnx_graph.open_graph("minilm", "0" * 64, lambda: pytest.fail("read the weights")) is None


def test_a_trained_tower_computes_the_features() -> None:
    encoder = MiniLM()
    before = encoder.encode(["a cat"])
    with torch.no_grad():
        for parameter in encoder.tower.backbone.parameters():
            parameter.mul_(1.01)
    assert (encoder.encode(["a cat"]) - before).abs().max() > 1e-3


def test_a_query_imports_neither_transformers_nor_scikit_learn() -> None:
    code = (
        "import sys; from csaligner.encoders import open_encoder;"
        "open_encoder('bundled:all-MiniLM-L6-v2').encode(['a cat']);"
        "print(sorted({'transformers', 'sentence_transformers', 'sklearn', 'scipy', 'onnx', 'torch._dynamo'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
