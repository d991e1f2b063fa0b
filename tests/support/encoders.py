"""Small images, a dataset in memory, and fast deterministic encoders."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from csaligner.types import EncoderInfo, Item


class FakeImageEncoder:
    """Encodes an image as its mean colour; counts images."""

    def __init__(self, revision: str = "1") -> None:
        self.info = EncoderInfo("fake-image", revision, "image", 3, {"size": 16})
        self.seen = 0

    def prepare(self, item: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(item.resize((1, 1), Image.Resampling.BOX)).reshape(3))

    def encode(self, prepared: Sequence[Tensor]) -> Tensor:
        self.seen += len(prepared)
        return torch.stack(list(prepared)).float()


class FakeTextEncoder:
    """Encodes a text as numbers from its hash."""

    def __init__(self) -> None:
        self.info = EncoderInfo("fake-text", "1", "text", 8, {})

    def prepare(self, item: str) -> str:
        return item

    def encode(self, prepared: Sequence[str]) -> Tensor:
        return torch.stack([text_features(text) for text in prepared])


def text_features(text: str) -> Tensor:
    return torch.tensor(list(hashlib.sha256(text.encode()).digest()[:8]), dtype=torch.float32)


class Listed:
    """Dataset of a list of items."""

    def __init__(self, items: Sequence[Item], name: str = "listed") -> None:
        self.name, self.attribution, self._items = name, "Drawn by a test.", items

    def items(self) -> Sequence[Item]:
        return self._items


MakeItems = Callable[[int], list[Item]]


def make_items(folder: Path, n: int) -> list[Item]:
    """Write n images of colour (i, 2 i, 100) to a folder, the i-th with 1 + i % 3 captions."""
    folder.mkdir(exist_ok=True)
    items = []
    for i in range(n):
        path = folder / f"{i}.png"
        Image.new("RGB", (4, 4), (i, 2 * i, 100)).save(path)
        captions = tuple(f"picture {i} caption {k}" for k in range(1 + i % 3))
        items.append(Item(f"id{i}", path, captions, group=f"id{i}"))
    return items
