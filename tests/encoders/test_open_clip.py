"""open_clip encoders; a small module replaces the package."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from csaligner.checks import InputError
from csaligner.encoders import open_encoder


class FakeTokenizer:
    context_length = 7

    def encode(self, text: str) -> list[int]:
        return [len(word) for word in text.split()]

    def __call__(self, texts: list[str]) -> Tensor:
        rows = [[*[1, *self.encode(text)][: self.context_length - 1], 2] for text in texts]
        return torch.tensor([row + [0] * (self.context_length - len(row)) for row in rows])


class FakeModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.visual = nn.Module()
        setattr(self.visual, "image_size", (4, 4))  # noqa: B010  (a module holds what it does not know)
        self.image = nn.Parameter(torch.randn(48, 5, generator=g))
        self.text = nn.Parameter(torch.randn(7, 5, generator=g))

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        return image.flatten(1) @ self.image

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        return text.float() @ self.text


def preprocess(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.resize((4, 4)))).permute(2, 0, 1) / 255


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    model, module = FakeModel(), ModuleType("open_clip")

    def create(name: str, *, pretrained: str, precision: str, device: str) -> Any:
        if (name, pretrained) != ("ViT-B-32", "laion2b_s34b_b79k"):
            raise RuntimeError(f"Model config for {name} not found.\nAvailable: many")
        return model, None, preprocess

    module.create_model_and_transforms = create  # type: ignore[attr-defined]
    module.get_tokenizer = lambda name: FakeTokenizer()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "open_clip", module)
    return model


NAME = "open_clip:ViT-B-32/laion2b_s34b_b79k"


def test_both_towers(fake: FakeModel) -> None:
    image, text = open_encoder(NAME, "image"), open_encoder(NAME, "text")
    picture = Image.new("RGB", (9, 6), (255, 0, 51))
    found = image.encode([image.prepare(picture), image.prepare(picture)])
    torch.testing.assert_close(found[0], fake.encode_image(preprocess(picture)[None])[0])
    texts = ["a cat", "one two three four five six seven"]
    torch.testing.assert_close(text.encode(texts), fake.encode_text(FakeTokenizer()(texts)))
    assert (image.info.dim, image.info.modality, text.info.modality) == (5, "image", "text")
    assert image.info.revision == text.info.revision
    assert text.truncated == 1  # type: ignore[attr-defined]
    assert open_encoder(text.info.id).info == text.info


def test_the_revision_is_that_of_the_weights(fake: FakeModel) -> None:
    first = open_encoder(NAME, "image").info.revision
    with torch.no_grad():
        fake.text[0, 0] += 1
    assert open_encoder(NAME, "image").info.revision != first


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("open_clip:ViT-B-32?modality=text", "open_clip:MODEL/PRETRAINED"),
        ("open_clip:ViT-Z/x?modality=text", "Model config for ViT-Z not found. Available: many"),
        (NAME, r"\?modality=image.*\?modality=text"),
        (NAME + "?modality=text&long_text=split", "takes long_text=truncate or error"),
        (NAME + "?modality=image&pooling=mean", "pooling"),
    ],
)
def test_one_line_errors(fake: FakeModel, name: str, line: str) -> None:
    with pytest.raises(InputError, match=line) as caught:
        open_encoder(name)
    assert "\n" not in str(caught.value)


def test_long_texts_can_be_refused(fake: FakeModel) -> None:
    with pytest.raises(InputError, match=r"1 of 1.*7 tokens"):
        open_encoder(NAME + "?long_text=error", "text").encode(["a b c d e f g"])


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(InputError, match="pip install open_clip_torch"):
        open_encoder(NAME, "text")
