"""Pipeline adapter of UnCLIPImageVariationPipeline: Karlo."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from .contract import Contract
from .folder import NO_WEIGHTS, read_json
from .pipeline_adapter import PipelineAdapter, Sampling, diffusers


def _contract(label: str, parts: Mapping[str, Path]) -> Contract:
    dim = int(read_json(parts["text_proj"] / "config.json")["clip_embeddings_dim"])
    return Contract(label, dim, takes_negative=False)


def _load(folder: Path, index: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """Load the parts one by one; Karlo's model_index.json refers to a module that diffusers has moved."""
    import transformers
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    package, found = diffusers(), {}
    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, list) or entry[0] is None:
            continue
        library = transformers if entry[0] == "transformers" else package
        kind = UnCLIPTextProjModel if entry[1] == "UnCLIPTextProjModel" else getattr(library, entry[1])
        precision = {} if entry[1].endswith(NO_WEIGHTS) else {"torch_dtype": dtype, "use_safetensors": True}
        found[name] = kind.from_pretrained(str(folder / name), local_files_only=True, **precision)
    return getattr(package, index["_class_name"])(**found)


def _call(
    pipeline: Any, rows: Tensor, negative: Tensor | None, sampling: Sampling, generators: list[torch.Generator]
) -> list[Image]:
    found: list[Image] = pipeline(
        image_embeddings=rows.to(pipeline.device, pipeline.decoder.dtype),
        decoder_num_inference_steps=sampling.steps,
        decoder_guidance_scale=sampling.guidance,
        generator=generators,
    ).images
    return found


KIND = PipelineAdapter(_contract, _call, _load, side=lambda pipeline: int(pipeline.super_res_last.config.sample_size))
