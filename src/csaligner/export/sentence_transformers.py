"""Export of aligned models as SentenceTransformer folders."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from csaligner.adapters.aligner import Aligner
from csaligner.adapters.identity import IdentityAdapter
from csaligner.adapters.linear import LinearAdapter
from csaligner.adapters.mlp import MLPAdapter
from csaligner.checks import InputError
from csaligner.encoders.folder import open_folder
from csaligner.encoders.loading import quiet_loading
from csaligner.encoders.spec import split_name
from csaligner.encoders.text import TextEncoder
from csaligner.encoders.towers import ProjectedTextTower, SentenceTower
from csaligner.encoders.transformers_vision import ImageEncoder
from csaligner.files import write_folder, write_json, write_text
from csaligner.types import Encoder

TOLERANCE = 1e-4  # maximum difference of unit vectors between csaligner and the exported folder
TEXTS = ("a cat", "two dogs run on the grass", "7")
TOWER_PREFIXES = ("", "text_model.", "vision_model.")  # of a tower's weights in the state dict of the full model
TRANSFORMER_CONFIG = "sentence_bert_config.json"
CARD = """---
library_name: sentence-transformers
---

# Aligned text and image embeddings

    SentenceTransformer(FOLDER).encode({what})

Text encoder: {text}. Image encoder: {image}. Embeddings have unit length; compare by cosine. Created with csaligner.
"""


def save_sentence_transformer(
    model: Aligner, encoder: Encoder, out: Path, image_encoder: Encoder | None = None
) -> None:
    """Write encoders and adapters to `out`, so that SentenceTransformer(str(out)).encode(texts) equals
    model.encode_text(encoder.encode(texts)) up to rounding; loading does not require csaligner.

    encoder: a sentence encoder, or the text tower of CLIP or SigLIP. image_encoder: an `hf:` encoder with its own
    pooled output (CLIP, SigLIP, DINOv2); encode(PIL images) then returns aligned image embeddings. The folder is loaded
    and compared with csaligner before it is moved to `out`.

    Raises InputError for other encoders, and for adapters other than identity, linear and mlp.
    """
    _check_text(encoder)
    routes = {"text": [*_text_modules(encoder, image_encoder), *_adapter_modules(model.text_adapter)]}
    if image_encoder is not None:
        first, config = routes["text"][0], _image_config(image_encoder)
        same = _base(image_encoder) == _base(encoder)
        own = _with_weights(first, image_encoder) if same else _transformer(image_encoder, config)
        routes["image"] = [own, *_adapter_modules(model.image_adapter)]
    modules = [_module("Router")(routes, default_route="text")] if image_encoder else routes["text"]
    from sentence_transformers import SentenceTransformer

    whole = SentenceTransformer(modules=modules, device="cpu", similarity_fn_name="cosine")
    base: Any = encoder.tower.model  # type: ignore[attr-defined]
    if getattr(base, "default_prompt_name", None):
        whole.prompts, whole.default_prompt_name = base.prompts, base.default_prompt_name

    def write(folder: Path) -> None:
        whole.save_pretrained(str(folder), create_model_card=False)
        for config in folder.rglob(TRANSFORMER_CONFIG) if image_encoder else ():
            found = json.loads(config.read_text(encoding="utf-8"))  # same pixels with and without torchvision
            write_json(config, found | {"processor_kwargs": {"backend": "pil"}})
        what, image = ("texts or PIL images", image_encoder.info.id) if image_encoder else ("texts", "none")
        write_text(folder / "README.md", CARD.format(what=what, text=encoder.info.id, image=image))
        _check(folder, model, encoder, image_encoder)

    out.parent.mkdir(parents=True, exist_ok=True)
    with quiet_loading():
        write_folder(out, write)


def holds_images(encoder: Encoder) -> bool:
    """Return whether sentence-transformers supports this image encoder (not EfficientNet or imported features)."""
    from importlib.util import find_spec

    return isinstance(encoder, ImageEncoder) and find_spec("sentence_transformers.base") is not None


def _check_text(encoder: Encoder) -> None:
    if not isinstance(encoder, TextEncoder) or not isinstance(encoder.tower, (SentenceTower, ProjectedTextTower)):
        raise InputError(
            f"format: sentence-transformers wants a sentence encoder or the text encoder of CLIP or SigLIP, "
            f"got {encoder.info.id}; use onnx"
        )
    if encoder.how.long_text != "truncate":
        raise InputError(f"format: sentence-transformers truncates long texts, {encoder.info.id} does not; use onnx")
    named = getattr(getattr(encoder.tower, "model", None), "default_prompt_name", None)
    if encoder.how.prompt and not named:
        raise InputError(
            f"format: sentence-transformers cannot store the prompt of {encoder.info.id}; embed without a prompt"
        )


def _text_modules(encoder: Any, image_encoder: Encoder | None) -> list[nn.Module]:
    if isinstance(encoder.tower, SentenceTower):
        modules = list(encoder.tower.model.children())
        modules[0].max_seq_length = encoder.max_tokens
        return modules
    how: dict[str, Any] = {"max_length": encoder.max_tokens}
    if encoder.how.pad_to_max:
        how |= {"padding": "max_length", "return_attention_mask": False}
    return [_transformer(encoder, {"processing_kwargs": {"text": how}})]


def _image_config(encoder: Encoder) -> dict[str, Any]:
    """Return settings that select the pooled output, for models without get_image_features."""
    assert isinstance(encoder, ImageEncoder)
    if encoder.info.preprocessing.get("pooling") != "auto":
        raise InputError(
            f"format: sentence-transformers uses the model's own pooling, {encoder.info.id} does not; use onnx"
        )
    folder = open_folder(*_place(encoder))
    if folder.model_type.startswith("siglip2"):
        raise InputError(f"format: sentence-transformers does not support SigLIP 2 ({encoder.info.id}); use onnx")
    if hasattr(encoder.tower.backbone, "visual_projection") or folder.two_towers:
        return {}
    output = {"method": "forward", "method_output_name": "pooler_output"}
    return {"modality_config": {"image": output}, "module_output_name": "sentence_embedding"}


def _transformer(encoder: Encoder, settings: dict[str, Any]) -> nn.Module:
    """Return sentence-transformers' Transformer module for the full model, with the weights of the encoder."""
    from sentence_transformers.base.modules import Transformer

    with quiet_loading():
        made = Transformer(
            str(open_folder(*_place(encoder)).path),
            model_kwargs={"use_safetensors": True, "local_files_only": True},
            processor_kwargs={"backend": "pil", "local_files_only": True},
            config_kwargs={"local_files_only": True},
            **settings,
        )
    return _with_weights(made.float(), encoder)


