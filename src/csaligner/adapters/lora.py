"""LoRA in the encoders, trained together with the adapters and saved in PEFT's format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from csaligner.checks import InputError
from csaligner.config import LoRAConfig
from csaligner.extras import install_command
from csaligner.files import move_up, write_folder
from csaligner.integrity import check_checksums, write_checksums
from csaligner.types import TEXT_STATES, Inputs, Modality, TokenPairs, TokenSets

from .aligner import Aligner
from .folder import CHECKPOINT
from .prior_network import CONTEXT

ATTENTION = (
    *("q_proj", "k_proj", "v_proj", "query", "key", "value", "q_lin", "k_lin", "v_lin", "c_attn"),
    *("qkv", "qkv_proj", "query_key_value", "Wqkv", "q", "k", "v"),
)
FOLDERS: Mapping[Modality, str] = {"image": "image_lora", "text": "text_lora"}
MARK = "+lora"  # suffix of an encoder fingerprint: features of the frozen encoder do not match


class Pooled(Protocol):
    @property
    def pooled(self) -> Tensor: ...

    @property
    def tokens(self) -> Tensor | None: ...


class EncoderTower(Protocol):
    """Network of an encoder: returns pooled features of its inputs; LoRA is added to `backbone`."""

    @property
    def backbone(self) -> nn.Module: ...

    def __call__(self, inputs: Mapping[str, Tensor]) -> Pooled: ...


@runtime_checkable
class TunableEncoder(Protocol):
    """An encoder that can be trained: `inputs` collates prepared items for `tower`, which returns features."""

    tower: nn.Module

    def inputs(self, prepared: Sequence[Any]) -> dict[str, Tensor]: ...


class LoRAAligner(nn.Module):
    """An Aligner with LoRA in one or both encoders: W x becomes W x + (alpha / rank) B A x in the attention layers.

    Hu et al., ICLR 2022. A is (rank, d_in); B is (d_out, rank) and initialised to zero, so a new model is equal to the
    frozen encoders with the adapters. csaligner.AlignedModel opens what `save` writes, and can merge it into W.

    towers: modality -> the encoder's tower, modified in place: the encoder then encodes with LoRA. A modality without
    a tower takes cached features.
    """

    def __init__(self, heads: Aligner, towers: Mapping[Modality, EncoderTower], config: LoRAConfig) -> None:
        super().__init__()
        if not towers:
            raise InputError("lora: got no encoder, wanted the image encoder, the text encoder or both")
        self.heads = heads
        self.towers = nn.ModuleDict({side: cast(nn.Module, tower) for side, tower in towers.items()})
        self._peft: dict[Modality, Any] = {side: _insert(tower.backbone, config) for side, tower in towers.items()}
        for side in towers:
            _mark(heads, side)

    @property
    def log_logit_scale(self) -> nn.Parameter:
        return self.heads.log_logit_scale

    @property
    def logit_scale(self) -> Tensor:
        return self.heads.logit_scale

    def encode_image(self, image: Inputs) -> Tensor:
        """Map features (N, dim_image) or inputs of the image encoder to unit rows (N, dim)."""
        return self.heads.encode_image(cast(Tensor, self._features("image", image)))

    def encode_text(self, text: Inputs) -> Tensor:
        """Map features (M, dim_text) or inputs of the text encoder to unit rows (M, dim)."""
        return self.heads.encode_text(self._features("text", text))

    def forward(self, image: Inputs, text: Inputs) -> tuple[Tensor, Tensor]:
        return self.encode_image(image), self.encode_text(text)

    def with_tokens(
        self, image: Inputs, text: Inputs, tokens: TokenPairs, owners: Tensor
    ) -> tuple[Tensor, Tensor, TokenPairs]:
        """Return forward(image, text) and the tokens of the P pairs, as Aligner.with_tokens; those of a trained encoder
        come from this pass, the others from `tokens`. owners: (P,), the row in `image` of each of the first P texts."""
        found = {side: self._pass(side, inputs) for side, inputs in (("image", image), ("text", text))}
        (x, own_image), (y, own_text) = found["image"], found["text"]
        pairs = TokenPairs(
            tokens.image if own_image is None else TokenSets(own_image.states[owners], own_image.mask[owners]),
            tokens.text
            if own_text is None
            else TokenSets(own_text.states[: len(owners)], own_text.mask[: len(owners)]),
        )
        return self.heads.with_tokens(cast(Tensor, x), y, pairs)

    def save(self, folder: Path) -> None:
        """Write the adapters as Aligner.save does, and for each tower a folder in PEFT's format (adapter_config.json,
        adapter_model.safetensors) for PeftModel.from_pretrained. Encoder weights are not written."""

        def write(temporary: Path) -> None:
            self.heads.save(temporary / "heads")
            move_up(temporary / "heads")
            for side, model in self._peft.items():
                for config in model.peft_config.values():
                    config.target_modules = sorted(config.target_modules)  # a set: its order varies between processes
                model.save_pretrained(temporary / FOLDERS[side], safe_serialization=True)
                (temporary / FOLDERS[side] / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
            write_checksums(temporary)

        write_folder(folder, write)

    def _features(self, side: str, inputs: Inputs) -> Inputs:
        return self._pass(side, inputs)[0]

    def _pass(self, side: str, inputs: Inputs) -> tuple[Inputs, TokenSets | None]:
        """Return the features of one modality, with hidden states if the heads read them, and its tokens; None for the
        tokens of a frozen encoder."""
        if side not in self.towers:
            return inputs, None
        given, tower = cast(Mapping[str, Tensor], inputs), self.towers[side]
        found, dtype = cast(EncoderTower, tower)(given), self.log_logit_scale.dtype
        pooled, states = found.pooled.to(dtype), found.tokens
        if states is None:
            return pooled, None
        project = getattr(tower, "project_tokens", None)
        tokens = (states if project is None else project(states)).to(dtype)
        seen = given.get("content_mask" if side == "text" else "pixel_attention_mask")
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if seen is None else seen.bool()
        sets = TokenSets(tokens, mask | ~mask.any(dim=1, keepdim=True))  # an empty text: all of its tokens
        if side == "image" or not self.heads.reads_states:
            return pooled, sets
        attended = given["attention_mask"][:, :CONTEXT].bool()
        return dict(zip(TEXT_STATES, (pooled, states[:, :CONTEXT], attended), strict=True)), sets


def lora_sides(folder: Path) -> tuple[Modality, ...]:
    """Return the modalities with LoRA weights in a folder written by LoRAAligner.save (empty for Aligner.save)."""
    return tuple(side for side, name in FOLDERS.items() if (folder / name).is_dir())


def load_lora(folder: Path, side: Modality, tower: Any) -> Any:
    """Load the LoRA weights of one modality, written by LoRAAligner.save, into the tower of a newly opened encoder.

    Returns the PeftModel around the tower's backbone. Raises InputError."""
    check_checksums(folder, CHECKPOINT)
    model = _read(tower.backbone, folder / FOLDERS[side])
    cast(nn.Module, tower).eval()
    return model


