"""Pipeline adapter of StableUnCLIPImg2ImgPipeline: Stable unCLIP."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from safetensors.torch import load_file
from torch import Tensor

from .contract import Contract
from .folder import read_json
from .pipeline_adapter import PipelineAdapter, Sampling


def _contract(label: str, parts: Mapping[str, Path]) -> Contract:
    normaliser = parts["image_normalizer"]
    dim = int(read_json(normaliser / "config.json")["embedding_dim"])
    moments = load_file(next(normaliser.glob("*.safetensors")))
    mean, std = (moments[name].float().flatten() for name in ("mean", "std"))
    norm = float((mean.square() + std.square()).sum().sqrt())
    return Contract(label, dim, mean=mean, std=std, norm=norm, takes_negative=False)


def _call(
    pipeline: Any, rows: Tensor, negative: Tensor | None, sampling: Sampling, generators: list[torch.Generator]
) -> list[Image]:
    found: list[Image] = pipeline(
        image_embeds=rows.to(pipeline.device, pipeline.unet.dtype),
        prompt=[""] * len(rows),
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance,
        generator=generators,
    ).images
    return found


KIND = PipelineAdapter(_contract, _call)
