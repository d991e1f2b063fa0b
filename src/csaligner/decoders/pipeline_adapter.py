"""Pipeline adapters: how to load and call a class of diffusers pipelines. One module per class, see the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from .contract import Contract
from .micro import diffusers


@dataclass(frozen=True)
class Sampling:
    """n: images per embedding; seed: of the first image, incremented for the next, the same for each embedding;
    steps: denoising steps; guidance: classifier-free guidance scale, at most 1 = off."""

    n: int = 1
    seed: int = 0
    steps: int = 30
    guidance: float = 4.0


def from_pretrained(folder: Path, index: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """Load a pipeline folder with diffusers, safetensors only."""
    pipeline = getattr(diffusers(), index["_class_name"])
    return pipeline.from_pretrained(str(folder), torch_dtype=dtype, local_files_only=True, use_safetensors=True)


def latent_side(pipeline: Any) -> int:
    """Return the side length of images: that of the latents times the auto-encoder's scale factor."""
    factor = getattr(pipeline, "movq_scale_factor", None) or pipeline.vae_scale_factor
    return int(pipeline.unet.config.sample_size * factor)


@dataclass(frozen=True)
class PipelineAdapter:
    """Functions of a pipeline class that takes image embeddings.

    contract: (name for messages, folders of the parts) -> Contract, without loading weights;
    call: (pipeline, (B, dim) raw embeddings, (dim,) negative or None, sampling, B generators) -> B images;
    load: (folder, its model_index.json, dtype) -> pipeline; side: pipeline -> side length of images in pixels.
    """

    contract: Callable[[str, Mapping[str, Path]], Contract]
    call: Callable[[Any, Tensor, Tensor | None, Sampling, list[torch.Generator]], list[Image]]
    load: Callable[[Path, Mapping[str, Any], torch.dtype], Any] = from_pretrained
    side: Callable[[Any], int] = latent_side
