"""Text encoders of transformers: CLIP, SigLIP, sentence encoders, causal language models and others."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from csaligner.checks import InputError
from csaligner.extras import install_command
from csaligner.parsing import parse_json
from csaligner.types import EncoderInfo

from .folder import ModelFolder
from .loading import load_model, quiet_loading, resolve_device
from .spec import TextOptions, changed_options, name_with
from .text import TextEncoder, Tokenization, Tower
from .towers import PooledTextTower, Pooling, ProjectedTextTower, SentenceTower, make_bidirectional

PROJECTED = {
    "clip": "CLIPTextModelWithProjection",
    "clip_text_model": "CLIPTextModelWithProjection",
    "siglip": "SiglipTextModel",
    "siglip_text_model": "SiglipTextModel",
    "siglip2": "Siglip2TextModel",
    "siglip2_text_model": "Siglip2TextModel",
}
FAST = ("tokenizer.json", "vocab.json", "vocab.txt")
SENTENCEPIECE = ("spiece.model", "tokenizer.model")
NO_LIMIT = 10**6  # tokenizers without a limit report 10^30


def open_text(folder: ModelFolder, options: TextOptions) -> TextEncoder:
    """Open the text encoder in `folder`. Raises InputError if it does not load or its parts do not match."""
    device = resolve_device(options.device)
    with quiet_loading():
        if (folder.path / "modules.json").is_file():
            tower, tokenizer, limit, pooling = _sentence(folder, options)
        else:
            tower, tokenizer, limit, pooling = _plain(folder, options)
    _check_vocabulary(folder, tokenizer, tower.backbone)
    module = cast(nn.Module, tower).eval().requires_grad_(False).to(device)
    how = Tokenization(
        tokenizer,
        _limit(folder, options, limit),
        options.long_text,
        pad_to_max=folder.model_type.startswith("siglip"),
        prompt=_prompt(module, options),
        batch_size=options.batch_size,
    )
    return TextEncoder(tower, how, _info(folder, options, how, pooling, _dim(tower, tokenizer, device)))


def _plain(folder: ModelFolder, options: TextOptions) -> tuple[Tower, Any, int, str]:
    tokenizer = _tokenizer(folder)
    kind = PROJECTED.get(folder.model_type)
    causal = any(str(name).endswith("CausalLM") for name in folder.config.get("architectures") or ())
    if options.bidirectional and not causal:
        raise InputError(f"bidirectional: {folder.base} is not a causal language model; remove the option")
    model, _ = load_model(kind or "AutoModel", folder, options.dtype)
    limit = min(_positions(model), int(tokenizer.model_max_length))
    if kind is not None:
        if options.pooling != "auto":
            raise InputError(f"pooling: {folder.base} has its own pooling; got {options.pooling!r}, wanted auto")
        return ProjectedTextTower(model, "siglip" not in folder.model_type), tokenizer, limit, "projected"
    if not hasattr(model, "get_input_embeddings") or model.main_input_name != "input_ids":
        raise InputError(f"encoder: {folder.base} ({folder.model_type}) is not a text encoder; use ?modality=image")
    if options.bidirectional:
        make_bidirectional(model.eval())
    own: Pooling = "last" if causal and not options.bidirectional else "mean"
    pooling: Pooling = own if options.pooling == "auto" else options.pooling
    return PooledTextTower(model, pooling, "content" if causal else "all"), tokenizer, limit, pooling


def _sentence(folder: ModelFolder, options: TextOptions) -> tuple[Tower, Any, int, str]:
    if options.pooling != "auto" or options.bidirectional:
        raise InputError(
            f"pooling: {folder.base} is a sentence encoder with its own pooling; remove pooling and bidirectional"
        )
    model = open_sentence_transformer(folder.path, options.dtype)
    pooling = str(getattr(model[1], "pooling_mode", "own")) if len(model) > 1 else "own"
    limit = int(model.max_seq_length or NO_LIMIT)
    return SentenceTower(model), _as_fast(model.tokenizer, folder), limit, pooling


def open_sentence_transformer(path: Any, dtype: str = "float32") -> Any:
    """Open the SentenceTransformer in a folder, on the CPU, without its final normalisation."""
    check_modules(Path(path))
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise InputError(f"encoder: {error}; {install_command('bundled')}") from None
    try:
        model = SentenceTransformer(
            str(path),
            device="cpu",
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"encoder: {path} does not load as a sentence encoder ({reason})") from None
    while len(model) and type(model[-1]).__name__ == "Normalize":
        model.pop(len(model) - 1)
    if not hasattr(model[0], "auto_model"):
        raise InputError(f"encoder: {path} starts with {type(model[0]).__name__}, wanted a transformer")
    return model.to(getattr(torch, dtype))


def check_modules(path: Path) -> None:
    """Raise InputError if modules.json contains a module outside of sentence-transformers (it would be imported), or
    one with pickled weights."""
    try:
        modules = parse_json((path / "modules.json").read_text(encoding="utf-8"))
        found = [(str(module["type"]), path / str(module["path"])) for module in modules]
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(f"encoder: {path / 'modules.json'} cannot be read ({error!r}); save the model again") from None
    for kind, folder in found:
        if not kind.startswith("sentence_transformers."):
            raise InputError(
                f"encoder: {path} needs the module {kind!r}, which is custom code and is not run; use another model"
            )
        if not folder.resolve().is_relative_to(path.resolve()):
            raise InputError(f"encoder: {path} has a module outside of the folder, {folder}; save the model again")
        if any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
            raise InputError(
                f"encoder: {folder} contains only pickled weights, which may contain code; save it as safetensors"
            )


def _tokenizer(folder: ModelFolder) -> Any:
    from transformers import AutoTokenizer

    found = [name for name in (*FAST, *SENTENCEPIECE) if (folder.path / name).is_file()]
    if not found:  # transformers would create an empty one
        raise InputError(f"encoder: {folder.base} contains no tokenizer; save it next to the model")
    if found[0] in SENTENCEPIECE and find_spec("sentencepiece") is None:
        raise InputError(
            f"encoder: {folder.base} has only a sentencepiece tokenizer, {found[0]}; add the tokenizer.json of the "
            "same model, or pip install sentencepiece"
        )
    try:
        made = AutoTokenizer.from_pretrained(folder.path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        if (folder.path / "tokenizer.json").is_file():
            return _as_fast(None, folder)
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"encoder: {folder.base} contains no loadable tokenizer ({reason})") from None
    return _as_fast(made, folder)


def _as_fast(found: Any, folder: ModelFolder) -> Any:
    """Return the folder's fast tokenizer, from tokenizer.json if `found` is a slow one. Pads on the right, except for
    SigLIP, which keeps the side of its training."""
    if not getattr(found, "is_fast", False):
        from transformers import PreTrainedTokenizerFast

        if not (folder.path / "tokenizer.json").is_file():
            raise InputError(f"encoder: {folder.base} has no tokenizer.json; save its tokenizer in the fast format")
        try:
            found = PreTrainedTokenizerFast.from_pretrained(folder.path, local_files_only=True)
        except Exception as error:
            reason = " ".join(str(error).split())[:160]
            raise InputError(f"encoder: {folder.base} contains no loadable tokenizer ({reason})") from None
    if found.pad_token is None:
        if found.eos_token is None:
            raise InputError(
                f"encoder: the tokenizer of {folder.base} has neither a pad nor an eos token; set one of them"
            )
        found.pad_token = found.eos_token
    if not folder.model_type.startswith("siglip"):
        found.padding_side = "right"
    return found


def _check_vocabulary(folder: ModelFolder, tokenizer: Any, backbone: Any) -> None:
    rows = backbone.get_input_embeddings().weight.shape[0]
    top = max(tokenizer.get_vocab().values(), default=-1)
    if top >= rows:
        raise InputError(
            f"encoder: the tokenizer of {folder.base} has {top + 1} tokens, its model {rows}; "
            "use the tokenizer saved with the model"
        )


def _positions(model: Any) -> int:
    config = getattr(model.config, "text_config", None) or model.config
    return int(getattr(config, "max_position_embeddings", None) or NO_LIMIT)


def _limit(folder: ModelFolder, options: TextOptions, limit: int) -> int:
    if options.max_tokens is not None and options.max_tokens > limit:
        raise InputError(f"max_tokens: got {options.max_tokens}, {folder.base} accepts at most {limit}")
    return options.max_tokens or limit


def _prompt(module: Any, options: TextOptions) -> str:
    if options.prompt is not None:
        return options.prompt
    model = getattr(module, "model", None)
    name = getattr(model, "default_prompt_name", None)
    return str(model.prompts[name]) if name and model is not None else ""


def _info(folder: ModelFolder, options: TextOptions, how: Tokenization, pooling: str, dim: int) -> EncoderInfo:
    preprocessing = {"max_tokens": how.max_tokens, "pooling": pooling} | {
        key: value
        for key, value in changed_options(options).items()
        if key not in {"pooling", "max_tokens", "revision"}
    }
    if how.prompt:
        preprocessing["prompt"] = how.prompt
    return EncoderInfo(name_with(folder.base, options, folder.two_towers), folder.revision, "text", dim, preprocessing)


def _dim(tower: Tower, tokenizer: Any, device: str) -> int:
    """Return the output dimensions, measured on one text; no config covers all projections and poolings."""
    inputs = dict(tokenizer(["a a"], return_tensors="pt", return_attention_mask=True))
    inputs["content_mask"] = inputs["attention_mask"].bool()
    with torch.inference_mode():
        return int(tower({key: value.to(device) for key, value in inputs.items()}).pooled.shape[1])
