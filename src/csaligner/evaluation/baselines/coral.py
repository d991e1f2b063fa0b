"""CORAL: the texts whitened, then coloured with the covariance of the images."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn.functional import normalize

from csaligner.adapters.start import power
from csaligner.evaluation.gap import caption_weights
from csaligner.types import PairedFeatures

from .mean_centring import MeanCentring


@dataclass(frozen=True)
class Coral:
    """Image: normalise(x / |x| - m_x); text: normalise((y / |y| - m_y) A), A = S_y'^(-1/2) S_x'^(1/2), (d, d).

    S' = S + shrinkage * tr(S)/d * I, S the covariance of the centred unit rows; a caption has weight 1/m, m captions of
    its image. Without shrinkage, the covariance of the mapped texts is that of the images. Pairs are not used, only the
    two sets. For equal dimensions.
    Source: CORAL (Sun, Feng, Saenko 2016, arXiv 1511.05547), algorithm 1 with images as the target domain; its + I on
    standardised features is + shrinkage * mean variance here.
    """

    centring: MeanCentring
    map: Tensor

    @classmethod
    def fit(cls, train: PairedFeatures, shrinkage: float = 1.0) -> Coral:
        centring = MeanCentring.fit(train)
        image, text = (x.double() for x in centring.shift(train))
        cov_x = image.T @ image / len(image)
        cov_y = text.T @ (caption_weights(train)[:, None] * text)
        map_ = power(cov_y, -0.5, shrinkage) @ power(cov_x, 0.5, shrinkage)
        return cls(centring, map_.to(train.text.dtype))

    def transform(self, features: PairedFeatures) -> PairedFeatures:
        image, text = self.centring.shift(features)
        return replace(features, image=normalize(image, dim=1), text=normalize(text @ self.map, dim=1))
