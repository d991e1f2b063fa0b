"""What csaligner must know about a class of pipelines to draw with it: one file a class, one line in the registry."""

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
    """n: pictures an embedding; seed: of the first, the next ones have the next numbers, the same for each
    embedding; steps: of denoising; guidance: 1 or less is without."""

    n: int = 1
    seed: int = 0
    steps: int = 30
    guidance: float = 4.0


def from_pretrained(folder: Path, index: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """The pipeline of a folder by diffusers' own loader, from safetensors alone."""
    pipeline = getattr(diffusers(), index["_class_name"])
    return pipeline.from_pretrained(str(folder), torch_dtype=dtype, local_files_only=True, use_safetensors=True)


def latent_side(pipeline: Any) -> int:
    """Pixels of a side of its pictures: of the latents, times what the auto-encoder enlarges them by."""
    factor = getattr(pipeline, "movq_scale_factor", None) or pipeline.vae_scale_factor
    return int(pipeline.unet.config.sample_size * factor)


@dataclass(frozen=True)
class PipelineAdapter:
    """A class of pipelines that take image embeddings.

    contract: (name for messages, folders of the parts) -> what it wants, without loading weights;
    call: (pipeline, (B, dim) raw embeddings, (dim,) negative or None, sampling, B generators) -> B pictures;
    load: (folder, its model_index.json, dtype) -> the pipeline; side: pixels of a side of its pictures.
    """

    contract: Callable[[str, Mapping[str, Path]], Contract]
    call: Callable[[Any, Tensor, Tensor | None, Sampling, list[torch.Generator]], list[Image]]
    load: Callable[[Path, Mapping[str, Any], torch.dtype], Any] = from_pretrained
    side: Callable[[Any], int] = latent_side
