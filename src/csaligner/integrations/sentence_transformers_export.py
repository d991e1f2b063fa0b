"""The text side of an aligned model as a SentenceTransformer folder, from that package's own modules alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from csaligner.adapters.aligner import Aligner
from csaligner.adapters.identity import IdentityAdapter
from csaligner.adapters.linear import LinearAdapter
from csaligner.adapters.mlp import MLPAdapter
from csaligner.checks import InputError
from csaligner.encoders.text import TextEncoder
from csaligner.encoders.towers import SentenceTower
from csaligner.files import write_folder
from csaligner.types import Encoder


def save_sentence_transformer(model: Aligner, encoder: Encoder, out: Path) -> None:
    """Write encoder and text adapter so that SentenceTransformer(str(out)).encode(texts) equals
    model.encode_text(encoder.encode(texts)) up to rounding; nothing of csaligner is needed to load it.

    Raises InputError where the encoder is no sentence encoder, or the adapter is not identity, linear or mlp.
    """
    if not isinstance(encoder, TextEncoder) or not isinstance(encoder.tower, SentenceTower):
        raise InputError(f"format: sentence-transformers needs a sentence encoder, {encoder.info.id} is none")
    if encoder.how.long_text != "truncate":
        raise InputError(f"format: sentence-transformers cuts long texts, {encoder.info.id} does not")
    from sentence_transformers import SentenceTransformer

    base = encoder.tower.model
    if encoder.how.prompt and not base.default_prompt_name:
        raise InputError(f"format: the prompt of {encoder.info.id} has no place in the folder; encode without one")
    modules = [*base.children(), *_adapter_modules(model.text_adapter)]
    whole = SentenceTransformer(modules=modules, device="cpu", similarity_fn_name="cosine")
    whole.max_seq_length = encoder.max_tokens
    if base.default_prompt_name:
        whole.prompts, whole.default_prompt_name = base.prompts, base.default_prompt_name

    def write(folder: Path) -> None:
        whole.save_pretrained(str(folder), create_model_card=False)

    out.parent.mkdir(parents=True, exist_ok=True)
    write_folder(out, write)


def _adapter_modules(adapter: nn.Module) -> list[nn.Module]:
    normalize = _module("Normalize")
    if isinstance(adapter, IdentityAdapter):
        return [normalize()]
    linear = adapter.start if isinstance(adapter, MLPAdapter) else adapter
    if not isinstance(linear, LinearAdapter):
        raise InputError(
            f"format: sentence-transformers holds no {type(adapter).__name__}; use identity, linear or mlp"
        )
    blocks = (
        [layer for block in adapter.blocks for layer in _residual(block)] if isinstance(adapter, MLPAdapter) else []
    )
    with torch.no_grad():
        centre = linear.mean @ linear.map
        if linear.log_spread is None:
            modules = [normalize(), _dense(linear.map.T, linear.offset - centre), *blocks]
        else:
            stretch = linear.log_spread.exp() * torch.eye(len(linear.offset))
            landing = [normalize(), _dense(stretch, linear.offset)]
            modules = [normalize(), _dense(linear.map.T, -centre), normalize(), *blocks, *landing]
    return [*modules, normalize()]


def _residual(block: Any) -> list[nn.Module]:
    """z + W2 gelu(W1 z + b1) + b2 as two dense layers, since z = gelu(z) - gelu(-z)."""
    first, last = block[0], block[-1]
    one = torch.eye(first.in_features)
    with torch.no_grad():
        up = torch.cat([first.weight, one, -one])
        up_bias = torch.cat([first.bias, torch.zeros(2 * first.in_features)])
        down = torch.cat([last.weight, one, -one], dim=1)
        return [_dense(up, up_bias, nn.GELU()), _dense(down, last.bias)]


def _dense(weight: Tensor, bias: Tensor, activation: nn.Module | None = None) -> nn.Module:
    made: nn.Module = _module("Dense")(
        weight.shape[1],
        weight.shape[0],
        activation_function=activation or nn.Identity(),
        init_weight=weight.detach().clone().contiguous(),
        init_bias=bias.detach().clone(),
    )
    return made


def _module(name: str) -> Any:
    """A module class of sentence-transformers, which moved them in version 5.4."""
    import importlib
    from importlib.util import find_spec

    new = find_spec("sentence_transformers.base") is not None
    return getattr(importlib.import_module("sentence_transformers" + (".base.modules" if new else ".models")), name)
