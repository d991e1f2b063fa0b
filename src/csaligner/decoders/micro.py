"""The micro decoder: Kandinsky 2.2's decoder, of the same classes, small enough for one CPU.

A UNet2DConditionModel that sees an image embedding and nothing else (added to the time embedding, and as 32 tokens
that it attends to), a VQModel whose codebook is never used, and a DDIM scheduler with v-prediction. Together they
are a KandinskyV22Pipeline: saved, loaded and called as the public one.
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

GROUPS = 8  # of the group norms; divides every number of channels
HEAD_DIM = 16
WEIGHTS = "diffusion_pytorch_model.safetensors"


class MicroConfig(Strict):
    """size: pixels of a side; embedding_dim: of the image encoder; channels: of each level, finest first.

    The auto-encoder halves the side once a level after its first.
    """

    size: Annotated[int, Field(ge=8)] = 32
    embedding_dim: Annotated[int, Field(ge=1)] = 1280
    latent_channels: Annotated[int, Field(ge=1)] = 8
    autoencoder_channels: tuple[int, ...] = (24, 48, 64)
    unet_channels: tuple[int, ...] = (80, 112)
    attention_dim: Annotated[int, Field(ge=1)] = 16


@dataclass(frozen=True)
class MicroParts:
    """The modules that a KandinskyV22Pipeline is made of."""

    unet: Any
    movq: Any
    scheduler: Any

    def pipeline(self) -> Any:
        return diffusers().KandinskyV22Pipeline(unet=self.unet, scheduler=self.scheduler, movq=self.movq)


def diffusers() -> Any:
    """The package diffusers; an InputError names the extra to install where it is absent."""
    try:
        import diffusers as package
    except ImportError as error:
        raise InputError(f"generate: {error}; pip install 'csaligner[generate]'") from None
    return package


def build_micro(config: MicroConfig) -> MicroParts:
    """New modules, randomly initialised from torch's global generator."""
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
        out_channels=2 * config.latent_channels,  # the class predicts a variance too; this one is not used
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
    """(N, 3, S, S) uint8 -> latents (N, C, S / f, S / f)."""
    latents: Tensor = movq.encode(to_unit(pixels)).latents
    return latents


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 0..255 -> float32 -1..1, the range of the auto-encoder."""
    return pixels.float() / 127.5 - 1


def standardise_latents(movq: Any, mean: Tensor, std: Tensor) -> None:
    """Fold (z - mean) / std, by channel, into the 1 x 1 convolutions around the latents; pictures do not change.

    A pipeline of this class neither shifts nor scales latents, so they must have mean 0 and variance 1 by
    themselves.
    """
    with torch.no_grad():
        out, back = movq.quant_conv, movq.post_quant_conv
        back.bias += torch.einsum("oc,c->o", back.weight[:, :, 0, 0], mean)
        back.weight *= std[None, :, None, None]
        out.weight /= std[:, None, None, None]
        out.bias.copy_((out.bias - mean) / std)


def take_raw_embeddings(unet: Any, mean: Tensor, scale: Tensor) -> None:
    """Make a UNet that was trained on (e - mean) / scale take e itself.

    W (e - mean) / scale + b = (W / scale) e + (b - (W / scale) mean), in the two layers that see the embedding.
    """
    with torch.no_grad():
        for layer in _embedding_layers(unet):
            layer.weight /= scale
            layer.bias.sub_(layer.weight @ mean)


def take_standardised_embeddings(unet: Any, mean: Tensor, scale: Tensor) -> None:
    """The inverse of take_raw_embeddings: a UNet that takes e is made to take (e - mean) / scale."""
    with torch.no_grad():
        for layer in _embedding_layers(unet):
            layer.bias.add_(layer.weight @ mean)
            layer.weight *= scale


def _embedding_layers(unet: Any) -> tuple[nn.Linear, nn.Linear]:
    return unet.encoder_hid_proj.image_embeds, unet.add_embedding.image_proj


def load_micro(folder: Path, config: MicroConfig) -> MicroParts:
    """The modules of a folder that save_micro wrote, in single precision, taking raw embeddings.

    Raises InputError for a damaged folder and for a decoder of other sizes than `config`.
    """
    owner = ErrorContext("start", "copy the folder again, or train it again")
    check_checksums(folder, owner)
    parts = build_micro(config)
    try:
        parts.unet.load_state_dict(load_tensors(folder / "unet" / WEIGHTS, owner))
        parts.movq.load_state_dict(load_tensors(folder / "movq" / WEIGHTS, owner))
    except (OSError, RuntimeError):
        raise InputError(
            f"start: {folder} is no micro decoder of the sizes of `model`; give a folder that "
            "`csaligner train-decoder` wrote with the same `model`, or leave `start` out"
        ) from None
    return parts


def save_micro(parts: MicroParts, contract: Contract, folder: Path, card: str) -> None:
    """The folder of a KandinskyV22Pipeline in half precision, with its contract and model card beside it."""

    def write(temporary: Path) -> None:
        half = MicroParts(copy.deepcopy(parts.unet).half(), copy.deepcopy(parts.movq).half(), parts.scheduler)
        half.pipeline().save_pretrained(str(temporary), safe_serialization=True)
        write_contract(contract, temporary)
        write_checksums(temporary)
        write_text(temporary / "README.md", card)  # people may edit it

    write_folder(folder, write)
