"""The numbers behind `bundled:efficientnet-lite0-layout`: what an image shows, and where, in one vector.

Needs torch alone, so that tools/micro_decoder computes them on a GPU where csaligner is not installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

MEAN, SCALE = 127.0, 128.0
BLOCKS = {"fine": 0, "map": 4}  # whose outputs are kept as maps
GRID = 14  # positions a side of both maps
COLOUR_GRID = 16
PARTS = ("pooled", "map", "fine", "colour")  # of an embedding, in this order


@dataclass(frozen=True)
class Features:
    """pooled: (B, 1280), the last map averaged over positions; map: (B, 40, GRID, GRID), the output of block 4, and
    fine: (B, 16, GRID, GRID), that of block 0, both averaged to GRID positions a side; colour: (B, 3, COLOUR_GRID,
    COLOUR_GRID), the image averaged in the same way, in -1..1."""

    pooled: Tensor
    map: Tensor
    fine: Tensor
    colour: Tensor


def features(net: Any, pixels: Tensor) -> Features:
    """net: EfficientNet-Lite0 of the package efficientnet_lite_pytorch; pixels: (B, 3, 224, 224) in 0..255."""
    return features_and_map(net, pixels)[0]


def features_and_map(net: Any, pixels: Tensor) -> tuple[Features, Tensor]:
    """Return features(net, pixels) and the last map, (B, 1280, 7, 7), whose mean over positions is `pooled`."""
    pixels = pixels.float()
    faster = torch.contiguous_format if pixels.is_cuda else torch.channels_last
    x = ((pixels - MEAN) / SCALE).contiguous(memory_format=faster)
    x = net._swish(net._bn0(net._conv_stem(x)))
    maps: dict[str, Tensor] = {}
    for number, block in enumerate(net._blocks):
        x = block(x)
        maps |= {name: adaptive_avg_pool2d(x, GRID) for name, kept in BLOCKS.items() if kept == number}
    last = net._swish(net._bn1(net._conv_head(x)))
    colour = adaptive_avg_pool2d(pixels, COLOUR_GRID) / 127.5 - 1
    return Features(last.mean((2, 3)), maps["map"], maps["fine"], colour), last


@dataclass(frozen=True)
class Projection:
    """Features -> an embedding of the four PARTS, fitted on training images (tools/micro_decoder/fit_embedding.py).

    Each part is (x - mean) axes scale, axes (d, k) being the leading principal directions of the part, not whitened;
    the channels of both maps are first reduced in the same way. The scales give each part a fixed share of the mean
    squared length. tensors: `<part>_mean`, `<part>_axes`, `<part>_scale`, and `<map>_channel_mean`,
    `<map>_channel_axes`.
    """

    tensors: Mapping[str, Tensor]

    def __call__(self, found: Features) -> Tensor:
        """(B, dim) float32."""
        return torch.cat([self._part(name, self.reduced(name, getattr(found, name))) for name in PARTS], dim=1)

    def tokens(self, embedding: Tensor, last: Tensor) -> Tensor:
        """(B, dim) and the last map (B, 1280, h, w) -> (B, h w, dim): the pooled part of each position beside the other
        parts of the whole image, so that their mean is the embedding."""
        positions = self._part("pooled", last.flatten(2).transpose(1, 2))
        rest = embedding[:, None, positions.shape[2] :].expand(-1, positions.shape[1], -1)
        return torch.cat([positions, rest], dim=2)

    def reduced(self, name: str, x: Tensor) -> Tensor:
        """(B, d): a part as it is before its principal directions."""
        if name in BLOCKS:
            mean, axes = self.tensors[f"{name}_channel_mean"], self.tensors[f"{name}_channel_axes"]
            x = torch.einsum("bchw,ck->bkhw", x - mean[None, :, None, None], axes)
        return x.flatten(1)

    def _part(self, name: str, x: Tensor) -> Tensor:
        t = self.tensors
        return (x - t[f"{name}_mean"]) @ t[f"{name}_axes"] * t[f"{name}_scale"]

    @property
    def dims(self) -> dict[str, int]:
        """Of each part."""
        return {name: self.tensors[f"{name}_axes"].shape[1] for name in PARTS}

    def to(self, device: torch.device) -> Projection:
        """In single precision on that device."""
        return Projection({name: tensor.float().to(device) for name, tensor in self.tensors.items()})

    def images(self, embedding: Tensor) -> list[Tensor]:
        """(B, dim) -> what its map, fine and colour parts say of each position: (B, c, side, side) each, maps with
        mean 0, colour in about -1..1. The inverse of the projection as far as it can be inverted."""
        pieces = dict(zip(PARTS, torch.split(embedding, list(self.dims.values()), dim=1), strict=True))
        found = []
        for name, side in (("map", GRID), ("fine", GRID), ("colour", COLOUR_GRID)):
            t = self.tensors
            rows = pieces[name] / t[f"{name}_scale"] @ t[f"{name}_axes"].T
            found.append((rows + t["colour_mean"] if name == "colour" else rows).view(len(rows), -1, side, side))
        return found
