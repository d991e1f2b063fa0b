"""bundled:efficientnet-lite0-layout: which weights its projection belongs to, and what an embedding holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from csaligner.checks import InputError
from csaligner.encoders.efficientnet import EfficientNetLite0
from csaligner.encoders.efficientnet_layout import EfficientNetLite0Layout
from csaligner.encoders.layout_features import COLOUR_GRID, GRID

WIDTHS = {"pooled": 1280, "map": 2 * GRID**2, "fine": 2 * GRID**2, "colour": 3 * COLOUR_GRID**2}


def write(path: Path, base_fingerprint: str) -> Path:
    """The first eight numbers of each part, and all colours."""
    torch.manual_seed(0)
    tensors = {}
    for name, width in WIDTHS.items():
        tensors[f"{name}_mean"] = torch.zeros(width)
        tensors[f"{name}_axes"] = torch.eye(width)[:, : width if name == "colour" else 8].contiguous()
        tensors[f"{name}_scale"] = torch.tensor(1.0)
    for name, channels in {"map": 40, "fine": 16}.items():
        tensors[f"{name}_channel_mean"] = torch.zeros(channels)
        tensors[f"{name}_channel_axes"] = torch.eye(channels)[:, :2].contiguous()
    save_file(tensors, path, metadata={"base": "bundled:efficientnet-lite0", "base_fingerprint": base_fingerprint})
    return path


def test_embedding_holds_pooled_features_and_colours(tmp_path: Path) -> None:
    base = EfficientNetLite0()
    encoder = EfficientNetLite0Layout(write(tmp_path / "p.safetensors", base.info.fingerprint))
    image = Image.new("RGB", (224, 224), "white")
    ImageDraw.Draw(image).rectangle((0, 0, 111, 223), fill=(255, 0, 0))
    row = encoder.encode([encoder.prepare(image)])[0]
    assert len(row) == encoder.info.dim == 24 + WIDTHS["colour"]
    assert torch.allclose(row[:8], base.encode([base.prepare(image)])[0, :8], atol=1e-4)
    colour = row[24:].view(3, COLOUR_GRID, COLOUR_GRID)
    assert torch.allclose(colour[:, 3, 2], torch.tensor([1.0, -1.0, -1.0]))
    assert torch.allclose(colour[:, 3, 13], torch.ones(3))
    assert encoder.info.fingerprint != base.info.fingerprint


def test_tokens_come_with_the_layout_embedding_and_their_mean_is_it(tmp_path: Path) -> None:
    encoder = EfficientNetLite0Layout(write(tmp_path / "p.safetensors", EfficientNetLite0().info.fingerprint))
    image = Image.new("RGB", (224, 224), "white")
    ImageDraw.Draw(image).rectangle((0, 0, 111, 223), fill=(255, 0, 0))
    ready = [encoder.prepare(image)]
    found, row = encoder.encode_with_tokens(ready), encoder.encode(ready)
    assert torch.equal(found.features, row)
    assert found.tokens[0].shape == (49, encoder.info.dim)
    assert torch.allclose(found.tokens[0].mean(dim=0), row[0], atol=1e-4)
    assert float(found.tokens[0][:, :8].std(dim=0).amax()) > 0.01
    assert torch.equal(encoder.encode_tokens(ready)[0][0], found.tokens[0])


def test_projection_of_other_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fingerprint"):
        EfficientNetLite0Layout(write(tmp_path / "p.safetensors", "0" * 16))


def test_file_that_is_no_projection_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="projection"):
        EfficientNetLite0Layout(tmp_path / "p.safetensors")
