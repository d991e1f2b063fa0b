"""Image generation from prompts or from an image (`csaligner generate`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from csaligner._deprecated import renamed
from csaligner.checks import InputError
from csaligner.decoders.contract import Contract
from csaligner.decoders.decoder import Decoder, Sampling, default_sampling, open_decoder, read_contract
from csaligner.encoders import IMAGE_ENCODER, open_encoder
from csaligner.files import write_atomically
from csaligner.model import AlignedModel

from .prompts import Prompt
from .text import TextToEmbedding, bundled_run

MICRO = "micro"


@dataclass(frozen=True)
class GenerationRequest:
    """prompts: see Prompt.parse; image: generate variations of it instead; negative: negative prompt."""

    prompts: tuple[str, ...] = ()
    image: Path | None = None
    negative: str | None = None


def generate(
    wish: GenerationRequest,
    *,
    run: Path | TextToEmbedding | None = None,
    decoder: str = MICRO,
    sampling: Sampling | None = None,
) -> list[list[Image.Image]]:
    """Generate sampling.n images for each prompt, or variations of an image.

    run: whose text adapter to use, a folder or open; None: the bundled one, for the micro decoder. sampling: default:
    the decoder's.

    Raises InputError, before the decoder is loaded, for a bad prompt, run or decoder and for too little memory.
    """
    if bool(wish.prompts) == (wish.image is not None):
        raise InputError("prompt: give either prompts or --image, not both")
    prompts = [Prompt.parse(words) for words in wish.prompts]
    away = Prompt.parse(wish.negative) if wish.negative is not None else None
    contract = read_contract(decoder)
    if away is not None and not contract.takes_negative:
        raise InputError(f"negative: {decoder} has a fixed negative embedding; remove the option")
    text = None
    if prompts or away is not None:
        text = run if isinstance(run, TextToEmbedding) else TextToEmbedding.open(run or bundled_run())
        text.check(contract)
    embeddings = text.raw(text.directions(prompts), contract) if text and prompts else _of_picture(wish, contract, text)
    negative = text.raw(text.directions([away]), contract)[0] if text and away else None
    opened = open_decoder(decoder)
    sampling = sampling or default_sampling(decoder)
    return opened.decode(embeddings, sampling, negative if negative is not None else no_picture(opened, text, sampling))


def no_picture(decoder: Decoder, text: TextToEmbedding | None, sampling: Sampling) -> Tensor | None:
    """Return the default negative embedding: that of an all-zero input of the image encoder, as in Kandinsky's prior.

    None if the contract has its own negative embedding, or if guidance is off."""
    contract = decoder.contract
    if contract.negative is not None or not contract.takes_negative or sampling.guidance <= 1:
        return None
    model = _image_model(contract, text)
    grey = model.prepare("image", Image.new("RGB", (64, 64), "grey"))
    return model.encode_prepared("image", [torch.zeros_like(grey)])[0]


def save_pictures(pictures: Sequence[Image.Image], path: Path, side: int) -> list[Path]:
    """Save one image to `path`, several to path-1, path-2, ...; smaller images are enlarged to `side` pixels."""
    if path.suffix.lower() not in {".png", ".jpg", ".jpeg", ".webp"}:
        raise InputError(f"out: got {path}, wanted a file name with suffix .png, .jpg or .webp")
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [path] if len(pictures) == 1 else [path.with_stem(f"{path.stem}-{i}") for i in range(1, len(pictures) + 1)]
    for name, picture in zip(names, pictures, strict=True):
        write_atomically(name, _saver(enlarge(picture, side), name.suffix))
    return names


def enlarge(picture: Image.Image, side: int) -> Image.Image:
    """Enlarge the image to at least `side` pixels on its longer side."""
    if max(picture.size) >= side:
        return picture
    ratio = side / max(picture.size)
    return picture.resize((round(picture.width * ratio), round(picture.height * ratio)), Image.Resampling.LANCZOS)


def _saver(picture: Image.Image, suffix: str) -> Any:
    kind = {".png": "PNG", ".webp": "WEBP"}.get(suffix.lower(), "JPEG")
    return lambda temporary: picture.save(temporary, format=kind)


def _of_picture(wish: GenerationRequest, contract: Contract, text: TextToEmbedding | None) -> Tensor:
    assert wish.image is not None
    model = _image_model(contract, text)
    info = model.info("image")
    contract.check_source(info.dim, info.fingerprint)
    return model.features_image([wish.image])


def _image_model(contract: Contract, text: TextToEmbedding | None) -> AlignedModel:
    """Return the model with the image encoder of the run, else of the contract, else the bundled one."""
    if text is not None and "image" in text.model.infos:
        return text.model
    return AlignedModel.of_encoders(open_encoder(contract.encoder_id or IMAGE_ENCODER, "image"))


def __getattr__(name: str) -> Any:
    return renamed(__name__, name)
