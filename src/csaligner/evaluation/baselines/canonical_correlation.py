"""Canonical correlation analysis of the training pairs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch.nn.functional import normalize

from csaligner.adapters.start import Affine
from csaligner.adapters.untrained import PairMoments, canonical_starts
from csaligner.types import PairedFeatures


@dataclass(frozen=True)
class CanonicalCorrelation:
    """Regularised canonical correlation analysis (Hotelling 1936), directions weighted by their correlations.

    Covariances S are regularised, S + c/sqrt(N) * tr(S)/d * I, as in adapters/start.py; c: shrinkage. power: exponent
    of the correlations r, by which directions are weighted.
    """

    starts: tuple[Affine, Affine]

    @classmethod
    def fit(cls, train: PairedFeatures, shrinkage: float = 12.0, power: float = 1.0) -> CanonicalCorrelation:
        return cls(canonical_starts(PairMoments.of(train), shrinkage, power))

    def transform(self, features: PairedFeatures) -> PairedFeatures:
        image, text = (start(x) for start, x in zip(self.starts, (features.image, features.text), strict=True))
        return replace(features, image=normalize(image, dim=1), text=normalize(text, dim=1))
