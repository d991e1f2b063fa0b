"""Embedding interface of LangChain and LlamaIndex."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from csaligner.adapters.aligner import Aligner
from csaligner.checks import InputError
from csaligner.config import TrainConfig, build_config
from csaligner.datasets.images.load import ImageError
from csaligner.encoders import open_encoder
from csaligner.integrations.embeddings import AlignedEmbeddings
from csaligner.pipeline import load_run, train
from csaligner.store.embed import ExtractSettings, embed
from csaligner.store.store import Store
from csaligner.types import Item

pytest.importorskip("transformers")
WORDS = ("red", "green", "blue", "cat", "dog", "house")


class Drawn:
    name, attribution = "drawn", ""

    def __init__(self, folder: Path) -> None:
        self._items = []
        for i in range(18):
            path = folder / f"{i}.png"
            Image.new("RGB", (16, 16), (14 * i, 255 - 14 * i, 40 * (i % 6))).save(path)
            caption = f"a {WORDS[i % 6]} {WORDS[i // 6]}"
            self._items.append(Item(str(i), path, (caption,), str(i), ("train", "train", "val", "test")[i % 4]))

    def items(self) -> list[Item]:
        return self._items


@pytest.fixture(scope="module")
def run(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embeddings")
    image = open_encoder(f"hf:{tiny_model('clip')}", "image")
    text = open_encoder(f"hf:{tiny_model('bert')}", "text")
    store = embed(Drawn(folder), image, text, folder / "store", ExtractSettings(workers=0))
    train(store, build_config(TrainConfig, {"epochs": 1, "batch_size": 5, "dim": 4}), folder / "run")
    return folder / "run"


def test_every_name_gives_the_aligned_rows(run: Path) -> None:
    found = AlignedEmbeddings.open(run)
    model, features = load_run(run, Store.open(run.parent / "store"), "test")
    with torch.no_grad():
        texts, images = model.encode_text(features.text).numpy(), model.encode_image(features.image).numpy()
    captions = list(features.captions or ())
    paths = [str(run.parent / f"{name}.png") for name in features.image_ids]
    np.testing.assert_allclose(found.embed_documents(captions), texts, atol=1e-5)
    np.testing.assert_allclose(found.get_text_embedding_batch(captions), texts, atol=1e-5)
    np.testing.assert_allclose(found.embed_image(paths), images, atol=1e-5)
    np.testing.assert_allclose(found.get_image_embedding_batch(paths), images, atol=1e-5)
    for one in (found.embed_query, found.get_text_embedding, found.get_query_embedding):
        np.testing.assert_allclose(one(captions[1]), texts[1], atol=1e-5)
    np.testing.assert_allclose(found.get_image_embedding(paths[1]), images[1], atol=1e-5)
    assert type(found.embed_query("a")[0]) is float
    assert found.embed_documents([]) == []


def test_what_cannot_be_embedded_is_one_line(run: Path, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    model = Aligner.load(run / "checkpoints/latest")
    text = open_encoder(f"hf:{tiny_model('bert')}", "text")
    with pytest.raises(InputError, match="image encoder"):
        AlignedEmbeddings(model, text).embed_image(["x.png"])
    with pytest.raises(InputError, match="encoder"):
        AlignedEmbeddings(model, open_encoder(f"hf:{tiny_model('clip')}", "text"))
    with pytest.raises(ImageError, match=r"gone\.png"):
        AlignedEmbeddings.open(run).embed_image([tmp_path / "gone.png"])
