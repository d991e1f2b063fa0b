"""Encoder names with options: `hf:org/name?pooling=last&bidirectional=true`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl

from pydantic import Field

from csaligner.checks import InputError
from csaligner.config import Strict

DType = Literal["float32", "bfloat16", "float16"]
NOT_IN_THE_NAME = ("device", "batch_size", "modality")  # no effect on features, or stored elsewhere


class EncoderOptions(Strict):
    """Options of all encoders.

    modality: the tower of a two-tower model; revision: branch, tag or commit on the Hub; dtype: of the weights in
    memory (features are always float32); device: auto (a GPU if available) or a torch device; batch_size: items per
    forward pass.
    """

    modality: Literal["image", "text"] | None = None
    revision: str | None = None
    dtype: DType = "float32"
    device: str = "auto"
    batch_size: Annotated[int, Field(ge=1)] = 64


class ImageOptions(EncoderOptions):
    """pooling: auto uses the model's own (CLIP: projection; SigLIP: attention head; DINOv2: class token), cls the state
    of the first token, mean the mean over the patches."""

    pooling: Literal["auto", "cls", "mean"] = "auto"


class TextOptions(EncoderOptions):
    """pooling: auto uses the model's own (CLIP and SigLIP: projection; sentence encoders: as configured in the folder;
    causal language models: last, or mean if bidirectional; other models: mean).

    bidirectional: let every token of a causal language model attend to all others (LLM2Vec, BehnamGhader et al. 2024).
    long_text: treatment of texts longer than max_tokens: error, truncate, or split (mean of the features of its
    pieces, weighted by their numbers of tokens). max_tokens: special tokens included; default: the model's limit.
    prompt: prefix of every text.
    """

    pooling: Literal["auto", "mean", "last", "cls"] = "auto"
    bidirectional: bool = False
    long_text: Literal["error", "truncate", "split"] = "truncate"
    max_tokens: Annotated[int, Field(ge=3)] | None = None
    prompt: str | None = None


def split_name(name: str) -> tuple[str, dict[str, str]]:
    """Split `base?key=value&key=value` into base and options (strings). Raises InputError for an option without =."""
    base, _, query = name.partition("?")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise InputError(f"encoder: {name!r}: options are key=value, joined by &, for example ?pooling=mean") from None
    return base, dict(pairs)


def name_with(base: str, options: EncoderOptions, two_towers: bool = False) -> str:
    """Return the name that opens the same encoder again: `base`, the non-default options, and the modality of a
    two-tower model."""
    changed = dict(changed_options(options)) | ({"modality": options.modality} if two_towers else {})
    return base + ("?" + "&".join(f"{k}={_word(v)}" for k, v in sorted(changed.items())) if changed else "")


def changed_options(options: EncoderOptions) -> Mapping[str, Any]:
    """Return the non-default options that may change features."""
    return {k: v for k, v in options.model_dump(exclude_defaults=True).items() if k not in NOT_IN_THE_NAME}


def _word(value: Any) -> str:
    from urllib.parse import quote

    return str(value).lower() if isinstance(value, bool) else quote(str(value), safe=" :")
