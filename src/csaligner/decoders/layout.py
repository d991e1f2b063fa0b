"""LayoutPipeline: the micro decoder, which draws in pixels from embeddings that hold layout and colour."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from csaligner.checks import InputError
from csaligner.encoders.efficientnet_layout import bundled_projection, read_projection
from csaligner.files import sha256_of, write_folder, write_text
from csaligner.integrity import ErrorContext, load_tensors, save_tensors, write_checksums

from .contract import Contract, write_contract
from .folder import INDEX, read_json
from .layout_net import LayoutNet, LayoutSizes, sample
from .pipeline_adapter import PipelineAdapter, Sampling

CLASS, PART = "LayoutPipeline", "net"
CONFIG, WEIGHTS, OWN_PROJECTION = "config.json", "model.safetensors", "projection.safetensors"


class LayoutPipeline:
    """A LayoutNet with what open_decoder asks of a pipeline. level: of noise, which the network is told."""

    def __init__(self, net: LayoutNet, level: float = 0.0) -> None:
        self.net, self.level = net.eval().requires_grad_(False), level

    def to(self, device: torch.device) -> LayoutPipeline:
        faster = torch.channels_last if device.type == "cpu" else torch.contiguous_format
        self.net.to(device, memory_format=faster)  # type: ignore[call-overload]
        return self

    def set_progress_bar_config(self, **options: Any) -> None:
        """It has no progress bar."""

    @torch.inference_mode()
    def __call__(
        self, rows: Tensor, negative: Tensor | None, sampling: Sampling, generators: list[torch.Generator]
    ) -> list[Image.Image]:
        """(B, dim) raw embeddings -> B images; the noise of each is drawn by its own generator."""
        side, device = self.net.sizes.side, self.net.layout_scale.device
        noise = torch.stack([torch.randn(3, side, side, generator=generator) for generator in generators])
        null = None if negative is None else negative.float().to(device)
        drawn = sample(
            self.net, rows.float().to(device), noise.to(device), sampling.steps, sampling.guidance, self.level, null
        )
        pixels = (drawn * 127.5 + 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
        return [Image.fromarray(image.numpy()) for image in pixels]


def save_layout(net: LayoutNet, contract: Contract, folder: Path, card: str, projection: Path) -> None:
    """The decoder's folder, weights in half precision.

    projection: the file that the net was made with; copied where it is not the one in the package.
    """
    own = sha256_of(projection)

    def write(temporary: Path) -> None:
        part = temporary / PART
        part.mkdir()
        write_text(temporary / INDEX, json.dumps({"_class_name": CLASS, PART: ["csaligner", "LayoutNet"]}, indent=2))
        write_text(part / CONFIG, json.dumps({"sizes": asdict(net.sizes), "projection": own}, indent=2))
        save_tensors({name: tensor.half() for name, tensor in net.state_dict().items()}, part / WEIGHTS)
        if not bundled_projection().is_file() or own != sha256_of(bundled_projection()):
            (part / OWN_PROJECTION).write_bytes(projection.read_bytes())
        write_contract(contract, temporary)
        write_checksums(temporary)
        write_text(temporary / "README.md", card)  # people may edit it

    write_folder(folder, write)


def _projection(part: Path) -> Path:
    """The one beside the weights, else the one in the package, if it is the one that they were trained with."""
    own = part / OWN_PROJECTION
    path = own if own.is_file() else bundled_projection()
    if sha256_of(path) != read_json(part / CONFIG)["projection"]:
        raise InputError(f"decoder: {part} was trained with another projection than {path}; copy the folder again")
    return path


def _contract(label: str, parts: Mapping[str, Path]) -> Contract:
    dim = sum(read_projection(_projection(parts[PART]))[0].dims.values())
    return Contract(label, dim, negative=torch.zeros(dim))


def _load(folder: Path, index: Mapping[str, Any], dtype: torch.dtype) -> LayoutPipeline:
    """In single precision whatever dtype says: it is small."""
    part = folder / PART
    sizes = read_json(part / CONFIG)["sizes"]
    net = LayoutNet(LayoutSizes.read(sizes), read_projection(_projection(part))[0])
    net.load_state_dict(load_tensors(part / WEIGHTS, ErrorContext("decoder", "copy the folder again")))
    return LayoutPipeline(net)


def _call(
    pipeline: Any, rows: Tensor, negative: Tensor | None, sampling: Sampling, generators: list[torch.Generator]
) -> list[Image.Image]:
    found: list[Image.Image] = pipeline(rows, negative, sampling, generators)
    return found


KIND = PipelineAdapter(
    _contract,
    _call,
    _load,
    side=lambda pipeline: int(pipeline.net.sizes.side),
    sampling=Sampling(steps=12, guidance=1.5),
    libraries=("csaligner",),
)
