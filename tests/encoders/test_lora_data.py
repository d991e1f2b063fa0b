"""LoRA with a separate validation store and with unpaired images and texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from csaligner.checks import InputError
from csaligner.config import LoRAConfig, TrainConfig, build_config
from csaligner.encoders import open_encoder
from csaligner.pipeline import train
from csaligner.store.embed import ExtractSettings, embed
from csaligner.store.store import Store, write_store
from csaligner.training.encoder_batches import TrainableStore
from csaligner.training.training_data import TrainingData
from csaligner.types import Item, PairedFeatures

pytest.importorskip("transformers")
pytest.importorskip("peft")
Tiny = Callable[[str], Path]
WORDS = ("red", "green", "blue", "cat", "dog", "house")
SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 8, "lr": 3e-3, "evaluate_every": 2, "dim": 6}
SETTINGS |= {"lora": {"sides": "both", "rank": 2}, "unpaired": {"images": 3, "texts": 4}}


class Drawn:
    """Images of one grey value each; captions grow with the item's number."""

    name, attribution = "drawn", ""

    def __init__(self, folder: Path, first: int, count: int, split: Any) -> None:
        folder.mkdir()
        self._items = []
        for i in range(first, first + count):
            path = folder / f"{i}.png"
            Image.new("RGB", (16, 16), (7 * i % 256, 31 * i % 256, 90)).save(path)
            caption = " ".join(WORDS[(i + k) % 6] for k in range(1 + i % 4))
            self._items.append(Item(str(i), path, (caption,), str(i), split or ("train", "train", "test")[i % 3]))

    def items(self) -> list[Item]:
        return self._items


@pytest.fixture(scope="module")
def data(tiny_model: Tiny, tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    folder = tmp_path_factory.mktemp("lora")
    image = open_encoder(f"hf:{tiny_model('clip')}", "image")
    text = open_encoder(f"hf:{tiny_model('bert')}", "text")

    def store(name: str, first: int, count: int, split: Any = None, sides: str = "both") -> Store:
        drawn = Drawn(folder / name, first, count, split)
        chosen = (image if sides != "text" else None, text if sides != "image" else None)
        return embed(drawn, *chosen, folder / f"{name}_store", ExtractSettings(workers=0))

    pairs, val = store("pairs", 0, 24), store("val", 24, 9, "val")
    images, texts = store("images", 40, 5, "train", "image"), store("texts", 50, 6, "train", "text")
    return TrainingData(pairs, val, (images,), (texts, pairs))


def test_unpaired_items_stand_under_the_pairs(data: TrainingData) -> None:
    config = build_config(TrainConfig, SETTINGS)
    tuned = TrainableStore.open(data.pairs, LoRAConfig(sides="both"))
    batch = next(tuned.sampler(config, data).epoch(0))
    assert batch.image_ids.tolist()[-3:] == [-1] * 3
    assert batch.text_ids.tolist()[-4:] == [-1] * 4
    assert (batch.image_ids[:-3] >= 0).all()
    assert not isinstance(batch.image, torch.Tensor)
    assert not isinstance(batch.text, torch.Tensor)
    assert {len(value) for value in batch.text.values()} == {len(batch.text_ids)}
    with torch.no_grad():
        images, texts = (tuned.towers[side](getattr(batch, side)).pooled for side in ("image", "text"))
    known = torch.cat([store.rows("text", store.rows_of("text", "train")) for store in data.unpaired_texts])
    nearest = torch.cdist(texts[-4:], known).min(dim=1).values  # features of the frozen encoder
    assert nearest.max() < 1e-5
    (only,) = data.unpaired_images
    nearest = torch.cdist(images[-3:], only.rows("image", only.rows_of("image", "train"))).min(dim=1).values
    assert nearest.max() < 1e-5
    plain = data.pairs.features("train")
    torch.testing.assert_close(texts[:-4], plain.text[batch.text_ids[:-4]], atol=1e-5, rtol=0)


def test_one_side_stays_features(data: TrainingData) -> None:
    config = build_config(TrainConfig, SETTINGS | {"lora": {"sides": "text", "rank": 2}})
    batch = next(TrainableStore.open(data.pairs, LoRAConfig(sides="text")).sampler(config, data).epoch(0))
    assert isinstance(batch.image, torch.Tensor)
    assert len(batch.image) == len(batch.image_ids)
    assert not isinstance(batch.text, torch.Tensor)


def test_a_run_with_both_validates_on_the_other_store(data: TrainingData, tmp_path: Path) -> None:
    config = build_config(TrainConfig, SETTINGS)
    found = train(data, config, tmp_path / "run")
    assert found.lora is not None
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["val"][0]["store"] == str(data.val.path) if data.val else False
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert any("val" in name for line in lines for name in line)  # the pairs have no val split
    alone = train(TrainingData(data.pairs, data.val), config, tmp_path / "alone")
    assert any(not torch.equal(a, b) for a, b in zip(found.model.parameters(), alone.model.parameters(), strict=True))


def test_features_without_their_texts_are_one_line(data: TrainingData, tmp_path: Path) -> None:
    features = PairedFeatures(torch.randn(4, 12), torch.randn(4, 16), torch.arange(4), tuple("abcd"))
    infos = (data.pairs.encoders["image"], data.pairs.encoders["text"])
    bare = write_store(tmp_path / "bare", features, infos, splits=dict.fromkeys("abcd", "train"))
    config = build_config(TrainConfig, SETTINGS)
    with pytest.raises(InputError, match=r"bare.*captions"):
        train(TrainingData(data.pairs, data.val, (), (bare,)), config, tmp_path / "run")
