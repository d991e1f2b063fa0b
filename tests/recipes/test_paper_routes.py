"""The paper's routes from a folder of images to index and decoder, on small models in the real formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from csaligner.adapters.aligner import Aligner, align
from csaligner.adapters.prior import PriorAdapter
from csaligner.adapters.start import blank
from csaligner.decoders.contract import Contract
from csaligner.encoders import open_encoder
from csaligner.generation.generate import GenerationRequest, generate
from csaligner.model import AlignedModel
from csaligner.pipeline import load_run
from csaligner.search.build import build_index
from csaligner.store.read_tokens import has_tokens
from csaligner.store.store import Store
from tests.support.commands import csaligner
from tests.support.eclipse import make_prior, save_eclipse
from tests.support.layout import save_tiny_layout
from tests.support.models import make_clip

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("lancedb")
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (20, 40, 230)}
SETTINGS = ["--epochs", "2", "--batch-size", "8", "--lr", "0.003", "-q", "evaluate_every=1"]
TERMS = ["objective.terms.info_nce=1", "objective.terms.cauchy_schwarz=1", "objective.terms.token_cauchy_schwarz=0.1"]
PRIOR = ["image_adapter=standardise", "text_adapter.name=prior", "text_adapter.hidden=32", "text_adapter.blocks=1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paper") / "data"
    folder.mkdir()
    for i in range(24):
        colour = list(COLOURS)[i % 3]
        pixels = np.clip(np.array(COLOURS[colour]) + np.random.default_rng(i).normal(0, 25, (16, 16, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(" ".join(["a", colour, ("cat", "dog", "house")[i // 3 % 3]][i % 2 :]))
    return folder


@pytest.fixture(scope="module")
def store(data: Path, tiny_model: Callable[[str], Path]) -> Path:
    name = f"hf:{tiny_model('clip')}"
    done = csaligner(
        "embed", "--data", data, "--out", data.parent / "store", "--image-encoder", name, "--text-encoder", name,
        "--tokens", "3", "--workers", "0", "-q",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert has_tokens(Store.open(data.parent / "store"))
    return data.parent / "store"


def trained(store: Path, out: Path, *words: str) -> Path:
    done = csaligner("train", "--train-data", store, "--out", out, *SETTINGS, *words)
    assert done.returncode == 0, done.stderr
    return out


def decoder_for(folder: Path, encoder: str) -> str:
    info = open_encoder(encoder, "image").info
    contract = Contract("tiny", info.dim, info.id, info.fingerprint, norm=5.0, negative=torch.ones(info.dim))
    return str(save_tiny_layout(contract, folder / "decoder"))


def check_routes(run: Path, data: Path, encoder: str, folder: Path) -> Aligner:
    """Encode, index, search, draw and export with a run; its encodings are the same everywhere."""
    store = Store.open(data.parent / "store")
    wanted = align(*load_run(run, store, "train"))
    assert wanted.captions is not None
    model = AlignedModel.open(run)
    np.testing.assert_allclose(model.encode_text(wanted.captions), wanted.text, atol=2e-3)  # stored in half precision
    index = build_index(str(data), folder / "index", str(run))[0]
    assert index.search("a red cat", k=3)
    rows = generate(GenerationRequest(("a red cat",)), run=run, decoder=decoder_for(folder, encoder))
    assert rows[0][0].size == (16, 16)
    done = csaligner("export", "--run", run, "--format", "hub", "--out", folder / "hub")
    assert done.returncode == 0, done.stderr
    again = AlignedModel.open(folder / "hub").encode_text(["a red cat"])
    np.testing.assert_allclose(again, model.encode_text(["a red cat"]), atol=1e-6)
    return model.aligner


def test_the_prior_with_tokens_and_the_token_term(
    data: Path, store: Path, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    run = trained(store, tmp_path / "run", *PRIOR, "text_adapter.noise=0", "--unpaired-texts", str(store), *TERMS)
    assert '"loss/token_cauchy_schwarz"' in (run / "metrics.jsonl").read_text()
    aligner = check_routes(run, data, f"hf:{tiny_model('clip')}", tmp_path)
    assert aligner.reads_states
    assert csaligner("eval", "--run", run, "--split", "train").returncode == 0
    done = csaligner("export", "--run", run, "--format", "onnx", "--out", tmp_path / "onnx")
    assert done.returncode == 1
    assert "hidden states" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        pytest.param([*PRIOR, *TERMS], id="prior"),
        pytest.param(["image_adapter=standardise", "text_adapter=linear", *TERMS], id="linear"),
    ],
)
def test_lora_to_an_unclip_space_with_the_token_term(
    data: Path, store: Path, tiny_model: Callable[[str], Path], tmp_path: Path, words: list[str]
) -> None:
    run = trained(store, tmp_path / "run", "--lora", "text", "--lora-rank", "8", *words)
    check_routes(run, data, f"hf:{tiny_model('clip')}", tmp_path)
    plain = AlignedModel.open(run)
    assert plain.lora == ("text",)


def test_the_token_term_on_clip_trains_both_adapters(store: Path, tmp_path: Path) -> None:
    run = trained(store, tmp_path / "run", "gate=false", *TERMS)
    without = trained(store, tmp_path / "without", "gate=false", *TERMS[:2])
    states: list[Any] = [Aligner.load(each / "checkpoints/latest").state_dict() for each in (run, without)]
    moved = {name for name, value in states[0].items() if not torch.equal(value, states[1][name])}
    assert {name.partition(".")[0] for name in moved} >= {"image_adapter", "text_adapter"}


def test_a_published_prior_is_trained_further_and_is_the_baseline(data: Path, tmp_path: Path) -> None:
    make_clip(tmp_path / "clip", projection=16)  # hidden states and features of equal dimension, as in CLIP bigG
    name, store = f"hf:{tmp_path / 'clip'}", tmp_path / "store"
    words = ["--image-encoder", name, "--text-encoder", name, "--tokens", "1", "--workers", "0", "-q"]
    assert csaligner("embed", "--data", data, "--out", store, *words).returncode == 0
    published = save_eclipse(make_prior(16, 32), tmp_path / "eclipse")
    words = ["image_adapter=standardise", "text_adapter.name=prior", f"start.checkpoint={published}"]
    base = trained(store, tmp_path / "base", *words, "--epochs", "0")
    prior = PriorAdapter(blank(16, 16), AlignedModel.open(base).aligner.config.text_adapter).eval()
    prior.load_published(published)
    encoder = open_encoder(name, "text")
    sets = encoder.encode_with_tokens(["a red cat"])  # type: ignore[attr-defined]
    with torch.no_grad():
        raw = prior(sets.features, sets.states[0][None])
        wanted = AlignedModel.open(base).aligner.encode_image(raw)
    found = AlignedModel.open(base).encode_text(["a red cat"])
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    more = trained(store, tmp_path / "more", *words)
    assert np.abs(AlignedModel.open(more).encode_text(["a red cat"]) - found).max() > 1e-4
