"""Pipeline adapters: how to load and call a class of pipelines. One module per class, see the registry."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from csaligner.checks import InputError
from csaligner.extras import install_command

from .contract import Contract
from .folder import DIFFUSERS


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
    package = diffusers()
    with _quiet(package):
        kind = getattr(package, index["_class_name"])
        return kind.from_pretrained(str(folder), torch_dtype=dtype, local_files_only=True, use_safetensors=True)


def diffusers() -> Any:
    """Return the package diffusers. Raises InputError if it is not installed."""
    try:
        import diffusers as package
    except ImportError as error:
        raise InputError(f"generate: {error}; {install_command('generate')}") from None
    return package


@contextmanager
def _quiet(package: Any) -> Iterator[None]:
    """No progress bars and no deprecation warnings of diffusers."""
    verbosity = package.utils.logging.get_verbosity()
    package.utils.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            package.utils.logging.disable_progress_bar()
            yield
    finally:
        package.utils.logging.set_verbosity(verbosity)


def latent_side(pipeline: Any) -> int:
    """Return the side length of images: that of the latents times the auto-encoder's scale factor."""
    factor = getattr(pipeline, "movq_scale_factor", None) or pipeline.vae_scale_factor
    return int(pipeline.unet.config.sample_size * factor)


@dataclass(frozen=True)
class PipelineAdapter:
    """Functions of a pipeline class that takes image embeddings.

    contract: (name for messages, folders of the parts) -> Contract, without loading weights;
    call: (pipeline, (B, dim) raw embeddings, (dim,) negative or None, sampling, B generators) -> B images;
    load: (folder, its model_index.json, dtype) -> pipeline; side: pipeline -> side length of images in pixels;
    sampling: default settings; libraries: allowed libraries of the parts.
    """

    contract: Callable[[str, Mapping[str, Path]], Contract]
    call: Callable[[Any, Tensor, Tensor | None, Sampling, list[torch.Generator]], list[Image]]
    load: Callable[[Path, Mapping[str, Any], torch.dtype], Any] = from_pretrained
    side: Callable[[Any], int] = latent_side
    sampling: Sampling = field(default_factory=Sampling)
    libraries: Sequence[str] = DIFFUSERS
