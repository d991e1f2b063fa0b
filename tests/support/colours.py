"""Test data of plain colours: images of one colour, texts that name one, and an aligner that matches them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from csaligner.adapters.aligner import Aligner, AlignerConfig
from csaligner.adapters.start import Affine
from csaligner.config import AdapterConfig
from csaligner.types import EncoderInfo

GAP = 3.0  # distance of images and texts along the last of four dimensions


class ColourImages:
    """Encodes an image as (r, g, b, GAP), its mean colour; counts images."""

    def __init__(self, revision: str = "1") -> None:
        self.info = EncoderInfo("colour-images", revision, "image", 4, {"size": 16})
        self.seen = 0

    def prepare(self, item: Image.Image) -> Tensor:
        mean = np.array(item.resize((1, 1), Image.Resampling.BOX), dtype=np.float32).reshape(3) / 255
        return torch.tensor([*mean.tolist(), GAP])

    def encode(self, prepared: Sequence[Tensor]) -> Tensor:
        self.seen += len(prepared)
        return torch.stack(list(prepared))


class ColourTexts:
    """Encodes a text "r g b" (up to 255) as (r, g, b, -GAP); other texts as a colour derived from their letters."""

    def __init__(self) -> None:
        self.info = EncoderInfo("colour-texts", "1", "text", 4, {})
        self.seen = 0

    def prepare(self, item: str) -> str:
        return item

    def encode(self, prepared: Sequence[str]) -> Tensor:
        self.seen += len(prepared)
        return torch.tensor([[*_colour(text), -GAP] for text in prepared])


def _colour(text: str) -> list[float]:
    words = text.split()[:3]
    if len(words) == 3 and all(word.isdecimal() for word in words):
        return [int(word) / 255 for word in words]
    return [(sum(map(ord, text)) * (7 + i) % 256) / 255 for i in range(3)]


@dataclass(frozen=True)
class World:
    """run: a saved aligner; encoders: new encoders; pictures: writes image files of colours to a new folder."""

    folder: Path
    run: Path
    images: ColourImages
    texts: ColourTexts

    @property
    def encoders(self) -> tuple[ColourImages, ColourTexts]:
        return self.images, self.texts

    def picture(self, name: str, colour: tuple[int, int, int], caption: str = "") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 12), colour).save(path)
        if caption:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
        return path

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def many(self, count: int, seed: int = 0) -> None:
        """Write images of random colours, with their colours as captions."""
        for n, colour in enumerate(np.random.default_rng(seed).integers(1, 255, (count, 3)).tolist()):
            self.picture(f"{n:03}.png", tuple(colour), " ".join(map(str, colour)))


def save_aligner(folder: Path) -> Path:
    """Save an aligner that removes the last dimension, and with it the gap."""
    linear = AdapterConfig(name="linear")
    config = AlignerConfig(
        dim_image=4,
        dim_text=4,
        dim=4,
        image_adapter=linear,
        text_adapter=linear,
        image_encoder=ColourImages().info.fingerprint,
        text_encoder=ColourTexts().info.fingerprint,
    )
    start = Affine(torch.zeros(4), torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0])), torch.zeros(4))
    Aligner(config, (start, start)).save(folder)
    return folder


def make_world(folder: Path) -> World:
    (folder / "data").mkdir()
    run = save_aligner(folder / "run")
    return World((folder / "data").resolve(), run, ColourImages(), ColourTexts())
