"""Image and text encoders of open_clip (optional package)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn

from csaligner.checks import InputError
from csaligner.types import Encoder, EncoderInfo

from .folder import check_downloads
from .loading import resolve_device
from .spec import EncoderOptions, ImageOptions, TextOptions, changed_options, name_with


def open_open_clip(name: str, options: ImageOptions | TextOptions) -> Encoder:
    """Open `model/pretrained`, as in open_clip.list_pretrained(); the tag is required.

    Raises InputError if open_clip is not installed, for an unknown model or tag, and for an unsupported option.
    """
    try:
        import open_clip
    except ImportError:
        raise InputError(
            f"encoder: open_clip:{name}: open_clip is not installed; pip install open_clip_torch"
        ) from None
    model_name, _, tag = name.partition("/")
    if not tag:
        raise InputError(f"encoder: open_clip:{name} names no weights; wanted open_clip:MODEL/PRETRAINED")
    if options.pooling != "auto" or getattr(options, "bidirectional", False) or options.revision:
        raise InputError(
            f"encoder: open_clip:{name} does not support pooling, bidirectional and revision; remove these options"
        )
    check_downloads(f"open_clip:{name}")
    precision = {"float32": "fp32", "float16": "pure_fp16", "bfloat16": "pure_bf16"}[options.dtype]
    device = resolve_device(options.device)
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            model_name, pretrained=tag, precision=precision, device=device
        )
        tokenizer = open_clip.get_tokenizer(model_name) if isinstance(options, TextOptions) else None
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"encoder: open_clip:{name} cannot be opened ({reason})") from None
    model.eval().requires_grad_(False)
    base, revision = f"open_clip:{name}", _hash(model)
    if isinstance(options, ImageOptions):
        return OpenClipImage(model, preprocess, (base, revision), options)
    return OpenClipText(model, tokenizer, (base, revision), options)


class OpenClipImage:
    """model.encode_image with open_clip's own preprocessing, without normalisation."""

    def __init__(self, model: Any, preprocess: Any, name: tuple[str, str], options: ImageOptions) -> None:
        self._model, self._preprocess = model, preprocess
        self._device, self._batch = resolve_device(options.device), options.batch_size
        size = getattr(model.visual, "image_size", 224)
        size = int(size[0] if isinstance(size, Sequence) else size)
        with torch.inference_mode():
            pixels = preprocess(Image.new("RGB", (size, size)))[None]
            dim = int(model.encode_image(pixels.to(self._device)).shape[1])
        self._info = _info(name, "image", dim, {"size": size, "transform": repr(preprocess)}, options)

    @property
    def info(self) -> EncoderInfo:
        return self._info

    def prepare(self, item: Image.Image) -> Tensor:
        return cast(Tensor, self._preprocess(item))

    @torch.inference_mode()
    def encode(self, prepared: Sequence[Tensor]) -> Tensor:
        """B tensors -> (B, dim) float32 on the CPU."""
        chunks = [torch.stack(list(prepared[i : i + self._batch])) for i in range(0, len(prepared), self._batch)]
        found = [self._model.encode_image(chunk.to(self._device)) for chunk in chunks]
        return torch.cat([x.to("cpu", torch.float32) for x in found]) if found else torch.empty(0, self._info.dim)


class OpenClipText:
    """model.encode_text of texts padded or truncated by open_clip's tokenizer, without normalisation."""

    def __init__(self, model: Any, tokenizer: Any, name: tuple[str, str], options: TextOptions) -> None:
        if options.long_text == "split" or options.max_tokens or options.prompt:
            raise InputError(f"encoder: {name[0]} takes long_text=truncate or error and no max_tokens or prompt")
        self._model, self._tokenizer, self._long = model, tokenizer, options.long_text
        self._device, self._batch, self.truncated = resolve_device(options.device), options.batch_size, 0
        self.max_tokens = int(getattr(tokenizer, "context_length", None) or model.context_length)
        with torch.inference_mode():
            dim = int(model.encode_text(tokenizer(["a"]).to(self._device)).shape[1])
        self._info = _info(name, "text", dim, {"max_tokens": self.max_tokens}, options)

    @property
    def info(self) -> EncoderInfo:
        return self._info

    def prepare(self, item: str) -> str:
        return item

    def token_count(self, text: str) -> int:
        """Return the number of tokens of the whole text, special tokens included."""
        encode = getattr(self._tokenizer, "encode", None)
        if encode is not None:
            return len(encode(text)) + 2
        return len(self._tokenizer.tokenizer(text)["input_ids"])

    @torch.inference_mode()
    def encode(self, prepared: Sequence[str]) -> Tensor:
        """B texts -> (B, dim) float32 on the CPU."""
        long = [text for text in prepared if self.token_count(text) > self.max_tokens]
        if long and self._long == "error":
            raise InputError(
                f"encoder: {len(long)} of {len(prepared)} texts have more than {self.max_tokens} tokens (first: "
                f"{long[0][:60]!r}...); shorten them, or set long_text=truncate"
            )
        self.truncated += len(long)
        chunks = [list(prepared[i : i + self._batch]) for i in range(0, len(prepared), self._batch)]
        found = [self._model.encode_text(self._tokenizer(chunk).to(self._device)) for chunk in chunks]
        return torch.cat([x.to("cpu", torch.float32) for x in found]) if found else torch.empty(0, self._info.dim)


def _info(
    name: tuple[str, str], modality: Any, dim: int, preprocessing: Mapping[str, Any], options: EncoderOptions
) -> EncoderInfo:
    changed = {k: v for k, v in changed_options(options).items() if k != "max_tokens"}
    return EncoderInfo(
        name_with(name[0], options, two_towers=True), name[1], modality, dim, {**preprocessing, **changed}
    )


def _hash(model: nn.Module) -> str:
    """Return a hash of the weights; open_clip stores no commit."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode() + value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
