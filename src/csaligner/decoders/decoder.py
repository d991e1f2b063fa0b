"""Decoder: image generation from embeddings, with the micro decoder or the unCLIP pipelines of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from safetensors import SafetensorError
from torch import Tensor

from csaligner.checks import InputError, check_non_negative
from csaligner.integrity import ErrorContext, check_checksums
from csaligner.registry import DECODERS, load

from .contract import NOTE, Contract, read_note
from .folder import INDEX, check_memory, check_parts, decoder_folder, free_memory, read_json
from .pipeline_adapter import PipelineAdapter, Sampling

__all__ = ["Decoder", "Sampling", "default_sampling", "open_decoder", "read_contract"]

BATCH = 32  # images per forward pass up to SMALL pixels a side; larger ones: 1
SMALL = 96


class Decoder:
    """A loaded decoder; `contract` describes its input."""

    def __init__(self, pipeline: Any, contract: Contract, kind: PipelineAdapter) -> None:
        """Use open_decoder."""
        self.contract = contract
        self._pipeline, self._kind = pipeline, kind

    def decode(self, embeddings: Tensor, sampling: Sampling, negative: Tensor | None = None) -> list[list[Image]]:
        """Generate sampling.n images for each of the (N, dim) raw embeddings.

        negative: (dim,), the negative embedding of guidance; default: the contract's. Raises InputError if the
        embeddings or the negative embedding violate the contract.
        """
        if sampling.n < 1 or sampling.steps < 1:
            raise InputError(f"n and steps: got {sampling.n} and {sampling.steps}, wanted at least 1 of each")
        check_non_negative("guidance", sampling.guidance)
        self.contract.check(embeddings)
        if negative is not None and not self.contract.takes_negative:
            raise InputError(f"negative: {self.contract.decoder} has a fixed negative embedding; remove the option")
        negative = self.contract.negative if negative is None else negative
        if negative is None and self.contract.takes_negative and sampling.guidance > 1:
            raise InputError(
                f"negative: {self.contract.decoder} has no default negative embedding; give one, or set guidance to 1"
            )
        rows = embeddings.repeat_interleave(sampling.n, dim=0)
        seeds = [sampling.seed + i for i in range(sampling.n)] * len(embeddings)
        pictures: list[Image] = []
        batch = BATCH if self.side <= SMALL else 1
        for start in range(0, len(rows), batch):
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[start : start + batch]]
            pictures += self._kind.call(self._pipeline, rows[start : start + batch], negative, sampling, generators)
        return [pictures[i : i + sampling.n] for i in range(0, len(pictures), sampling.n)]

    @property
    def side(self) -> int:
        """Side length of generated images, in pixels."""
        return self._kind.side(self._pipeline)


def read_contract(name_or_path: str) -> Contract:
    """Read the contract of a decoder without loading its weights. Raises InputError as open_decoder."""
    return _look(name_or_path).contract


def default_sampling(name_or_path: str, **changes: int | float | None) -> Sampling:
    """Return the default sampling settings of a decoder, with `changes` to fields of Sampling; None: unchanged.

    Raises InputError as open_decoder.
    """
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    return replace(_look(name_or_path).kind.sampling, **given)


def open_decoder(name_or_path: str) -> Decoder:
    """Open micro, kandinsky-2.2, karlo, stable-unclip, a Hub repository, or a diffusers folder.

    Loads on the GPU in half precision if available, else on the CPU. Raises InputError for an unknown name, missing
    parts, a pipeline without image embeddings as input, or too little memory.
    """
    seen = _look(name_or_path)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    check_memory(seen.folder, seen.parts, dtype.itemsize, free_memory(device))
    try:
        pipeline = seen.kind.load(seen.folder, seen.index, dtype)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"decoder: {seen.folder} cannot be loaded ({reason})") from None
    pipeline.set_progress_bar_config(disable=True)
    return Decoder(pipeline.to(device), seen.contract, seen.kind)


@dataclass(frozen=True)
class _Seen:
    """A checked decoder folder, weights not loaded. index: parsed model_index.json; parts: name -> folder."""

    folder: Path
    index: Mapping[str, Any]
    parts: Mapping[str, Path]
    kind: PipelineAdapter
    contract: Contract


def _look(name_or_path: str) -> _Seen:
    folder = decoder_folder(name_or_path)
    check_checksums(folder, ErrorContext("decoder", "copy the folder again, or train it again"))
    index = read_json(folder / INDEX)
    name = str(index.get("_class_name"))
    if name not in DECODERS:
        raise InputError(
            f"decoder: {folder} is a {name}, which does not take image embeddings; wanted one of {', '.join(DECODERS)}"
        )
    kind: PipelineAdapter = load("decoder", DECODERS, name)
    parts = check_parts(folder, index, kind.libraries)
    label = name_or_path if not Path(name_or_path).is_dir() else folder.name
    try:
        contract = kind.contract(label, parts)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, StopIteration, SafetensorError) as error:
        raise InputError(
            f"decoder: {folder}: the configuration of its parts cannot be read ({error!r}); copy it again"
        ) from None
    note = read_note(folder)
    if note.get("dim", contract.dim) != contract.dim:
        raise InputError(
            f"decoder: {folder}: {NOTE} has {note['dim']} dimensions, its parts {contract.dim}; copy it again"
        )
    return _Seen(folder, index, parts, kind, replace(contract, **note))
