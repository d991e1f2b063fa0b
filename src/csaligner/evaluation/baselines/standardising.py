"""Standardising: mean-centring, then every coordinate divided by its standard deviation."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn.functional import normalize

from csaligner.evaluation.gap import caption_weights
from csaligner.types import PairedFeatures

from .mean_centring import MeanCentring


@dataclass(frozen=True)
class Standardising:
    """x -> normalise((x / |x| - mean) / sd), per coordinate, with the training moments of each modality."""

    centring: MeanCentring
    sd_image: Tensor
    sd_text: Tensor

    @classmethod
    def fit(cls, train: PairedFeatures) -> Standardising:
        centring = MeanCentring.fit(train)
        image, text = centring.shift(train)
        w = caption_weights(train).to(text.dtype)
        return cls(centring, _floored(image.square().mean(dim=0).sqrt()), _floored((w @ text.square()).sqrt()))

    def transform(self, features: PairedFeatures) -> PairedFeatures:
        image, text = self.centring.shift(features)
        return replace(
            features, image=normalize(image / self.sd_image, dim=1), text=normalize(text / self.sd_text, dim=1)
        )


def _floored(sd: Tensor) -> Tensor:
    """Return sd with a lower bound, so that constant coordinates stay finite."""
    return sd.clamp_min(1e-6 * float(sd.max()))
