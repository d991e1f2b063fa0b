"""transformers image encoders against direct calls of small models."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from csaligner.checks import InputError
from csaligner.encoders import open_encoder
from csaligner.encoders.transformers_vision import ImageEncoder

transformers = pytest.importorskip("transformers")
Tiny = Callable[[str], Path]


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    g = torch.Generator().manual_seed(0)
    sizes = [(16, 16), (40, 24), (9, 33)]
    values = [torch.randint(0, 256, (h, w, 3), generator=g, dtype=torch.uint8).numpy() for w, h in sizes]
    return [Image.fromarray(value) for value in values]


def open_image(folder: Path, query: str = "") -> ImageEncoder:
    encoder = open_encoder(f"hf:{folder}{query}", "image")
    assert isinstance(encoder, ImageEncoder)
    return encoder


def encode(encoder: ImageEncoder, pictures: list[Image.Image]) -> Tensor:
    return encoder.encode([encoder.prepare(picture) for picture in pictures])


def by_hand(folder: Path, kind: str, picture: Image.Image) -> Any:
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = getattr(transformers, kind).from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**processor(images=picture, return_tensors="pt"))


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=1e-5)


def test_clip_gives_the_projected_features(tiny_model: Tiny, pictures: list[Image.Image]) -> None:
    folder = tiny_model("clip")
    encoder = open_image(folder)
    found = encode(encoder, pictures)
    assert found.shape == (3, encoder.info.dim) == (3, 12)
    assert encoder.info.preprocessing["size"] == 16
    whole = transformers.CLIPModel.from_pretrained(folder).eval()
    for picture, row in zip(pictures, found, strict=True):
        pooled = by_hand(folder, "CLIPVisionModel", picture).pooler_output
        with torch.no_grad():
            close(row, whole.visual_projection(pooled)[0])


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("siglip", "SiglipVisionModel"),
        ("siglip2", "Siglip2VisionModel"),
        ("dinov2", "Dinov2WithRegistersModel"),
    ],
)
def test_the_models_own_pooling(tiny_model: Tiny, pictures: list[Image.Image], family: str, kind: str) -> None:
    folder = tiny_model(family)
    found = encode(open_image(folder), pictures)
    for picture, row in zip(pictures, found, strict=True):
        close(row, by_hand(folder, kind, picture).pooler_output[0])


def test_token_outputs_are_the_patches(tiny_model: Tiny, pictures: list[Image.Image]) -> None:
    for family, kind, first in (
        ("clip", "CLIPVisionModel", 1),
        ("dinov2", "Dinov2WithRegistersModel", 4),
        ("siglip", "SiglipVisionModel", 0),
    ):
        folder = tiny_model(family)
        encoder = open_image(folder, "?pooling=mean")
        states, mask = encoder.encode_tokens([encoder.prepare(picture) for picture in pictures])
        assert mask.shape == states.shape[:2] == (3, 4)
        assert mask.all()
        wanted = by_hand(folder, kind, pictures[1]).last_hidden_state[0, first:]
        close(states[1], wanted)
        close(encode(encoder, pictures)[1], wanted.mean(0))


def test_patches_of_clip_are_projected_as_its_class_state(tiny_model: Tiny, pictures: list[Image.Image]) -> None:
    folder = tiny_model("clip")
    encoder = open_image(folder)
    ready = [encoder.prepare(picture) for picture in pictures]
    found = encoder.encode_with_tokens(ready)
    assert torch.equal(found.features, encoder.encode(ready))
    model = transformers.CLIPModel.from_pretrained(folder)
    states = by_hand(folder, "CLIPVisionModel", pictures[1]).last_hidden_state[0]
    projected = model.visual_projection(model.vision_model.post_layernorm(states)).detach()
    close(found.tokens[1], projected[1:])
    close(found.features[1], projected[0])


def test_padding_patches_of_siglip2_never_count(tiny_model: Tiny, pictures: list[Image.Image]) -> None:
    folder = tiny_model("siglip2")
    encoder = open_image(folder, "?pooling=mean")
    states, mask = encoder.encode_tokens([encoder.prepare(picture) for picture in pictures])
    assert mask.sum(1).tolist() == [16, 15, 16]
    wanted = by_hand(folder, "Siglip2VisionModel", pictures[1]).last_hidden_state[0, :15]
    close(states[1, :15], wanted)
    close(encode(encoder, pictures)[1], wanted.mean(0))


def test_it_travels_to_workers_and_batches_change_nothing(tiny_model: Tiny, pictures: list[Image.Image]) -> None:
    for family in ("clip", "siglip2", "dinov2"):
        encoder = open_image(tiny_model(family), "?batch_size=2")
        copy = pickle.loads(pickle.dumps(encoder))
        alone = torch.cat([encode(copy, [picture]) for picture in pictures])
        close(encode(encoder, pictures), alone)
        assert encoder.encode([]).shape == (0, encoder.info.dim)


def test_the_name_opens_the_same_encoder(tiny_model: Tiny) -> None:
    infos = [open_image(tiny_model("clip"), query).info for query in ("", "?pooling=mean", "?dtype=bfloat16")]
    assert len({info.fingerprint for info in infos}) == 3
    assert [open_encoder(info.id).info for info in infos] == infos


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def test_the_revision_of_a_local_folder_is_its_content(tiny_model: Tiny, tmp_path: Path) -> None:
    folder = copy(tiny_model("clip"), tmp_path / "clip")
    first = open_image(folder).info.revision
    (folder / "README.md").write_text("about")
    assert open_image(folder).info.revision == first
    config = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(config | {"image_mean": [0, 0, 0]}))
    assert open_image(folder).info.revision != first


def test_a_snapshot_of_the_hub_is_pinned_to_its_commit(
    tiny_model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: list[Image.Image]
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--org--clip"
    copy(tiny_model("clip"), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for query in ("", f"?revision={commit}"):
        encoder = open_encoder(f"hf:org/clip{query}", "image")
        assert encoder.info.revision == commit
        assert encoder.info.id.startswith("hf:org/clip?modality=image")
    close(encoder.encode([encoder.prepare(pictures[0])]), encode(open_image(tiny_model("clip")), pictures[:1]))
    with pytest.raises(InputError, match="'org/other'") as caught:
        open_encoder("hf:org/other", "image")
    assert "\n" not in str(caught.value)


def broken(kind: str, folder: Path) -> None:
    if kind == "no weights":
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    elif kind == "no config":
        (folder / "config.json").unlink()
    elif kind == "half a config":
        (folder / "config.json").write_text('{"model_type": "cl')
    elif kind == "cut weights":
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-50])
    elif kind == "no processor":
        (folder / "preprocessor_config.json").unlink()
    elif kind == "foreign tokenizer":
        path = folder / "tokenizer.json"
        tokenizer = json.loads(path.read_text())
        tokenizer["model"]["vocab"] |= {f"w{i}": 20 + i for i in range(5)}
        path.write_text(json.dumps(tokenizer))
    elif kind == "no tokenizer":
        for path in folder.glob("tokenizer*"):
            path.unlink()


@pytest.mark.parametrize(
    ("kind", "modality", "line"),
    [
        (
            "no weights",
            "image",
            r"safetensors.*pytorch_model\.bin",
        ),
        ("no config", "image", r"config\.json"),
        ("half a config", "image", r"config\.json.*JSON"),
        ("cut weights", "image", "CLIPVisionModelWithProjection"),
        ("no processor", "image", "image processor"),
        ("foreign tokenizer", "text", "tokenizer.*25.*20"),
        ("no tokenizer", "text", "tokenizer"),
    ],
)
def test_broken_folders_are_one_line(tiny_model: Tiny, tmp_path: Path, kind: str, modality: str, line: str) -> None:
    folder = copy(tiny_model("clip"), tmp_path / "clip")
    broken(kind, folder)
    with pytest.raises(InputError, match=line) as caught:
        open_encoder(f"{folder}?modality={modality}")
    assert "\n" not in str(caught.value)


def test_code_in_a_folder_is_never_run(tiny_model: Tiny, tmp_path: Path) -> None:
    folder = copy(tiny_model("bert"), tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": auto, "model_type": "evil"}))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    with pytest.raises(InputError):
        open_encoder(str(folder), "text")
    assert not (tmp_path / "ran").exists()


def test_names_that_say_too_little(tiny_model: Tiny, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\?modality=image"):
        open_encoder(f"hf:{tiny_model('clip')}")
    assert open_encoder(f"hf:{tiny_model('dinov2')}").info.modality == "image"
    assert open_encoder(f"hf:{tiny_model('llama')}").info.modality == "text"
    with pytest.raises(InputError, match="/nowhere"):
        open_encoder(f"hf:{tmp_path}/nowhere")
    with pytest.raises(InputError, match="key=value"):
        open_encoder("hf:org/name?pooling")
    with pytest.raises(InputError, match="pooling"):
        open_encoder("bundled:efficientnet-lite0?pooling=mean")
    with pytest.raises(InputError, match="class token"):
        open_image(tiny_model("siglip"), "?pooling=cls")
