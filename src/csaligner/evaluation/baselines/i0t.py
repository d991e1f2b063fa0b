"""I0T_post: post-hoc standardisation of embeddings towards zero modality gap."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn.functional import normalize

from csaligner.types import PairedFeatures


@dataclass(frozen=True)
class I0T:
    """x -> (x / |x| - m) / |x / |x| - m| with m the mean of x / |x| over all rows of the modality, (d,).

    No coordinate is divided by a standard deviation: "standardisation" is the subtraction and the second
    normalisation. The formula is that of MeanCentring, but every caption counts once, however many its image has; with
    one caption per image the two are equal. The paper takes the means from the data that it evaluates; in csaligner
    compare they are those of the training pairs, so that all methods know the same. I0T.fit(test).transform(test) is
    the other.
    Source: "I0T: Embedding Standardization Method Towards Zero Modality Gap" (An et al., ACL 2025, arXiv 2412.14384),
    I0T_post, and remove_artifact_features in the authors' code.
    """

    mean_image: Tensor
    mean_text: Tensor

    @classmethod
    def fit(cls, features: PairedFeatures) -> I0T:
        """Take the means from these rows."""
        return cls(normalize(features.image, dim=1).mean(dim=0), normalize(features.text, dim=1).mean(dim=0))

    def transform(self, features: PairedFeatures) -> PairedFeatures:
        """Return the features with unit rows: (N, d_image) and (M, d_text)."""
        image = normalize(normalize(features.image, dim=1) - self.mean_image, dim=1)
        text = normalize(normalize(features.text, dim=1) - self.mean_text, dim=1)
        return replace(features, image=image, text=text)
