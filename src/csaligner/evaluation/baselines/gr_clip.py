"""GR-CLIP: the mean of each modality, taken on a calibration set, subtracted from images, texts and fused items."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn.functional import normalize

from csaligner.checks import InputError
from csaligner.evaluation.gap import caption_weights
from csaligner.types import PairedFeatures

FUSION_WEIGHT = 0.5  # of the image


@dataclass(frozen=True)
class GRCLIP:
    """Three means of a calibration set: images, texts, and items of an image and a text.

    With unit rows x (images) and y (texts) and their means m_x, m_y on the calibration set:
    image: normalise(x - m_x); text: normalise(y - m_y);
    fused: normalise(z - m_z), z = w x + (1 - w) y, m_z = w m_x + (1 - w) m_y; w = .5.

    On images and texts alone it is MeanCentring, but for the set of the means: the paper takes them from an external
    set, which has nothing to do with the data that are searched; csaligner compare gives the training pairs. The fused
    mean is that of all calibration pairs, which is linear in the other two. Queries may have a mean of their own
    (with_queries), as in the authors' code, where captions that are searched for and texts that are searched differ.
    Source: "Closing the Modality Gap for Mixed Modality Search" (Li et al. 2025, arXiv 2507.19054), section on GR-CLIP,
    and the authors' retrieval_mixbench.py.

    mean_image, mean_text, mean_query: (d,), means of unit rows.
    """

    mean_image: Tensor
    mean_text: Tensor
    mean_query: Tensor

    @classmethod
    def fit(cls, calibration: PairedFeatures) -> GRCLIP:
        """Take the means from these pairs; the m captions of an image have weight 1/m each. Raises InputError if images
        and texts differ in dimension."""
        d_image, d_text = calibration.image.shape[1], calibration.text.shape[1]
        if d_image != d_text:
            raise InputError(f"features: images have {d_image} dimensions and texts {d_text}; wanted equal ones")
        weights = caption_weights(calibration).to(calibration.text.dtype)
        mean_text = weights @ normalize(calibration.text, dim=1)
        return cls(normalize(calibration.image, dim=1).mean(dim=0), mean_text, mean_text)

    def with_queries(self, texts: Tensor) -> GRCLIP:
        """Take the mean of queries from texts of their kind, (K, d)."""
        return replace(self, mean_query=normalize(texts, dim=1).mean(dim=0))

    def transform(self, features: PairedFeatures) -> PairedFeatures:
        """Return the features with unit rows, each modality minus its mean."""
        return replace(features, image=self.image(features.image), text=self.text(features.text))

    def image(self, x: Tensor) -> Tensor:
        """(N, d) -> (N, d), unit rows."""
        return normalize(normalize(x, dim=1) - self.mean_image, dim=1)

    def text(self, y: Tensor) -> Tensor:
        """(M, d) -> (M, d), unit rows."""
        return normalize(normalize(y, dim=1) - self.mean_text, dim=1)

    def query(self, y: Tensor) -> Tensor:
        """Texts that are searched for: (K, d) -> (K, d), unit rows."""
        return normalize(normalize(y, dim=1) - self.mean_query, dim=1)

    def fused(self, image: Tensor, text: Tensor, weight: float = FUSION_WEIGHT) -> Tensor:
        """Items of an image and a text: (K, d), (K, d) -> (K, d), unit rows. weight: w of the image, 0 to 1.

        Raises InputError for other shapes or weights.
        """
        if image.shape != text.shape:
            raise InputError(f"fused items: got {tuple(image.shape)} and {tuple(text.shape)}, wanted equal shapes")
        if not 0 <= weight <= 1:
            raise InputError(f"weight: got {weight}, wanted a number from 0 to 1")
        rows = weight * normalize(image, dim=1) + (1 - weight) * normalize(text, dim=1)
        return normalize(rows - weight * self.mean_image - (1 - weight) * self.mean_text, dim=1)
