from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.adapters.aligner import Aligner
from csaligner.checks import InputError
from csaligner.config import TrainConfig, build_config
from csaligner.decoders.contract import Contract
from csaligner.decoders.door import Sampling
from csaligner.decoders.micro import MicroConfig, build_micro, save_micro
from csaligner.generation import generate as module
from csaligner.generation import text as text_module
from csaligner.generation.generate import Wish, generate, save_pictures
from csaligner.generation.prompts import Prompt
from csaligner.generation.text import TextToEmbedding
from csaligner.types import EncoderInfo, PairedFeatures

DIM = 6
FAST = Sampling(n=1, steps=2, guidance=2.0)


class Letters:
    """(a, b, c): how often the letters stand in a text."""

    info = EncoderInfo("letters", "1", "text", 3, {"max_tokens": 5})

    def prepare(self, item: str) -> str:
        return item

    def encode(self, prepared: Sequence[str]) -> Tensor:
        return torch.tensor([[text.count(c) + 0.5 for c in "abc"] for text in prepared])


class Pixels:
    info = EncoderInfo("pixels", "1", "image", DIM, {"size": 4})

    def prepare(self, item: Image.Image) -> Tensor:
        pixels = torch.tensor(list(item.resize((1, 1)).tobytes()), dtype=torch.float32) / 50
        return torch.cat([pixels, pixels.flip(0) + 1])

    def encode(self, prepared: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(prepared)).float()


@pytest.fixture
def encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(name: str, modality: str | None = None) -> Any:
        return Letters() if modality == "text" else Pixels()

    monkeypatch.setattr(text_module, "open_encoder", opened)
    monkeypatch.setattr(module, "open_encoder", opened)


def aligner(image_adapter: str = "standardise", dim: int = DIM) -> Aligner:
    g = torch.Generator().manual_seed(0)
    text = torch.rand(30, 3, generator=g) * 4
    image = text @ torch.rand(3, dim, generator=g) * 2 + 1
    pairs = PairedFeatures(image, text, torch.arange(30), tuple(map(str, range(30))))
    config = build_config(TrainConfig, {"image_adapter": image_adapter, "text_adapter": "mlp"})
    return Aligner.fit_start(pairs, config, (Pixels.info.fingerprint, Letters.info.fingerprint)).eval()


@pytest.fixture
def decoder(tmp_path: Path) -> str:
    pytest.importorskip("diffusers", reason="the extra 'generate' is not installed")
    torch.manual_seed(0)
    tiny = MicroConfig(size=8, embedding_dim=DIM, autoencoder_channels=(8, 8), unet_channels=(16, 16))
    contract = Contract("tiny", DIM, "pixels", Pixels.info.fingerprint, norm=5.0, negative=torch.ones(DIM))
    save_micro(build_micro(tiny), contract, tmp_path / "decoder", "")
    return str(tmp_path / "decoder")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    aligner().save(tmp_path / "run")
    return tmp_path / "run"


def test_prompts_become_pictures_that_follow_them(encoders: None, decoder: str, run: Path) -> None:
    rows = generate(Wish(("aaa", "ccc")), run=run, decoder=decoder, sampling=Sampling(n=2, steps=2, guidance=2.0))
    assert [len(row) for row in rows] == [2, 2]
    again = generate(Wish(("aaa",)), run=run, decoder=decoder, sampling=FAST)
    assert again[0][0].tobytes() == generate(Wish(("aaa",)), run=run, decoder=decoder, sampling=FAST)[0][0].tobytes()
    other = generate(Wish(("aaa",), negative="b b"), run=run, decoder=decoder, sampling=FAST)
    assert again[0][0].tobytes() != other[0][0].tobytes()


def test_variations_of_a_picture(encoders: None, decoder: str, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), "red").save(tmp_path / "red.png")
    rows = generate(Wish(image=tmp_path / "red.png"), decoder=decoder, sampling=Sampling(n=3, steps=2))
    assert len(rows[0]) == 3
    with pytest.raises(InputError, match="not both"):
        generate(Wish(("a",), image=tmp_path / "red.png"), decoder=decoder)


def test_mixtures_lie_between_their_prompts(encoders: None) -> None:
    text = TextToEmbedding(aligner(), Letters())
    a, b, middle = text.directions([Prompt.parse(p) for p in ("aaa", "ccc", "aaa::1 ccc::1")])
    torch.testing.assert_close(middle, normalize(a + b, dim=0))


def test_raw_embeddings_have_the_moments_of_real_ones() -> None:
    contract = Contract("tiny", DIM, norm=5.0)
    u = normalize(torch.randn(4, DIM), dim=1)
    model = aligner()
    raw = TextToEmbedding(model, Letters()).raw(u, contract)
    torch.testing.assert_close(model.encode_image(raw), u)
    directions = TextToEmbedding(aligner("identity"), Letters())
    torch.testing.assert_close(directions.raw(u, contract), 5 * u)
    with pytest.raises(InputError, match="does not say how long raw embeddings are"):
        directions.check(Contract("tiny", DIM))


def test_bad_input_is_one_line_before_the_decoder_is_loaded(
    encoders: None, decoder: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(module, "open_decoder", never)
    with pytest.raises(InputError, match="wanted some words"):
        generate(Wish((" ",)), run=run, decoder=decoder)
    with pytest.raises(InputError, match="has 6 tokens, letters reads 5"):
        generate(Wish(("a a a a a a",)), run=run, decoder=decoder)
    with pytest.raises(InputError, match="no such folder"):
        generate(Wish(("a",)), run=tmp_path / "none", decoder=decoder)
    aligner(dim=9).save(tmp_path / "nine")
    with pytest.raises(InputError, match="takes 6-dimensional image embeddings of pixels, the adapter gives 9"):
        generate(Wish(("a",)), run=tmp_path / "nine", decoder=decoder)
    aligner("mlp").save(tmp_path / "moved")
    with pytest.raises(InputError, match="train with image_adapter=standardise"):
        generate(Wish(("a",)), run=tmp_path / "moved", decoder=decoder)


def test_pictures_are_saved_with_numbers_and_enlarged(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (8, 4), colour) for colour in ("red", "blue")]
    assert save_pictures(pictures[:1], tmp_path / "one.png", 16) == [tmp_path / "one.png"]
    assert Image.open(tmp_path / "one.png").size == (16, 8)
    names = save_pictures(pictures, tmp_path / "new" / "two.jpg", 0)
    assert [name.name for name in names] == ["two-1.jpg", "two-2.jpg"]
    assert Image.open(names[1]).size == (8, 4)
    with pytest.raises(InputError, match=r"ends in \.png"):
        save_pictures(pictures, tmp_path / "two.txt", 0)
