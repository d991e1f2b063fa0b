"""What collect.py wrote, as pixels: drawn, weighted, augmented. Needs torch, numpy, Pillow and resvg_py, not
csaligner."""

from __future__ import annotations

import io
import json
import lzma
import math
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

SIDE = 224
EMOJI, CLIPART = "emoji.jsonl.xz", "clipart.npz"
WEIGHTS = {  # of a drawing, by its set: one style is to be drawn, near copies in five skin tones count less
    "openmoji": 3.0,
    "openmoji-more": 1.5,
    "openmoji-toned": 0.6,
    "noto": 1.0,
    "twemoji": 1.0,
    "fluent": 1.0,
    "noto-toned": 0.2,
    "twemoji-toned": 0.2,
    "fluent-toned": 0.2,
    "clipart": 0.5,
}


@dataclass(frozen=True)
class Drawings:
    """pixels: (N, 3, SIDE, SIDE) uint8 on white; sets, ids: N names of each."""

    pixels: Tensor
    sets: tuple[str, ...]
    ids: tuple[str, ...]

    @property
    def weights(self) -> Tensor:
        return torch.tensor([WEIGHTS[name] for name in self.sets])


def load_drawings(folder: Path, split: str, workers: int, limit: int | None = None) -> Drawings:
    """Emoji of a split; of train the clip art too. limit: at most so many of each set, evenly spread."""
    with lzma.open(folder / EMOJI, "rt", encoding="utf-8") as file:
        rows = [row for line in file if (row := json.loads(line))["split"] == split]
    sources = [(row["set"], row["id"], row["svg"]) for row in rows]
    if split == "train" and (folder / CLIPART).is_file():
        stored = np.load(folder / CLIPART)
        whole, ends = stored["bytes"].tobytes(), np.cumsum(stored["lengths"])
        pieces = [whole[end - length : end] for end, length in zip(ends, stored["lengths"], strict=True)]
        sources += [("clipart", str(name), piece) for name, piece in zip(stored["names"], pieces, strict=True)]
    if limit is not None:
        sources = _spread(sources, limit)
    contents = [content for _, _, content in sources]
    if workers > 1:
        with Pool(workers) as pool:
            arrays = pool.map(draw, contents, chunksize=32)
    else:
        arrays = [draw(content) for content in contents]
    pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
    return Drawings(pixels, tuple(s for s, _, _ in sources), tuple(i for _, i, _ in sources))


def draw(content: str | bytes) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8 on white, of an SVG's text or the bytes of a square bitmap; as csaligner draws them."""
    if isinstance(content, bytes):
        bitmap = Image.open(io.BytesIO(content)).convert("RGB")
        return np.asarray(bitmap.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=content, width=SIDE, height=SIDE, dpi=96.0)
    drawn = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    white = Image.new("RGB", (SIDE, SIDE), "white")
    white.paste(drawn, ((SIDE - drawn.width) // 2, (SIDE - drawn.height) // 2), mask=drawn)
    return np.asarray(white)


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """(B, 3, S, S) uint8 -> the same on the same device: half of them turned by up to 20 degrees, all scaled by .75
    to 1.1 and shifted by up to 8 % of the side, half mirrored, a third with their channels swapped."""
    batch, device = len(pixels), pixels.device

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(batch, generator=generator, device=device) * (high - low) + low

    angle = uniform(-math.pi / 9, math.pi / 9) * (uniform(0, 1) < 0.5)
    zoom, mirror = 1 / uniform(0.75, 1.1), torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    matrix = torch.zeros(batch, 2, 3, device=device)
    matrix[:, 0, 0], matrix[:, 0, 1] = zoom * angle.cos() * mirror, -zoom * angle.sin()
    matrix[:, 1, 0], matrix[:, 1, 1] = zoom * angle.sin() * mirror, zoom * angle.cos()
    matrix[:, 0, 2], matrix[:, 1, 2] = uniform(-0.16, 0.16), uniform(-0.16, 0.16)
    ink = 255 - pixels.float()  # what lies outside is white
    moved = 255 - grid_sample(ink, affine_grid(matrix, list(ink.shape), align_corners=False), align_corners=False)
    order = torch.arange(3, device=device).repeat(batch, 1)
    swapped = torch.rand(batch, 3, generator=generator, device=device).argsort(dim=1)
    order = torch.where((uniform(0, 1) < 0.35)[:, None], swapped, order)
    moved = moved.gather(1, order[:, :, None, None].expand_as(moved))
    return moved.round().clamp(0, 255).to(torch.uint8)


def shrink(pixels: Tensor, side: int) -> Tensor:
    """(B, 3, S, S) uint8 -> (B, 3, side, side) uint8, bicubic with antialiasing, as Pillow's."""
    small = torch.nn.functional.interpolate(pixels.float(), size=(side, side), mode="bicubic", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8)


def _spread(sources: Sequence[tuple[str, str, str | bytes]], limit: int) -> list[tuple[str, str, str | bytes]]:
    kept = []
    for name in dict.fromkeys(source[0] for source in sources):
        own = [source for source in sources if source[0] == name]
        count = min(limit, len(own))
        kept += [own[i * len(own) // count] for i in range(count)]
    return kept


def load_network(weights: Path, device: torch.device):  # type: ignore[no-untyped-def]
    """EfficientNet-Lite0 of the package efficientnet_lite_pytorch; weights: its state dictionary, halves made
    floats."""
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0")
    state = torch.load(weights, map_location="cpu", weights_only=True)
    net.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in state.items()})
    layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
    return net.eval().requires_grad_(False).to(device, memory_format=layout)
