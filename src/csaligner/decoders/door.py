"""One door to every unCLIP decoder: image embeddings in, pictures out, through diffusers' own pipelines."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from safetensors.torch import load_file
from torch import Tensor

from csaligner.checks import InputError, check_choice, check_non_negative

from .contract import Contract, read_note
from .folder import INDEX, NO_WEIGHTS, check_memory, check_parts, decoder_folder, free_memory, read_json
from .micro import diffusers

BATCH = 32  # pictures of at most SMALL pixels a side in one pass; larger ones go one by one
SMALL = 96


@dataclass(frozen=True)
class Sampling:
    """n: pictures an embedding; seed: of the first, the next ones have the next numbers, the same for each
    embedding; steps: of denoising; guidance: 1 or less is without."""

    n: int = 1
    seed: int = 0
    steps: int = 30
    guidance: float = 4.0


@dataclass(frozen=True)
class _Kind:
    """How a class of pipelines is read and called."""

    contract: Callable[[str, Mapping[str, Path]], Contract]
    call: Callable[[Any, Tensor, Tensor | None, Sampling, list[torch.Generator]], list[Image]]
    load: Callable[[Path, Mapping[str, Any], torch.dtype], Any]


class Decoder:
    """A decoder in memory; `contract` says what it wants."""

    def __init__(self, pipeline: Any, contract: Contract, call: Callable[..., list[Image]]) -> None:
        """Use open_decoder."""
        self.contract = contract
        self._pipeline, self._call = pipeline, call

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
            pictures += self._call(self._pipeline, rows[start : start + batch], negative, sampling, generators)
        return [pictures[i : i + sampling.n] for i in range(0, len(pictures), sampling.n)]

    @property
    def side(self) -> int:
        """Pixels of a side of its pictures."""
        pipeline = self._pipeline
        if hasattr(pipeline, "super_res_last"):
            return int(pipeline.super_res_last.config.sample_size)
        factor = getattr(pipeline, "movq_scale_factor", None) or pipeline.vae_scale_factor
        return int(pipeline.unet.config.sample_size * factor)


def read_contract(name_or_path: str) -> Contract:
    """What the decoder wants, read from its folder without loading it. Raises InputError as open_decoder."""
    return _look(name_or_path)[1]


def open_decoder(name_or_path: str) -> Decoder:
    """micro, kandinsky-2.2, karlo, stable-unclip, the id of a repository on the Hub, or a folder of diffusers.

    Loaded on the GPU in half precision where there is one, else on the CPU. Raises InputError for an unknown name, a
    folder with parts missing, a pipeline that takes no image embeddings, and for too little memory.
    """
    folder, contract, kind = _look(name_or_path)
    package = diffusers()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    index = read_json(folder / INDEX)
    check_memory(folder, check_parts(folder, index), dtype.itemsize, free_memory(device))
    verbosity = package.utils.logging.get_verbosity()
    package.utils.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes that diffusers keeps but no longer changes
            package.utils.logging.disable_progress_bar()
            pipeline = kind.load(folder, index, dtype)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"decoder: {folder} cannot be loaded ({reason})") from None
    finally:
        package.utils.logging.set_verbosity(verbosity)
    pipeline.set_progress_bar_config(disable=True)
    return Decoder(pipeline.to(device), contract, kind.call)


def _look(name_or_path: str) -> tuple[Path, Contract, _Kind]:
    folder = decoder_folder(name_or_path)
    index = read_json(folder / INDEX)
    name = str(index.get("_class_name"))
    if name not in KINDS:
        raise InputError(
            f"decoder: {folder} is a {name}, which takes no image embeddings here; wanted one of {', '.join(KINDS)}"
        )
    parts = check_parts(folder, index)
    label = name_or_path if not Path(name_or_path).is_dir() else folder.name
    contract = KINDS[name].contract(label, parts)
    note = read_note(folder)
    check_choice("dim", str(note.get("dim", contract.dim)), [str(contract.dim)])
    return folder, replace(contract, **note), KINDS[name]


def _kandinsky_contract(label: str, parts: Mapping[str, Path]) -> Contract:
    unet = read_json(parts["unet"] / "config.json")
    if unet.get("addition_embed_type") != "image":
        raise InputError(
            f"decoder: the unet of {label} is not conditioned on image embeddings; take the decoder's folder"
        )
    return Contract(label, int(unet["encoder_hid_dim"]))


def _karlo_contract(label: str, parts: Mapping[str, Path]) -> Contract:
    dim = int(read_json(parts["text_proj"] / "config.json")["clip_embeddings_dim"])
    return Contract(label, dim, takes_negative=False)


def _from_pretrained(folder: Path, index: Mapping[str, Any], dtype: torch.dtype) -> Any:
    pipeline = getattr(diffusers(), index["_class_name"])
    return pipeline.from_pretrained(str(folder), torch_dtype=dtype, local_files_only=True, use_safetensors=True)


def _part_by_part(folder: Path, index: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """Karlo's folders name a module that newer versions of diffusers have moved; its parts load as ever."""
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


def _stable_unclip_contract(label: str, parts: Mapping[str, Path]) -> Contract:
    normaliser = parts["image_normalizer"]
    dim = int(read_json(normaliser / "config.json")["embedding_dim"])
    moments = load_file(next(normaliser.glob("*.safetensors")))
    mean, std = (moments[name].float().flatten() for name in ("mean", "std"))
    norm = float((mean.square() + std.square()).sum().sqrt())
    return Contract(label, dim, mean=mean, std=std, norm=norm, takes_negative=False)


def _kandinsky(
    pipeline: Any, rows: Tensor, negative: Tensor | None, sampling: Sampling, generators: list[torch.Generator]
) -> list[Image]:
    side = pipeline.unet.config.sample_size * pipeline.movq_scale_factor
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


def _karlo(
    pipeline: Any, rows: Tensor, negative: Tensor | None, sampling: Sampling, generators: list[torch.Generator]
) -> list[Image]:
    found: list[Image] = pipeline(
        image_embeddings=rows.to(pipeline.device, pipeline.decoder.dtype),
        decoder_num_inference_steps=sampling.steps,
        decoder_guidance_scale=sampling.guidance,
        generator=generators,
    ).images
    return found


def _stable_unclip(
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


KINDS: Mapping[str, _Kind] = {
    "KandinskyV22Pipeline": _Kind(_kandinsky_contract, _kandinsky, _from_pretrained),
    "UnCLIPImageVariationPipeline": _Kind(_karlo_contract, _karlo, _part_by_part),
    "StableUnCLIPImg2ImgPipeline": _Kind(_stable_unclip_contract, _stable_unclip, _from_pretrained),
}
