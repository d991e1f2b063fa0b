"""Image preprocessing: letterboxing to a square and conversion to a tensor."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def fit_square(image: Image.Image, size: int) -> Image.Image:
    """Return the image scaled to fit a white size x size square, centred."""
    ratio = size / max(image.size)
    width, height = (max(1, round(side * ratio)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    if width == height:
        return image
    square = Image.new("RGB", (size, size), "white")
    square.paste(image, ((size - width) // 2, (size - height) // 2))
    return square


def to_tensor(image: Image.Image) -> Tensor:
    """Convert an RGB image to a (3, H, W) uint8 tensor."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
