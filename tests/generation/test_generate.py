"""Image generation from prompts and images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from csaligner.adapters.aligner import Aligner
from csaligner.checks import InputError
from csaligner.decoders.contract import Contract
from csaligner.decoders.decoder import Sampling
from csaligner.generation import generate as module
from csaligner.generation.generate import GenerationRequest, generate, save_pictures
from csaligner.generation.prompts import Prompt
from csaligner.generation.text import TextToEmbedding
from csaligner.model import AlignedModel
from csaligner.types import Encoder

DIM = 6
FAST = Sampling(n=1, steps=2, guidance=2.0)
Make = Callable[..., Aligner]


@pytest.fixture
def run(aligner: Make, tmp_path: Path) -> Path:
    aligner().save(tmp_path / "run")
    return tmp_path / "run"


def test_prompts_become_pictures_that_follow_them(encoders: None, decoder: str, run: Path) -> None:
    two = Sampling(n=2, steps=2, guidance=2.0)
    rows = generate(GenerationRequest(("aaa", "ccc")), run=run, decoder=decoder, sampling=two)
    assert [len(row) for row in rows] == [2, 2]
    assert len({picture.tobytes() for row in rows for picture in row}) == 4
    again = generate(GenerationRequest(("aaa", "ccc")), run=run, decoder=decoder, sampling=two)
    assert again[1][1].tobytes() == rows[1][1].tobytes()
    away = generate(GenerationRequest(("aaa", "ccc"), negative="b b"), run=run, decoder=decoder, sampling=two)
    assert away[0][0].tobytes() != rows[0][0].tobytes()


def test_variations_of_a_picture(encoders: None, decoder: str, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), "red").save(tmp_path / "red.png")
    rows = generate(GenerationRequest(image=tmp_path / "red.png"), decoder=decoder, sampling=Sampling(n=3, steps=2))
    assert len(rows[0]) == 3
    with pytest.raises(InputError, match="not both"):
        generate(GenerationRequest(("a",), image=tmp_path / "red.png"), decoder=decoder)


def test_mixtures_lie_between_their_prompts(aligner: Make, letters: Encoder) -> None:
    text = TextToEmbedding(AlignedModel(aligner(), [letters]))
    a, b, middle = text.directions([Prompt.parse(p) for p in ("aaa", "ccc", "aaa::1 ccc::1")])
    torch.testing.assert_close(middle, normalize(a + b, dim=0))


def test_raw_embeddings_have_the_moments_of_real_ones(aligner: Make, letters: Encoder) -> None:
    contract = Contract("tiny", DIM, norm=5.0)
    u = normalize(torch.randn(4, DIM), dim=1)
    model = aligner()
    raw = TextToEmbedding(AlignedModel(model, [letters])).raw(u, contract)
    torch.testing.assert_close(model.encode_image(raw), u, atol=1e-5, rtol=1e-4)
    directions = TextToEmbedding(AlignedModel(aligner("identity"), [letters]))
    torch.testing.assert_close(directions.raw(u, contract), 5 * u)
    with pytest.raises(InputError, match="raw"):
        directions.check(Contract("tiny", DIM))


def test_bad_input_is_one_line_before_the_decoder_is_loaded(
    encoders: None, aligner: Make, decoder: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(module, "open_decoder", never)
    with pytest.raises(InputError, match="words"):
        generate(GenerationRequest((" ",)), run=run, decoder=decoder)
    with pytest.raises(InputError, match=r"6 tokens.*5"):
        generate(GenerationRequest(("a a a a a a",)), run=run, decoder=decoder)
    with pytest.raises(InputError, match="folder"):
        generate(GenerationRequest(("a",)), run=tmp_path / "none", decoder=decoder)
    aligner(dim=9).save(tmp_path / "nine")
    with pytest.raises(InputError, match=r"6\b.*pixels.*\b9"):
        generate(GenerationRequest(("a",)), run=tmp_path / "nine", decoder=decoder)
    aligner("mlp").save(tmp_path / "moved")
    with pytest.raises(InputError, match="image_adapter=standardise"):
        generate(GenerationRequest(("a",)), run=tmp_path / "moved", decoder=decoder)


def test_pictures_are_saved_with_numbers_and_enlarged(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (8, 4), colour) for colour in ("red", "blue")]
    assert save_pictures(pictures[:1], tmp_path / "one.png", 16) == [tmp_path / "one.png"]
    assert Image.open(tmp_path / "one.png").size == (16, 8)
    names = save_pictures(pictures, tmp_path / "new" / "two.jpg", 0)
    assert [name.name for name in names] == ["two-1.jpg", "two-2.jpg"]
    assert Image.open(names[1]).size == (8, 4)
    with pytest.raises(InputError, match=r"\.png"):
        save_pictures(pictures, tmp_path / "two.txt", 0)
