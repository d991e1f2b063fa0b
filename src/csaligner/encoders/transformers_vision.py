"""Image encoders of transformers: CLIP, SigLIP, SigLIP 2, DINOv2 and other vision models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from csaligner.checks import InputError
from csaligner.types import EncodedTokens, EncoderInfo, TokenSets

from .folder import ModelFolder
from .loading import load_model, quiet_loading, resolve_device
from .spec import ImageOptions, changed_options, name_with
from .text import States, project_tokens

PROJECTED = {
    "clip": "CLIPVisionModelWithProjection",
    "clip_vision_model": "CLIPVisionModelWithProjection",
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "siglip2": "Siglip2VisionModel",
    "siglip2_vision_model": "Siglip2VisionModel",
}
INPUTS = ("pixel_values", "pixel_attention_mask", "spatial_shapes")


class ImageTower(nn.Module):
    """A vision model with pooling. first: number of class and register tokens; pooling: see ImageOptions."""

    def __init__(self, model: Any, pooling: str, first: int, has_pooler: bool) -> None:
        super().__init__()
        self.model, self._pooling, self._first, self._has_pooler = model, pooling, first, has_pooler

    @property
    def backbone(self) -> nn.Module:
        model: nn.Module = self.model
        return model

    def forward(self, inputs: Mapping[str, Tensor]) -> States:
        """pixel_values (B, 3, H, W), or patches with their mask and shapes (SigLIP 2)."""
        pixels = inputs["pixel_values"].to(next(self.model.parameters()).dtype)
        out = self.model(**{**inputs, "pixel_values": pixels})
        patches = out.last_hidden_state
        if patches.ndim == 4:  # convolutional: (B, d, H, W)
            patches = patches.flatten(2).transpose(1, 2)
        patches = patches[:, self._first :]
        return States(self._pool(out, patches, inputs.get("pixel_attention_mask")), patches)

    def project_tokens(self, tokens: Tensor) -> Tensor:
        """Apply CLIP's last norm and projection, which map the class state to the features, to every patch."""
        projection = getattr(self.model, "visual_projection", None)
        if projection is None or self._pooling != "auto":
            return tokens
        found: Tensor = projection(self.model.vision_model.post_layernorm(tokens))
        return found

    def _pool(self, out: Any, patches: Tensor, mask: Tensor | None) -> Tensor:
        if self._pooling == "mean":
            weights = torch.ones_like(patches[..., :1]) if mask is None else mask[..., None].to(patches.dtype)
            return (patches * weights).sum(1) / weights.sum(1)
        projected = getattr(out, "image_embeds", None)
        pooled = getattr(out, "pooler_output", None) if self._has_pooler else None
        if self._pooling == "cls" or (projected is None and pooled is None):
            state: Tensor = out.last_hidden_state[:, 0]
            return state
        found: Tensor = pooled.flatten(1) if projected is None else projected  # type: ignore[union-attr]
        return found


