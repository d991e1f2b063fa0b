"""What costs no training: it stands beside every trained result."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn.functional import normalize

from csaligner.types import PairedFeatures

from .gap import caption_weights


@dataclass(frozen=True)
class MeanCentring:
    """x -> normalise(x / |x| - mean), each modality with the mean of its own training features."""

    mean_image: Tensor
    mean_text: Tensor

    @classmethod
    def fit(cls, train: PairedFeatures) -> MeanCentring:
        w = caption_weights(train).to(train.text.dtype)
        return cls(normalize(train.image, dim=1).mean(dim=0), w @ normalize(train.text, dim=1))

    def transform(self, features: PairedFeatures) -> PairedFeatures:
        image = normalize(normalize(features.image, dim=1) - self.mean_image, dim=1)
        text = normalize(normalize(features.text, dim=1) - self.mean_text, dim=1)
        return replace(features, image=image, text=text)
