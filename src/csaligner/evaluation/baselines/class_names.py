"""The names of ImageNet's classes as a bridge between images and texts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from csaligner.adapters.aligner import Aligner
from csaligner.adapters.class_names import ClassNameAdapter
from csaligner.config import StartConfig, TrainConfig
from csaligner.types import PairedFeatures

from .mean_centring import MeanCentring


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
