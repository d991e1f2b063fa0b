"""Evaluation of generated images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from csaligner.adapters.aligner import Aligner
from csaligner.checks import InputError
from csaligner.decoders.decoder import Sampling
from csaligner.generation.evaluate import MeasuringProtocol, Reference, evaluate_run_generation, one_caption_each
from csaligner.run_folder import CONFIG
from csaligner.store.store import Store, write_store
from csaligner.types import Encoder, PairedFeatures, Split

N = 24
COLOURS = [(10 * i, 250 - 9 * i, (37 * i) % 255) for i in range(N)]


@pytest.fixture
def store(pixels: Encoder, letters: Encoder, tmp_path: Path) -> Store:
    """Store of images of one colour each; half of them in the test split."""
    pictures = [Image.new("RGB", (16, 16), colour) for colour in COLOURS]
    paths = {}
    for i, picture in enumerate(pictures):
        paths[str(i)] = tmp_path / f"{i}.png"
        picture.save(paths[str(i)])
    image = pixels.encode([pixels.prepare(picture) for picture in pictures])
    captions = tuple("a" * (i % 5) + "b" * (i // 5) + "c" * ((3 * i) % 4) for i in range(N))
    pairs = PairedFeatures(image, letters.encode(captions), torch.arange(N), tuple(paths), captions)
    splits: dict[str, Split] = {str(i): "test" if i % 2 else "train" for i in range(N)}
    infos = (pixels.info, letters.info)
    return write_store(tmp_path / "store", pairs, infos, splits=splits, image_paths=paths)


def test_real_pictures_are_at_no_distance_from_themselves(store: Store, pixels: Encoder) -> None:
    reference = Reference(store, pixels, 8, MeasuringProtocol(dims=3))
    same = reference.measure(reference.pictures)
    assert same["fid"] == pytest.approx(0, abs=1e-6)
    assert same["picture_cosine"] == pytest.approx(1, abs=1e-6)
    assert same["n_real"] == N // 2
    shuffled = reference.measure(reference.pictures[1:] + reference.pictures[:1])
    assert shuffled["fid"] == pytest.approx(0, abs=1e-6)
    assert shuffled["picture_cosine"] < 0.9
    white = reference.measure([Image.new("RGB", (8, 8), "white")] * (N // 2))
    assert white["fid"] > 0.1
    assert white["kid"] > 0.1


def test_the_first_caption_of_each_image_is_drawn() -> None:
    pairs = PairedFeatures(torch.eye(3), torch.arange(5.0)[:, None], torch.tensor([1, 0, 0, 2, 1]), ("x", "y", "z"))
    found = one_caption_each(pairs, 2)
    assert found.text.flatten().tolist() == [1.0, 0.0]
    assert found.image_ids == ("x", "y")


def test_a_run_is_evaluated_with_its_ceiling(
    encoders: None, store: Store, aligner: Callable[..., Aligner], decoder: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    aligner().save(run / "checkpoints" / "latest")
    (run / "run.json").write_text(json.dumps({"store": str(store.path)}))
    (run / CONFIG).write_text("{}")
    found = evaluate_run_generation(run, decoder, "pixels", MeasuringProtocol(dims=3), Sampling(steps=2))
    assert json.loads((run / "generation.json").read_text())["fid"] == found["fid"]
    assert {"fid", "kid", "cmmd", "embedding_frechet", "text_to_image_recall@1", "ceiling/fid"} <= set(found)
    assert found["real_pictures"] == "whole on white, 16 px, then as the feature encoder prepares its input"
    with pytest.raises(InputError, match=r"\b12\b.*\b40\b"):
        evaluate_run_generation(run, decoder, "pixels", MeasuringProtocol(dims=40), Sampling(steps=2))
