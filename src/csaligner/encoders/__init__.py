"""Frozen image and text encoders, opened by name with `open_encoder`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from csaligner._lazy import lazy_exports
from csaligner.checks import InputError, nearest
from csaligner.config import build_config
from csaligner.parsing import parse_json
from csaligner.registry import ENCODERS, load
from csaligner.types import Encoder, Modality

from .spec import ImageOptions, TextOptions, split_name

IMAGE_ENCODER = "bundled:efficientnet-lite0"
TEXT_ENCODER = "bundled:all-MiniLM-L6-v2"

if TYPE_CHECKING:
    from .efficientnet import EfficientNetLite0
    from .minilm import MiniLM

__all__ = [
    "EfficientNetLite0",
    "MiniLM",
    "encoder_pair",
    "has_two_towers",
    "is_encoder_name",
    "open_encoder",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "efficientnet": "EfficientNetLite0",
        "minilm": "MiniLM",
    },
)


def open_encoder(name: str, modality: Modality | None = None) -> Encoder:
    """Open the encoder of that name.

    name: `bundled:all-MiniLM-L6-v2`, `bundled:efficientnet-lite0`; `hf:org/name`, `hf:path` or the path of a
    transformers folder; `open_clip:ViT-B-32/laion2b_s34b_b79k`. Options follow as `?key=value&key=value`
    (encoders/spec.py). modality: the tower of a two-tower model; same as `?modality=` in the name.

    Raises InputError for an unknown name (with the nearest one), an unknown option, a folder without weights or a
    missing package.
    """
    base, words = split_name(name)
    wanted = words.get("modality", modality)
    if base in ENCODERS:
        return cast(Encoder, load("encoder", ENCODERS, base)(**_arguments(base, words)))
    if base.startswith("precomputed:"):
        raise InputError(f"encoder: {base} denotes precomputed features and cannot encode; embed the data itself")
    if base.startswith("open_clip:"):
        from .open_clip import open_open_clip

        return open_open_clip(base.removeprefix("open_clip:"), _options(words, wanted, name))
    if base.startswith("hf:") or Path(base).expanduser().is_dir():
        return _open_hf(base.removeprefix("hf:"), words, wanted, name)
    if "/" in base:
        raise InputError(f"encoder: no such folder: {base}; for a model of the Hub write hf:{base}")
    raise InputError(f"encoder: {base!r} is not known; {nearest(base, ENCODERS)}")


def is_encoder_name(name: str) -> bool:
    """Whether open_encoder takes it for a name, not for the path of a folder."""
    base = name.partition("?")[0]
    return base in ENCODERS or base.startswith(("hf:", "open_clip:", "precomputed:"))


def encoder_name(name: str) -> str:
    """Return the name of an encoder: hf:FOLDER for the folder of a transformers model, any other name unchanged."""
    config = Path(split_name(name)[0]) / "config.json"
    if is_encoder_name(name) or not config.is_file():
        return name
    with suppress(OSError, ValueError):
        found = parse_json(config.read_bytes())
        return f"hf:{name}" if isinstance(found, dict) and "model_type" in found else name
    return name


def has_two_towers(name: str) -> bool:
    """Whether the name is that of a model with an image and a text tower, and says neither. Raises InputError."""
    base, words = split_name(name)
    if "modality" in words or not base.startswith(("hf:", "open_clip:")):
        return False
    if base.startswith("open_clip:"):
        return True
    from .folder import open_folder

    return open_folder(base.removeprefix("hf:"), words.get("revision")).two_towers


def encoder_pair(
    encoder: str | None = None, image: str | None = None, text: str | None = None
) -> tuple[str, str] | None:
    """Return the names of an image and a text encoder from the options encoder, image_encoder and text_encoder.

    encoder: a model with two towers, such as hf:openai/clip-vit-base-patch32 or the folder of one; image, text: an
    encoder each, the bundled one where only the other is given. None if none is given. Raises InputError for `encoder`
    together with another, and for an `encoder` with one tower.
    """
    if encoder is None:
        return None if image is None and text is None else (image or IMAGE_ENCODER, text or TEXT_ENCODER)
    if image is not None or text is not None:
        raise InputError("encoder: gives both modalities; remove image_encoder and text_encoder, or encoder")
    name = encoder if is_encoder_name(encoder) or not Path(split_name(encoder)[0]).is_dir() else f"hf:{encoder}"
    if not is_encoder_name(name) or not has_two_towers(name):
        raise InputError(
            f"encoder: {encoder} is not a model with an image and a text tower; wanted for example "
            "hf:openai/clip-vit-base-patch32, open_clip:ViT-B-32/laion2b_s34b_b79k or the folder of one; "
            "for two encoders give image_encoder and text_encoder"
        )
    return name, name


def _open_hf(source: str, words: dict[str, str], wanted: str | None, name: str) -> Encoder:
    from .folder import open_folder
    from .transformers_text import open_text
    from .transformers_vision import open_image

    folder = open_folder(source, words.get("revision"))
    if wanted is None and not folder.two_towers:
        wanted = "image" if _is_vision(folder.path) else "text"
    options = _options(words, wanted, name)
    return open_image(folder, options) if isinstance(options, ImageOptions) else open_text(folder, options)


def _is_vision(path: Path) -> bool:
    """Return whether the folder has an image processor and no tokenizer."""
    return (path / "preprocessor_config.json").is_file() and not (path / "tokenizer_config.json").is_file()


def _options(words: dict[str, str], wanted: str | None, name: str) -> ImageOptions | TextOptions:
    if wanted is None:
        raise InputError(f"encoder: {name} has an image and a text tower; add ?modality=image or ?modality=text")
    kind: type[ImageOptions] | type[TextOptions] = ImageOptions if wanted == "image" else TextOptions
    return build_config(kind, {**words, "modality": wanted})


def _arguments(base: str, words: dict[str, str]) -> dict[str, Any]:
    """Return the arguments of a registered encoder; only MiniLM takes options."""
    words = {key: value for key, value in words.items() if key != "modality"}
    if not words:
        return {}
    if base != TEXT_ENCODER:
        raise InputError(f"encoder: {base} takes no options; got {', '.join(words)}")
    return {"options": build_config(TextOptions, words)}
