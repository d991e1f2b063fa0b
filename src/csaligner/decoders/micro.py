"""Micro decoder: a small KandinskyV22Pipeline for one CPU.

A UNet2DConditionModel conditioned only on the image embedding (added to the time embedding, and as 32 tokens for cross
attention), a VQModel without use of its codebook, and a DDIM scheduler with v-prediction.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from csaligner.checks import InputError
from csaligner.config import Strict
from csaligner.files import write_folder, write_text
from csaligner.integrity import ErrorContext, check_checksums, load_tensors, write_checksums

from .contract import Contract, write_contract

GROUPS = 8  # of group norms; divides all channel counts
HEAD_DIM = 16
WEIGHTS = "diffusion_pytorch_model.safetensors"


class MicroConfig(Strict):
    """size: side length in pixels; embedding_dim: of the image encoder; channels: per level, finest first.

    The auto-encoder halves the resolution at each level after the first.
    """

    size: Annotated[int, Field(ge=8)] = 32
    embedding_dim: Annotated[int, Field(ge=1)] = 1280
    latent_channels: Annotated[int, Field(ge=1)] = 8
    autoencoder_channels: tuple[int, ...] = (24, 48, 64)
    unet_channels: tuple[int, ...] = (80, 112)
    attention_dim: Annotated[int, Field(ge=1)] = 16


@dataclass(frozen=True)
class MicroParts:
    """The modules of a KandinskyV22Pipeline."""

    unet: Any
    movq: Any
    scheduler: Any

    def pipeline(self) -> Any:
        return diffusers().KandinskyV22Pipeline(unet=self.unet, scheduler=self.scheduler, movq=self.movq)


def diffusers() -> Any:
    """Return the package diffusers. Raises InputError if it is not installed."""
    try:
        import diffusers as package
    except ImportError as error:
        raise InputError(f"generate: {error}; pip install 'csaligner[generate]'") from None
    return package


def build_micro(config: MicroConfig) -> MicroParts:
    """Return new modules, initialised with torch's global generator."""
    package = diffusers()
    levels = len(config.autoencoder_channels)
    movq = package.VQModel(
        sample_size=config.size,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.autoencoder_channels,
        latent_channels=config.latent_channels,
        num_vq_embeddings=1,
        norm_num_groups=GROUPS,
        mid_block_add_attention=False,
    )
    inner = len(config.unet_channels) - 1
    unet = package.UNet2DConditionModel(
        sample_size=config.size // 2 ** (levels - 1),
        in_channels=config.latent_channels,
        out_channels=2 * config.latent_channels,  # the class also predicts a variance, which is unused
        block_out_channels=config.unet_channels,
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D",) + ("SimpleCrossAttnDownBlock2D",) * inner,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D",) * inner + ("ResnetUpsampleBlock2D",),
        cross_attention_dim=config.attention_dim,
        attention_head_dim=HEAD_DIM,
        addition_embed_type="image",
        encoder_hid_dim_type="image_proj",
        encoder_hid_dim=config.embedding_dim,
        resnet_time_scale_shift="scale_shift",
        norm_num_groups=GROUPS,
    )
    scheduler = package.DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    return MicroParts(unet, movq, scheduler)


def encode_pictures(movq: Any, pixels: Tensor) -> Tensor:
    """Encode (N, 3, S, S) uint8 -> latents (N, C, S / f, S / f)."""
    latents: Tensor = movq.encode(to_unit(pixels)).latents
    return latents


def to_unit(pixels: Tensor) -> Tensor:
    """Scale uint8 0..255 to float32 -1..1, the range of the auto-encoder."""
    return pixels.float() / 127.5 - 1


def standardise_latents(movq: Any, mean: Tensor, std: Tensor) -> None:
    """Fold (z - mean) / std, per channel, into the 1 x 1 convolutions around the latents; outputs do not change.

    The pipeline neither shifts nor scales latents, so the auto-encoder must produce mean 0 and variance 1.
    """
    with torch.no_grad():
        out, back = movq.quant_conv, movq.post_quant_conv
        back.bias += torch.einsum("oc,c->o", back.weight[:, :, 0, 0], mean)
        back.weight *= std[None, :, None, None]
        out.weight /= std[:, None, None, None]
        out.bias.copy_((out.bias - mean) / std)


def take_raw_embeddings(unet: Any, mean: Tensor, scale: Tensor) -> None:
    """Convert a UNet trained on (e - mean) / scale to take e.

    W (e - mean) / scale + b = (W / scale) e + (b - (W / scale) mean), in the two embedding layers.
    """
    with torch.no_grad():
        for layer in _embedding_layers(unet):
            layer.weight /= scale
            layer.bias.sub_(layer.weight @ mean)


def take_standardised_embeddings(unet: Any, mean: Tensor, scale: Tensor) -> None:
    """Convert a UNet that takes e to take (e - mean) / scale; inverse of take_raw_embeddings."""
    with torch.no_grad():
        for layer in _embedding_layers(unet):
            layer.bias.add_(layer.weight @ mean)
            layer.weight *= scale


def _embedding_layers(unet: Any) -> tuple[nn.Linear, nn.Linear]:
    return unet.encoder_hid_proj.image_embeds, unet.add_embedding.image_proj


def load_micro(folder: Path, config: MicroConfig) -> MicroParts:
    """Load a folder written by save_micro, in single precision, taking raw embeddings.

    Raises InputError for a damaged folder and for sizes that differ from `config`.
    """
    owner = ErrorContext("start", "copy the folder again, or train it again")
    check_checksums(folder, owner)
    parts = build_micro(config)
    try:
        parts.unet.load_state_dict(load_tensors(folder / "unet" / WEIGHTS, owner))
        parts.movq.load_state_dict(load_tensors(folder / "movq" / WEIGHTS, owner))
    except (OSError, RuntimeError):
        raise InputError(
            f"start: {folder} is not a micro decoder of the sizes of `model`; give a folder written by "
            "`csaligner train-decoder` with the same `model`, or remove `start`"
        ) from None
    return parts


def save_micro(parts: MicroParts, contract: Contract, folder: Path, card: str) -> None:
    """Write a KandinskyV22Pipeline folder in half precision, with contract and model card, atomically."""

    def write(temporary: Path) -> None:
        half = MicroParts(copy.deepcopy(parts.unet).half(), copy.deepcopy(parts.movq).half(), parts.scheduler)
        half.pipeline().save_pretrained(str(temporary), safe_serialization=True)
        write_contract(contract, temporary)
        write_checksums(temporary)
        write_text(temporary / "README.md", card)  # not covered by the checksums, so it can be edited

    write_folder(folder, write)
