"""An encoder's name with its options: `hf:org/name?pooling=last&bidirectional=true`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl

from pydantic import Field

from csaligner.checks import InputError
from csaligner.config import Strict

DType = Literal["float32", "bfloat16", "float16"]
NOT_IN_THE_NAME = ("device", "batch_size", "modality")  # what changes no feature, or is said elsewhere


class EncoderOptions(Strict):
    """What every encoder of other people's weights takes.

    modality: which tower of a model that has two; revision: branch, tag or commit on the hub; dtype: of the weights
    in memory (features are float32 always); device: auto (a GPU where there is one) or torch's name of one;
    batch_size: items in one forward pass.
    """

    modality: Literal["image", "text"] | None = None
    revision: str | None = None
    dtype: DType = "float32"
    device: str = "auto"
    batch_size: Annotated[int, Field(ge=1)] = 64


class ImageOptions(EncoderOptions):
    """pooling: auto is what the model gives (CLIP: projected; SigLIP: its head; DINOv2: the class token), cls the
    first token's state, mean the mean of the patches' states."""

    pooling: Literal["auto", "cls", "mean"] = "auto"


class TextOptions(EncoderOptions):
    """pooling: auto is the model's own (CLIP and SigLIP: projected; a sentence encoder: as its folder says; a causal
    language model: last, or mean where it is bidirectional; another model: mean).

    bidirectional: let every token of a causal language model see all others (LLM2Vec, BehnamGhader et al. 2024).
    long_text: what happens to a text of more than max_tokens: error, truncate, or split: the mean of its pieces'
    features, weighted by their tokens. max_tokens: special tokens included; the model's own limit if not given.
    prompt: put before every text.
    """

    pooling: Literal["auto", "mean", "last", "cls"] = "auto"
    bidirectional: bool = False
    long_text: Literal["error", "truncate", "split"] = "truncate"
    max_tokens: Annotated[int, Field(ge=3)] | None = None
    prompt: str | None = None


def split_name(name: str) -> tuple[str, dict[str, str]]:
    """`base?key=value&key=value` -> base and its options, still as words. Raises InputError for a word without =."""
    base, _, query = name.partition("?")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise InputError(f"encoder: {name!r}: options are key=value, joined by &; for example ?pooling=mean") from None
    return base, dict(pairs)


def name_with(base: str, options: EncoderOptions, two_towers: bool = False) -> str:
    """The name that opens the same encoder again: `base`, the options that differ from the defaults, and the modality
    of a model that has two towers."""
    changed = dict(changed_options(options)) | ({"modality": options.modality} if two_towers else {})
    return base + ("?" + "&".join(f"{k}={_word(v)}" for k, v in sorted(changed.items())) if changed else "")


def changed_options(options: EncoderOptions) -> Mapping[str, Any]:
    """The options that differ from the defaults and may change features."""
    return {k: v for k, v in options.model_dump(exclude_defaults=True).items() if k not in NOT_IN_THE_NAME}


def _word(value: Any) -> str:
    from urllib.parse import quote

    return str(value).lower() if isinstance(value, bool) else quote(str(value), safe=" :")
