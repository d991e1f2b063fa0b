"""One door to every unCLIP decoder: image embeddings in, pictures out, through diffusers' own pipelines."""

from __future__ import annotations

import warnings
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
from .micro import diffusers
from .pipeline_adapter import PipelineAdapter, Sampling

__all__ = ["Decoder", "Sampling", "open_decoder", "read_contract"]

BATCH = 32  # pictures of at most SMALL pixels a side in one pass; larger ones go one by one
SMALL = 96


class Decoder:
    """A decoder in memory; `contract` says what it wants."""

    def __init__(self, pipeline: Any, contract: Contract, kind: PipelineAdapter) -> None:
        """Use open_decoder."""
        self.contract = contract
        self._pipeline, self._kind = pipeline, kind

    def decode(self, embeddings: Tensor, sampling: Sampling, negative: Tensor | None = None) -> list[list[Image]]:
        """sampling.n pictures for each of the (N, dim) raw embeddings.

        negative: (dim,), what guidance leads away from; None: the contract's. Raises InputError where the
        embeddings or the negative one are not as the contract says.
        """
        if sampling.n < 1 or sampling.steps < 1:
            raise InputError(f"n and steps: got {sampling.n} and {sampling.steps}, wanted at least 1 of each")
        check_non_negative("guidance", sampling.guidance)
        self.contract.check(embeddings)
        if negative is not None and not self.contract.takes_negative:
            raise InputError(f"negative: {self.contract.decoder} has its own and takes no other; leave it out")
        negative = self.contract.negative if negative is None else negative
        if negative is None and self.contract.takes_negative and sampling.guidance > 1:
            raise InputError(f"negative: {self.contract.decoder} does not say what stands for no picture; give one")
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
        """Pixels of a side of its pictures."""
        return self._kind.side(self._pipeline)


def read_contract(name_or_path: str) -> Contract:
    """What the decoder wants, read from its folder without loading it. Raises InputError as open_decoder."""
    return _look(name_or_path).contract


def open_decoder(name_or_path: str) -> Decoder:
    """micro, kandinsky-2.2, karlo, stable-unclip, the id of a repository on the Hub, or a folder of diffusers.

    Loaded on the GPU in half precision where there is one, else on the CPU. Raises InputError for an unknown name, a
    folder with parts missing, a pipeline that takes no image embeddings, and for too little memory.
    """
    seen = _look(name_or_path)
    package = diffusers()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    check_memory(seen.folder, seen.parts, dtype.itemsize, free_memory(device))
    verbosity = package.utils.logging.get_verbosity()
    package.utils.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes that diffusers keeps but no longer changes
            package.utils.logging.disable_progress_bar()
            pipeline = seen.kind.load(seen.folder, seen.index, dtype)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"decoder: {seen.folder} cannot be loaded ({reason})") from None
    finally:
        package.utils.logging.set_verbosity(verbosity)
    pipeline.set_progress_bar_config(disable=True)
    return Decoder(pipeline.to(device), seen.contract, seen.kind)


@dataclass(frozen=True)
class _Seen:
    """A folder that was looked over, its weights not loaded. index: of model_index.json; parts: folders by name."""

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
            f"decoder: {folder} is a {name}, which takes no image embeddings here; wanted one of {', '.join(DECODERS)}"
        )
    kind: PipelineAdapter = load("decoder", DECODERS, name)
    parts = check_parts(folder, index)
    label = name_or_path if not Path(name_or_path).is_dir() else folder.name
    try:
        contract = kind.contract(label, parts)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, StopIteration, SafetensorError) as error:
        raise InputError(f"decoder: {folder}: its parts do not say what they take ({error!r}); copy it again") from None
    note = read_note(folder)
    if note.get("dim", contract.dim) != contract.dim:
        raise InputError(
            f"decoder: {folder}: {NOTE} says {note['dim']} dimensions, its parts take {contract.dim}; copy it again"
        )
    return _Seen(folder, index, parts, kind, replace(contract, **note))
