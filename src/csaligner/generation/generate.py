"""`csaligner generate`: prompts or a picture in, pictures out."""

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
from csaligner.decoders.decoder import Decoder, Sampling, open_decoder, read_contract
from csaligner.encoders import IMAGE_ENCODER, open_encoder
from csaligner.files import write_atomically
from csaligner.model import AlignedModel

from .prompts import Prompt
from .text import TextToEmbedding, bundled_run

MICRO = "micro"


@dataclass(frozen=True)
class GenerationRequest:
    """What to draw: prompts (Prompt.parse), or variations of a picture. negative: a prompt to keep away from."""

    prompts: tuple[str, ...] = ()
    image: Path | None = None
    negative: str | None = None


def generate(
    wish: GenerationRequest, *, run: Path | None = None, decoder: str = MICRO, sampling: Sampling | None = None
) -> list[list[Image.Image]]:
    """sampling.n pictures for each prompt, or of the picture.

    run: whose text adapter to use; None: the one in the package, which goes with the micro decoder. Everything that
    can be wrong (prompt, run, decoder's contract, its parts, memory) is checked before the decoder is loaded; each is
    an InputError.
    """
    if bool(wish.prompts) == (wish.image is not None):
        raise InputError("prompt: give one or more prompts, or --image with a picture, not both")
    prompts = [Prompt.parse(words) for words in wish.prompts]
    away = Prompt.parse(wish.negative) if wish.negative is not None else None
    contract = read_contract(decoder)
    if away is not None and not contract.takes_negative:
        raise InputError(f"negative: {decoder} has its own and takes no other; leave it out")
    text = None
    if prompts or away is not None:
        text = TextToEmbedding.open(run or bundled_run())
        text.check(contract)
    embeddings = text.raw(text.directions(prompts), contract) if text and prompts else _of_picture(wish, contract, text)
    negative = text.raw(text.directions([away]), contract)[0] if text and away else None
    opened = open_decoder(decoder)
    sampling = sampling or Sampling()
    return opened.decode(embeddings, sampling, negative if negative is not None else no_picture(opened, text, sampling))


def no_picture(decoder: Decoder, text: TextToEmbedding | None, sampling: Sampling) -> Tensor | None:
    """What guidance leads away from without a negative prompt: the contract's own, else the embedding of a picture
    whose every input is 0, as Kandinsky's prior makes it; None where no guidance or nothing to give is wanted."""
    contract = decoder.contract
    if contract.negative is not None or not contract.takes_negative or sampling.guidance <= 1:
        return None
    model = _image_model(contract, text)
    grey = model.prepare("image", Image.new("RGB", (64, 64), "grey"))
    return model.encode_prepared("image", [torch.zeros_like(grey)])[0]


def save_pictures(pictures: Sequence[Image.Image], path: Path, side: int) -> list[Path]:
    """One picture at `path`, several at path-1, path-2 and so on; smaller ones are enlarged to `side` pixels."""
    if path.suffix.lower() not in {".png", ".jpg", ".jpeg", ".webp"}:
        raise InputError(f"out: got {path}, wanted a name that ends in .png, .jpg or .webp")
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [path] if len(pictures) == 1 else [path.with_stem(f"{path.stem}-{i}") for i in range(1, len(pictures) + 1)]
    for name, picture in zip(names, pictures, strict=True):
        write_atomically(name, _saver(enlarge(picture, side), name.suffix))
    return names


def enlarge(picture: Image.Image, side: int) -> Image.Image:
    """Its longer side at least `side` pixels; larger pictures as they are."""
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
    """Whose image embeddings the decoder takes: those of the run, else as the decoder says, else the bundled ones."""
    if text is not None and "image" in text.model.infos:
        return text.model
    return AlignedModel.of_encoders(open_encoder(contract.encoder_id or IMAGE_ENCODER, "image"))


def __getattr__(name: str) -> Any:
    return renamed(__name__, name)
