"""Procrustes: mean-centring, then a rotation of the texts onto the images."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.evaluation.gap import caption_weights
from csaligner.types import PairedFeatures

from .mean_centring import MeanCentring


@dataclass(frozen=True)
class Procrustes:
    """Mean-centring, then the rotation of the texts that minimises the distance of pairs (Schoenemann 1966)."""

    centring: MeanCentring
    rotation: Tensor

    @classmethod
    def fit(cls, train: PairedFeatures) -> Procrustes:
        centring = MeanCentring.fit(train)
        image, text = centring.shift(train)
        w = caption_weights(train).to(text.dtype)
        u, _, vh = torch.linalg.svd((w[:, None] * text).T @ image[train.text_to_image])
        return cls(centring, u @ vh)

    def transform(self, features: PairedFeatures) -> PairedFeatures:
        image, text = self.centring.shift(features)
        return replace(features, image=normalize(image, dim=1), text=normalize(text @ self.rotation, dim=1))
