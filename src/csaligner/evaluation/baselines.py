"""Untrained baselines: mean-centring, standardising, Procrustes rotation and CCA."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.adapters.aligner import Aligner
from csaligner.adapters.class_names import ClassNameAdapter
from csaligner.adapters.start import Affine
from csaligner.adapters.untrained import PairMoments, canonical_starts
from csaligner.config import StartConfig, TrainConfig
from csaligner.types import PairedFeatures

from .gap import caption_weights


@dataclass(frozen=True)
class MeanCentring:
    """x -> normalise(x / |x| - mean), with the training mean of each modality."""

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


@dataclass(frozen=True)
class Standardising:
    """x -> normalise((x / |x| - mean) / sd), per coordinate, with the training moments of each modality."""

    centring: MeanCentring
    sd_image: Tensor
    sd_text: Tensor

    @classmethod
    def fit(cls, train: PairedFeatures) -> Standardising:
        centring = MeanCentring.fit(train)
        image, text = _centred(centring, train)
        w = caption_weights(train).to(text.dtype)
        return cls(centring, _floored(image.square().mean(dim=0).sqrt()), _floored((w @ text.square()).sqrt()))

    def transform(self, features: PairedFeatures) -> PairedFeatures:
        image, text = _centred(self.centring, features)
        return replace(
            features, image=normalize(image / self.sd_image, dim=1), text=normalize(text / self.sd_text, dim=1)
        )


@dataclass(frozen=True)
class Procrustes:
    """Mean-centring, then the rotation of the texts that minimises the distance of pairs (Schoenemann 1966)."""

    centring: MeanCentring
    rotation: Tensor

    @classmethod
    def fit(cls, train: PairedFeatures) -> Procrustes:
        centring = MeanCentring.fit(train)
        image, text = _centred(centring, train)
        w = caption_weights(train).to(text.dtype)
        u, _, vh = torch.linalg.svd((w[:, None] * text).T @ image[train.text_to_image])
        return cls(centring, u @ vh)

    def transform(self, features: PairedFeatures) -> PairedFeatures:
        image, text = _centred(self.centring, features)
        return replace(features, image=normalize(image, dim=1), text=normalize(text @ self.rotation, dim=1))


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


@dataclass(frozen=True)
class ClassNames:
    """The names of ImageNet's classes as the bridge, without a trained image adapter (ConSE, Norouzi et al. 2014).

    image: softmax((W x + w) / 2) @ text vectors of the classes; text: the text adapter of the bundled aligner; both
    mean-centred on the training pairs. For features of the bundled encoders; raises InputError for others. The text
    adapter was trained on drawings of OpenMoji, Tux Paint and Open Clip Art: on these data it has seen captions.
    """

    model: Aligner
    centring: MeanCentring

    @classmethod
    def fit(cls, train: PairedFeatures) -> ClassNames:
        model = Aligner.fit_start(train, TrainConfig(start=StartConfig(kind="class_names"))).eval()
        return cls(model, MeanCentring.fit(_bridged(model, train)))

    def transform(self, features: PairedFeatures) -> PairedFeatures:
        return self.centring.transform(_bridged(self.model, features))


@torch.inference_mode()
def _bridged(model: Aligner, features: PairedFeatures) -> PairedFeatures:
    adapter = model.image_adapter
    assert isinstance(adapter, ClassNameAdapter)
    image = adapter.probabilities(features.image.float()) @ adapter.classes
    return replace(features, image=image, text=model.encode_text(features.text.float()))


def _centred(centring: MeanCentring, features: PairedFeatures) -> tuple[Tensor, Tensor]:
    return normalize(features.image, dim=1) - centring.mean_image, normalize(features.text, dim=1) - centring.mean_text


def _floored(sd: Tensor) -> Tensor:
    """Return sd with a lower bound, so that constant coordinates stay finite."""
    return sd.clamp_min(1e-6 * float(sd.max()))
