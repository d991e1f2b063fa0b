"""The network of the layout decoder: pixels from an image embedding that holds layout and colour.

A U-Net at 32 x 32, 16 x 16 and 8 x 8 predicts the clean image x from x_t = (1 - t) x + t n, n standard normal
(rectified flow, Liu et al., ICLR 2023, with the prediction of x instead of the velocity). It starts from the colours
that the embedding holds. Needs torch alone, so that tools/micro_decoder trains it where csaligner is not installed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pixel_shuffle, pixel_unshuffle, scaled_dot_product_attention, silu

from csaligner.encoders.layout_features import Projection

GROUPS = 8  # of the group norms; divides every number of channels


@dataclass(frozen=True)
class LayoutSizes:
    """side: pixels of an image; channels: at 1/2, 1/4 and 1/8 of the side; blocks: residual blocks on the way down at
    1/2 and 1/4, and at the lowest level; modulation: of the vector that holds embedding, time and noise level; local:
    channels of the layout's own convolution; pooled_map: channels of the map that is linear in the pooled part."""

    side: int = 64
    channels: tuple[int, int, int] = (48, 96, 176)
    blocks: tuple[int, int, int] = (1, 2, 3)
    modulation: int = 224
    local: int = 64
    pooled_map: int = 8

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> LayoutSizes:
        """From JSON, which has no tuples."""
        ready: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**ready)