def _mark(heads: Aligner, side: Modality) -> None:
    name = f"{side}_encoder"
    fingerprint = getattr(heads.config, name)
    if fingerprint is not None and not fingerprint.endswith(MARK):
        heads.config = heads.config.model_copy(update={name: fingerprint + MARK})


def _insert(backbone: nn.Module, config: LoRAConfig) -> Any:
    """Return a PeftModel around `backbone`; replaces its attention layers in place."""
    peft = _peft()
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets) if config.targets else _attention_layers(backbone),
        bias="none",
    )
    try:
        return peft.get_peft_model(backbone, settings)
    except ValueError as error:
        raise InputError(f"lora: {' '.join(str(error).split())[:200]}") from None


def _attention_layers(backbone: nn.Module) -> list[str]:
    """Return the last name components of the linear layers for queries, keys and values."""
    names = [n.rpartition(".")[2] for n, m in backbone.named_modules() if type(m).__name__ in {"Linear", "Conv1D"}]
    found = sorted(set(names) & set(ATTENTION))
    if not found:
        raise InputError(
            f"lora: {type(backbone).__name__} has no attention layer with a known name; set lora.targets, for example "
            f"to {sorted(set(names))[:3]}"
        )
    return found


def _read(backbone: nn.Module, folder: Path) -> Any:
    if not (folder / "adapter_model.safetensors").is_file():  # else peft loads pickled weights or queries the hub
        raise InputError(f"lora: {folder} holds no adapter_model.safetensors; pickled weights are not read")
    try:
        return _peft().PeftModel.from_pretrained(backbone, str(folder), is_trainable=False)
    except (ValueError, TypeError, OSError, RuntimeError, KeyError, SafetensorError) as error:
        raise InputError(f"lora: {folder} does not match the encoder ({' '.join(str(error).split())[:160]})") from None


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise InputError(f"lora: peft is not installed; {install_command('hf')}") from None
    return peft
