"""Simple encoders, an aligner on them, and a decoder of random numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from csaligner import model as model_module
from csaligner.adapters.aligner import Aligner
from csaligner.config import TrainConfig, build_config
from csaligner.decoders.contract import Contract
from csaligner.generation import evaluate as evaluate_module
from csaligner.generation import generate as module
from csaligner.types import EncoderInfo, PairedFeatures
from tests.support.layout import save_tiny_layout

DIM = 6


class Letters:
    """Encodes a text as (a, b, c): counts of these letters."""

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

    for place in (model_module, module, evaluate_module):
        monkeypatch.setattr(place, "open_encoder", opened)


def make_aligner(image_adapter: str = "standardise", dim: int = DIM) -> Aligner:
    g = torch.Generator().manual_seed(0)
    text = torch.rand(30, 3, generator=g) * 4
    image = text @ torch.rand(3, dim, generator=g) * 2 + 1
    pairs = PairedFeatures(image, text, torch.arange(30), tuple(map(str, range(30))))
    config = build_config(TrainConfig, {"image_adapter": image_adapter, "text_adapter": "mlp"})
    return Aligner.fit_start(pairs, config, (Pixels.info.fingerprint, Letters.info.fingerprint)).eval()


@pytest.fixture
def aligner() -> Callable[..., Aligner]:
    return make_aligner


@pytest.fixture
def letters() -> Letters:
    return Letters()


@pytest.fixture
def pixels() -> Pixels:
    return Pixels()


@pytest.fixture
def decoder(tmp_path: Path) -> str:
    contract = Contract("tiny", DIM, "pixels", Pixels.info.fingerprint, norm=5.0, negative=torch.ones(DIM))
    return str(save_tiny_layout(contract, tmp_path / "decoder"))
