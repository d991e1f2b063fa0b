"""Pipeline adapter of KandinskyV22Pipeline: Kandinsky 2.2."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from csaligner.checks import InputError

from .contract import Contract
from .folder import read_json
from .pipeline_adapter import PipelineAdapter, Sampling, latent_side


def _contract(label: str, parts: Mapping[str, Path]) -> Contract:
    unet = read_json(parts["unet"] / "config.json")
    if unet.get("addition_embed_type") != "image":
        raise InputError(
            f"decoder: the unet of {label} is not conditioned on image embeddings; use the decoder's folder"
        )
    return Contract(label, int(unet["encoder_hid_dim"]))


def _call(
    pipeline: Any, rows: Tensor, negative: Tensor | None, sampling: Sampling, generators: list[torch.Generator]
) -> list[Image]:
    side = latent_side(pipeline)
    rows = rows.to(pipeline.device, pipeline.unet.dtype)
    away = torch.zeros_like(rows) if negative is None else negative.to(rows).expand_as(rows)
    found: list[Image] = pipeline(
        image_embeds=rows,
        negative_image_embeds=away,
        height=side,
        width=side,
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance,
        generator=generators,
    ).images
    return found


KIND = PipelineAdapter(_contract, _call)
