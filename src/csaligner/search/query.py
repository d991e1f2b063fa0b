"""Queries of an index: a text, an image or both, and their encoder features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from csaligner.adapters.fusion import WEIGHT, check_image_weight
from csaligner.types import Modality


@dataclass(frozen=True)
class FusedQuery:
    """A query of words and an image, searched as one vector: normalise(w * image + (1 - w) * text) of their
    vectors in the space (adapters/fusion.py). image_weight: w; 1 and 0 search with the image or text alone."""

    text: str
    image: Path | Image.Image
    image_weight: float = WEIGHT

    def __post_init__(self) -> None:
        check_image_weight(self.image_weight)


Query = str | Path | Image.Image | FusedQuery
Kind = Modality | float  # of a query: its modality, or for both the weight of the image, between 0 and 1


@dataclass(frozen=True)
class Encoded:
    """An encoded query. features: encoder features (d_encoder,) of its text, its image or both; image_weight: used
    if there are both."""

    features: Mapping[Modality, Tensor]
    image_weight: float = WEIGHT

    @property
    def shares(self) -> dict[Modality, float]:
        """The weight of each modality that counts: one of them at weights 0 and 1."""
        if len(self.features) == 1:
            return dict.fromkeys(self.features, 1.0)
        found: dict[Modality, float] = {"image": self.image_weight, "text": 1 - self.image_weight}
        return {modality: share for modality, share in found.items() if share}

    @property
    def kind(self) -> Kind:
        """The kind of the query: what counts in it."""
        shares = self.shares
        return next(iter(shares)) if len(shares) == 1 else float(self.image_weight)