def _with_weights(module: Any, encoder: Encoder) -> nn.Module:
    """Copy the weights of the encoder's tower into the full model; with LoRA they differ from those on disk."""
    state = encoder.tower.backbone.state_dict()  # type: ignore[attr-defined]
    whole = module.model.state_dict()
    prefix = next((p for p in TOWER_PREFIXES if all(p + name in whole for name in state)), None)
    if prefix is None:
        raise InputError(f"format: sentence-transformers loads {encoder.info.id} as another model; use onnx")
    module.model.load_state_dict({prefix + name: value for name, value in state.items()}, strict=False)
    return module  # type: ignore[no-any-return]


def _place(encoder: Encoder) -> tuple[str, str | None]:
    base, options = split_name(encoder.info.id)
    if not base.startswith("hf:"):
        raise InputError(
            f"format: sentence-transformers does not support {encoder.info.id}, wanted an hf: encoder; use onnx"
        )
    return base.removeprefix("hf:"), options.get("revision")


def _base(encoder: Encoder) -> str:
    return split_name(encoder.info.id)[0]


def _check(folder: Path, model: Aligner, encoder: Encoder, image_encoder: Encoder | None) -> None:
    from sentence_transformers import SentenceTransformer

    again = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    for made_by, inputs, encode in _examples(model, encoder, image_encoder):
        with torch.inference_mode():
            wanted = encode(made_by.encode([made_by.prepare(each) for each in inputs]))
        found = again.encode(inputs, convert_to_tensor=True, show_progress_bar=False)
        error = float((found - wanted).abs().max()) if found.shape == wanted.shape else float("inf")
        if not error < TOLERANCE:
            raise InputError(
                f"format: embeddings of {made_by.info.id} differ between sentence-transformers and csaligner (by "
                f"{error:.1e}); use onnx"
            )


def _examples(
    model: Aligner, encoder: Encoder, image_encoder: Encoder | None
) -> Iterator[tuple[Encoder, list[Any], Any]]:
    yield encoder, list(TEXTS), model.encode_text
    if image_encoder is not None:
        grey = Image.linear_gradient("L")
        mixed = Image.merge("RGB", (grey, grey.rotate(90), Image.radial_gradient("L")))
        yield image_encoder, [mixed.resize(size) for size in ((60, 40), (300, 400))], model.encode_image


def _adapter_modules(adapter: nn.Module) -> list[nn.Module]:
    normalize = _module("Normalize")
    if isinstance(adapter, IdentityAdapter):
        return [normalize()]
    linear = adapter.start if isinstance(adapter, MLPAdapter) else adapter
    if not isinstance(linear, LinearAdapter):
        raise InputError(
            f"format: sentence-transformers does not support {type(adapter).__name__}; use identity, linear or mlp"
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
            last = [normalize(), _dense(stretch, linear.offset)]
            modules = [normalize(), _dense(linear.map.T, -centre), normalize(), *blocks, *last]
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
    """Return a module class of sentence-transformers; their location changed in version 5.4."""
    import importlib
    from importlib.util import find_spec

    new = find_spec("sentence_transformers.base") is not None
    return getattr(importlib.import_module("sentence_transformers" + (".base.modules" if new else ".models")), name)