class ImageEncoder:
    """A frozen vision tower with its image processor (PIL, for reproducibility): images -> features."""

    def __init__(self, tower: ImageTower, processor: Any, info: EncoderInfo, how: ImageOptions) -> None:
        self.tower, self._processor, self._info = tower, processor, info
        self._batch = how.batch_size

    @property
    def info(self) -> EncoderInfo:
        return self._info

    def prepare(self, item: Image.Image) -> Any:
        """(3, H, W) float32; for SigLIP 2 a mapping of its patches, their mask and their shape."""
        found = self._processor(images=item, return_tensors="pt")
        ready = {key: found[key][0] for key in INPUTS if key in found}
        return ready["pixel_values"] if len(ready) == 1 else ready

    @torch.inference_mode()
    def encode(self, prepared: Sequence[Any]) -> Tensor:
        """B prepared images -> (B, dim) float32 on the CPU."""
        rows = [self._run(prepared[i : i + self._batch]).pooled for i in range(0, len(prepared), self._batch)]
        return torch.cat([row.to("cpu", torch.float32) for row in rows]) if rows else torch.empty(0, self._info.dim)

    @torch.inference_mode()
    def encode_tokens(self, prepared: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """B prepared images -> tokens (B, T, d_token) float32, and the mask (B, T) of real patches.

        Class and register tokens are excluded. CLIP's patches are projected into the space of its features.
        """
        sets = TokenSets.of(self.encode_with_tokens(prepared).tokens)
        return sets.states, sets.mask

    @torch.inference_mode()
    def encode_with_tokens(self, prepared: Sequence[Any]) -> EncodedTokens:
        """Return features, and tokens as encode_tokens, of one forward pass."""
        rows, found = [torch.empty(0, self._info.dim)], []
        for i in range(0, len(prepared), self._batch):
            out = self._run(prepared[i : i + self._batch])
            assert out.tokens is not None
            rows.append(out.pooled.to("cpu", torch.float32))
            tokens = project_tokens(self.tower, out.tokens).to("cpu", torch.float32)
            mask = self.inputs(prepared[i : i + self._batch]).get("pixel_attention_mask")
            found += list(tokens) if mask is None else [t[own] for t, own in zip(tokens, mask.bool(), strict=True)]
        return EncodedTokens(torch.cat(rows), found)

    def inputs(self, prepared: Sequence[Any]) -> dict[str, Tensor]:
        """Return the inputs of the tower, one row per image."""
        if isinstance(prepared[0], Tensor):
            return {"pixel_values": torch.stack(list(prepared))}
        return {key: torch.stack([image[key] for image in prepared]) for key in prepared[0]}

    def _run(self, prepared: Sequence[Any]) -> States:
        device = next(self.tower.parameters()).device
        found: States = self.tower({key: value.to(device) for key, value in self.inputs(prepared).items()})
        return found


def open_image(folder: ModelFolder, options: ImageOptions) -> ImageEncoder:
    """Open the image encoder in `folder`. Raises InputError if it does not load or is not a vision model."""
    kind = PROJECTED.get(folder.model_type)
    with quiet_loading():
        processor = _processor(folder)
        model, has_pooler = load_model(kind or "AutoModel", folder, options.dtype)
    if model.main_input_name != "pixel_values":
        raise InputError(f"encoder: {folder.base} ({folder.model_type}) is not an image encoder; use ?modality=text")
    first = _tokens_before_patches(folder, model)
    if options.pooling == "cls" and first == 0:
        raise InputError(f"pooling: {folder.base} has no class token; got 'cls', wanted auto or mean")
    tower = ImageTower(model, options.pooling, first, has_pooler)
    tower.eval().requires_grad_(False).to(resolve_device(options.device))
    size = _size(processor)
    preprocessing = {"size": size, "pooling": options.pooling} | _pixels(processor)
    preprocessing |= {k: v for k, v in changed_options(options).items() if k not in {"pooling", "revision"}}
    info = EncoderInfo(name_with(folder.base, options, folder.two_towers), folder.revision, "image", 1, preprocessing)
    encoder = ImageEncoder(tower, processor, info, options)
    with torch.inference_mode():
        dim = int(encoder._run([encoder.prepare(Image.new("RGB", (size, size)))]).pooled.shape[1])
    encoder._info = replace(info, dim=dim)
    return encoder


def _processor(folder: ModelFolder) -> Any:
    import transformers

    slow = {"backend": "pil"} if int(transformers.__version__.split(".")[0]) >= 5 else {"use_fast": False}
    try:
        return transformers.AutoImageProcessor.from_pretrained(
            folder.path, local_files_only=True, trust_remote_code=False, **slow
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"encoder: {folder.base} contains no loadable image processor ({reason}); for text use ?modality=text"
        ) from None


def _tokens_before_patches(folder: ModelFolder, model: Any) -> int:
    """Return the number of class and register tokens; 0 for SigLIP and convolutional models."""
    names = [name for name, _ in model.named_parameters()]
    has_class = any(name.endswith(("cls_token", "class_embedding")) for name in names)
    return int(has_class) + int(getattr(model.config, "num_register_tokens", 0) or 0)


def _size(processor: Any) -> int:
    """Return the side length of the model's input, in pixels."""
    if getattr(processor, "max_num_patches", None):
        return int(processor.patch_size * math.isqrt(processor.max_num_patches))
    size = dict(processor.size or {})
    known = [size.get(key) for key in ("shortest_edge", "height", "width", "longest_edge")]
    return max((int(value) for value in known if value), default=224)


def _pixels(processor: Any) -> dict[str, Any]:
    """Return the preprocessing parameters as JSON values."""
    found: dict[str, Any] = {"mean": list(processor.image_mean or ()), "std": list(processor.image_std or ())}
    found["resample"] = int(processor.resample)
    crop = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None
    if crop:
        found["crop"] = [int(dict(crop)["height"]), int(dict(crop)["width"])]
    return found