class LayoutNet(nn.Module):
    """(B, 3, S, S) noisy images in -1..1, (B,) times, (B, dim) embeddings, (B,) noise levels -> (B, 3, S, S) images.

    projection: of the embeddings; its inverse gives the network the layout, so that it is no part of the weights.
    level: standard deviation of the noise that was added to the embedding, in units of the training embeddings' own.
    An embedding of zeros is the mean one: what guidance leads away from.
    """

    def __init__(self, sizes: LayoutSizes, projection: Projection) -> None:
        super().__init__()
        self.sizes, self._names = sizes, tuple(projection.tensors)
        for name, tensor in projection.tensors.items():
            self.register_buffer(f"projection_{name}", tensor.float(), persistent=False)
        self.pooled = projection.dims["pooled"]
        zeros = torch.zeros(1, sum(projection.dims.values()), device=projection.tensors["pooled_mean"].device)
        seen = sum(image.shape[1] for image in projection.images(zeros))
        self.layout_scale: Tensor
        self.register_buffer("layout_scale", torch.ones(seen))
        fine, middle, coarse = sizes.channels
        wide = sizes.modulation
        self.embedding = nn.Linear(sum(projection.dims.values()), wide)
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, wide), nn.SiLU(), nn.Linear(wide, wide))
        self.pooled_map = nn.Linear(self.pooled, sizes.pooled_map * (sizes.side // 8) ** 2)
        self.local = nn.Sequential(
            nn.Conv2d(seen, sizes.local, 3, padding=1), nn.SiLU(), nn.Conv2d(sizes.local, sizes.local, 3, padding=1)
        )
        self.stem = nn.Conv2d(2 * 4 * 3 + seen, fine, 3, padding=1)
        self.down1 = _blocks(fine, fine, sizes.blocks[0], wide)
        self.narrow1 = nn.Conv2d(fine, middle, 3, stride=2, padding=1)
        self.join1 = nn.Conv2d(sizes.local, middle, 1)
        self.down2 = _blocks(middle, middle, sizes.blocks[1], wide)
        self.narrow2 = nn.Conv2d(middle, coarse, 3, stride=2, padding=1)
        self.join2 = nn.Conv2d(sizes.pooled_map, coarse, 1)
        self.middle = _blocks(coarse, coarse, sizes.blocks[2], wide)
        self.attention = Attention(coarse)
        self.widen2 = nn.Conv2d(coarse, middle, 1)
        self.up2 = _blocks(2 * middle, middle, sizes.blocks[1], wide)
        self.widen1 = nn.Conv2d(middle, fine, 1)
        self.up1 = _blocks(2 * fine, fine, sizes.blocks[0] + 1, wide)
        self.norm = nn.GroupNorm(GROUPS, fine)
        self.out = nn.Conv2d(fine, 4 * 3, 3, padding=1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    @property
    def projection(self) -> Projection:
        return Projection({name: getattr(self, f"projection_{name}") for name in self._names})

    def layout(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, S / 4, S / 4), what the embedding says of each position, and (B, 3, S, S), its colours as a draft."""
        quarter = self.sizes.side // 4
        maps = self.projection.images(embedding)
        sized = [interpolate(m, size=(quarter, quarter), mode="bilinear", align_corners=False) for m in maps]
        draft = interpolate(maps[-1], size=(self.sizes.side,) * 2, mode="bilinear", align_corners=False)
        return torch.cat(sized, dim=1), draft

    def forward(self, noisy: Tensor, time: Tensor, embedding: Tensor, level: Tensor) -> Tensor:
        sizes, batch = self.sizes, len(noisy)
        layout, draft = self.layout(embedding)
        layout = layout / self.layout_scale[:, None, None]
        pooled = self.pooled_map(embedding[:, : self.pooled]).view(batch, -1, sizes.side // 8, sizes.side // 8)
        modulation = silu(self.embedding(embedding) + self.time(torch.cat([waves(time), waves(level)], dim=1)))
        x = pixel_unshuffle(torch.cat([noisy, draft], dim=1), 2)
        x = torch.cat([x, interpolate(layout, scale_factor=2.0, mode="bilinear", align_corners=False)], dim=1)
        fine = _through(self.down1, self.stem(x), modulation)
        middle = _through(self.down2, self.narrow1(fine) + self.join1(self.local(layout)), modulation)
        x = self.middle[0](self.narrow2(middle) + self.join2(pooled), modulation)
        x = _through(self.middle[1:], self.attention(x), modulation)
        x = _through(self.up2, torch.cat([_twice(self.widen2(x)), middle], dim=1), modulation)
        x = _through(self.up1, torch.cat([_twice(self.widen1(x)), fine], dim=1), modulation)
        found: Tensor = draft + pixel_shuffle(self.out(silu(self.norm(x))), 2)
        return found


FREQUENCIES = 32  # of each of time and level: FREQUENCIES / 2 sines and as many cosines


def waves(value: Tensor) -> Tensor:
    """(B,) in 0..1 -> (B, FREQUENCIES): sines and cosines of frequencies from 1/2 to 64 half turns."""
    frequencies = torch.exp2(torch.linspace(-1, 6, FREQUENCIES // 2, device=value.device, dtype=value.dtype))
    angle = math.pi * value[:, None] * frequencies
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class Block(nn.Module):
    """Residual block; the modulation scales and shifts what the second convolution sees."""

    def __init__(self, given: int, wanted: int, modulation: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(GROUPS, given), nn.Conv2d(given, wanted, 3, padding=1)
        self.modulate = nn.Linear(modulation, 2 * wanted)
        self.norm2, self.conv2 = nn.GroupNorm(GROUPS, wanted), nn.Conv2d(wanted, wanted, 3, padding=1)
        self.skip = nn.Conv2d(given, wanted, 1) if given != wanted else nn.Identity()
        for parameter in self.conv2.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        scale, shift = self.modulate(modulation)[:, :, None, None].chunk(2, dim=1)
        y = self.norm2(self.conv1(silu(self.norm1(x))))
        found: Tensor = self.skip(x) + self.conv2(silu(y * (1 + scale) + shift))
        return found


class Attention(nn.Module):
    """Self-attention over positions, heads of 36 to 40 channels."""

    HEADS = 4

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        rows = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(rows).view(batch, height * width, 3, self.HEADS, -1).permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, height * width, channels)
        found: Tensor = x + self.out(seen).transpose(1, 2).view(batch, channels, height, width)
        return found


def sample(
    net: LayoutNet,
    embedding: Tensor,
    noise: Tensor,
    steps: int,
    guidance: float,
    level: float = 0.0,
    null: Tensor | None = None,
) -> Tensor:
    """(B, 3, S, S) images in -1..1: Euler steps of dx/dt = (x - x') / t from noise at t = 1 to t = 0, x' the
    prediction.

    guidance g > 1: x' = x'(null) + g (x'(embedding) - x'(null)); null: (dim,), zeros where it is None.
    """
    x, batch = noise, len(noise)
    times = torch.linspace(1, 0, steps + 1, device=x.device)
    levels = torch.full((batch,), level, device=x.device)
    away = torch.zeros_like(embedding) if null is None else null.expand_as(embedding)
    for now, later in pairwise(times):
        if guidance > 1:
            both = net(x.repeat(2, 1, 1, 1), now.expand(2 * batch), torch.cat([away, embedding]), levels.repeat(2))
            without, found = both.chunk(2)
            found = without + guidance * (found - without)
        else:
            found = net(x, now.expand(batch), embedding, levels)
        x = found + (x - found) * (later / now)
    return x.clamp(-1, 1)


def _blocks(given: int, wanted: int, count: int, modulation: int) -> nn.ModuleList:
    return nn.ModuleList(Block(given if i == 0 else wanted, wanted, modulation) for i in range(count))


def _through(blocks: nn.ModuleList, x: Tensor, modulation: Tensor) -> Tensor:
    for block in blocks:
        x = block(x, modulation)
    return x


def _twice(x: Tensor) -> Tensor:
    return interpolate(x, scale_factor=2.0, mode="nearest")
