"""Mean-centring: each modality minus its training mean."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn.functional import normalize

from csaligner.evaluation.gap import caption_weights
from csaligner.types import PairedFeatures


@dataclass(frozen=True)
class MeanCentring:
    """x -> normalise(x / |x| - mean), with the training mean of each modality."""

    mean_image: Tensor
    mean_text: Tensor

    @classmethod
    def fit(cls, train: PairedFeatures) -> MeanCentring:
        w = caption_weights(train).to(train.text.dtype)
        return cls(normalize(train.image, dim=1).mean(dim=0), w @ normalize(train.text, dim=1))

    def shift(self, features: PairedFeatures) -> tuple[Tensor, Tensor]:
        """Return x / |x| - mean of both modalities, (N, d_image) and (M, d_text), not normalised again."""
        image, text = normalize(features.image, dim=1), normalize(features.text, dim=1)
        return image - self.mean_image, text - self.mean_text

    def transform(self, features: PairedFeatures) -> PairedFeatures:
        image, text = (normalize(x, dim=1) for x in self.shift(features))
        return replace(features, image=image, text=text)
