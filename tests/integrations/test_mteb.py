"""Aligned models in mteb. The first tests need no mteb; the last ones run its own evaluation where it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from csaligner import InputError
from csaligner.adapters.fusion import fuse
from csaligner.integrations import AlignedEncoder
from csaligner.integrations.mteb import main, mixbench_tasks
from csaligner.model import AlignedModel
from csaligner.search.mixbench import measure_mixbench
from tests.support.mixbench import write_2025, write_2026


@pytest.fixture
def model(world: Any) -> AlignedModel:
    return AlignedModel.open(str(world.run), world.encoders)


def test_batches_of_texts_images_and_both(model: AlignedModel) -> None:
    images = [Image.new("RGB", (6, 6), (250, 10 * n, 9)) for n in range(3)]
    texts = ["255 0 0", "0 255 0", "0 0 255"]
    encoder = AlignedEncoder(model, image_weight=0.3)
    image, text = (torch.from_numpy(rows) for rows in (model.encode_image(images), model.encode_text(texts)))
    assert torch.equal(encoder.encode([{"text": texts}]), text)
    assert torch.equal(encoder.encode([{"image": images[:2]}, {"image": images[2:]}]), image)
    both = encoder.encode([{"text": texts, "image": images, "id": ["a", "b", "c"]}], prompt_type="query", batch_size=2)
    assert torch.allclose(both, fuse(image, text, 0.3), atol=1e-6)
    mixed = encoder.encode([{"text": [texts[0], "", texts[2]], "image": [None, images[1], images[2]]}])
    assert torch.allclose(mixed, torch.stack([text[0], image[1], fuse(image, text, 0.3)[2]]), atol=1e-6)
    assert torch.allclose(encoder.similarity(image, text), image @ text.T)
    assert torch.allclose(encoder.similarity_pairwise(image.numpy(), text), (image * text).sum(dim=1))


def test_what_cannot_be_encoded_is_one_line(model: AlignedModel) -> None:
    encoder = AlignedEncoder(model)
    with pytest.raises(InputError, match="neither"):
        encoder.encode([{"text": ["a", ""], "image": [None, None]}])
    with pytest.raises(InputError, match="audio"):
        encoder.encode([{"audio": [1]}])
    with pytest.raises(InputError, match="image_weight"):
        AlignedEncoder(model, image_weight=2)


@pytest.mark.parametrize("write", [write_2025, write_2026])
def test_mteb_finds_the_ndcg_of_eval(model: AlignedModel, tmp_path: Path, write: Any) -> None:
    mteb = pytest.importorskip("mteb")
    for name in ("MSCOCO", "OVEN"):
        write(tmp_path, name)
    encoder = AlignedEncoder(model, image_weight=0.4)
    assert isinstance(encoder, mteb.EncoderProtocol)
    found = mteb.evaluate(encoder, mixbench_tasks(tmp_path), cache=None, co2_tracker=False)
    expected = measure_mixbench(model, tmp_path, image_weight=0.4)
    assert [r.task_name for r in found.task_results] == ["MixBenchMSCOCO", "MixBenchOVEN"]
    for result, own in zip(found.task_results, expected, strict=True):
        (score,) = result.scores["test"]
        assert score["ndcg_at_10"] == pytest.approx(own.scores["aligned"].ndcg, abs=1e-5)
    assert found.model_revision == model.fingerprint


def test_the_command_prints_the_scores(
    model: AlignedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("mteb")
    write_2026(tmp_path)
    monkeypatch.setattr(AlignedModel, "open", lambda name: model)
    main(["runs/any", "--mixbench", str(tmp_path)])
    found = json.loads(capsys.readouterr().out)
    expected = measure_mixbench(model, tmp_path)[0].scores["aligned"].ndcg
    assert found["MixBenchMSCOCO"]["test"][0]["ndcg_at_10"] == pytest.approx(expected, abs=1e-5)
