"""mini-vec2vec: an alignment of two sets of vectors without pairs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from csaligner.spaces.space import Space
from csaligner.spaces.unpaired import UnpairedStart, align_unpaired
from csaligner.types import PairedFeatures


@dataclass(frozen=True)
class MiniVec2Vec:
    """Image: normalise((x / |x| - m_x) R), (N, d_text); text: normalise(y / |y| - m_y); R is found without pairs.

    R: (d_image, d_text), from the structure of the two sets alone; see spaces/unpaired.py. The captions are shuffled
    before the fit, so no pairing can reach it. The dimensions may differ.
    Source: mini-vec2vec (Dar 2025, arXiv 2510.02348).
    """

    start: UnpairedStart

    @classmethod
    def fit(cls, train: PairedFeatures) -> MiniVec2Vec:
        """Raises InputError with fewer than 100 rows of a modality, or without scikit-learn."""
        order = torch.randperm(len(train.text), generator=torch.Generator().manual_seed(0))
        return cls(align_unpaired(Space.of("image", train.image), Space.of("text", train.text[order])))

    @property
    def known(self) -> bool:
        """Whether the match is stable between attempts; if not, the map means nothing."""
        return self.start.known

    def transform(self, features: PairedFeatures) -> PairedFeatures:
        image = self.start.transform_first(features.image)
        return replace(features, image=image, text=self.start.transform_second(features.text))
