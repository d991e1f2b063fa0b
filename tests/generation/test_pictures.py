"""Training data of a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from csaligner.generation import pictures as module
from csaligner.generation.pictures import gather_pictures
from csaligner.store.embed import ExtractSettings, embed
from csaligner.store.store import Store
from csaligner.types import Encoder, Item


class Plain:
    name, attribution = "plain", ""

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = items

    def items(self) -> Sequence[Item]:
        return self._items


@pytest.fixture
def store(pixels: Encoder, tmp_path: Path) -> Store:
    """Store of images without captions, with different colours in the left and the right half."""
    items = []
    for i in range(40):
        picture = Image.new("RGB", (16, 16), (5 * i, 0, 200))
        picture.paste((0, 250 - 4 * i, 0), (0, 0, 8, 16))
        picture.save(tmp_path / f"{i}.png")
        items.append(Item(str(i), tmp_path / f"{i}.png", (), str(i)))
    return embed(Plain(items), pixels, None, tmp_path / "store", ExtractSettings(workers=0))


def test_pictures_without_captions_teach_a_decoder(
    store: Store, pixels: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "open_encoder", lambda name, modality: pixels)
    found = gather_pictures([store, store], 8, tmp_path / "cache.safetensors", lambda done, total: None)
    n = store.counts["train"][0]
    assert len(found.pixels) == len(found.embeddings) == 4 * n
    straight, mirrored = found.pixels[:n], found.pixels[n : 2 * n]
    assert torch.equal(mirrored, straight.flip(3))
    assert torch.equal(found.embeddings[:n], store.rows("image", store.rows_of("image", "train")))
    first = straight.float().mean(dim=(2, 3)) / 50  # as encoded by Pixels, up to rounding
    torch.testing.assert_close(found.embeddings[:n, :3], first, atol=0.3, rtol=0)
