"""The bundled aligner as a candidate start, for photographs with features of the bundled encoders."""

from __future__ import annotations

from csaligner.adapters.aligner import Aligner
from csaligner.adapters.class_names import FEATURES, count_photos
from csaligner.checks import InputError
from csaligner.config import TrainConfig
from csaligner.types import PairedFeatures

Encoders = tuple[str | None, str | None]  # fingerprints of the image and the text encoder, None: unknown

CLASS_NAMES = "class names"  # label of the candidate


def photo_aligner(features: PairedFeatures, config: TrainConfig, encoders: Encoders) -> Aligner | None:
    """Return the bundled aligner if training may start from it: the features are those of the bundled encoders, more
    than half of the images look like photographs, both adapters are mlp and no dimension is set.

    It was trained on captioned drawings, so held-out drawings of its datasets would favour it; of photographs it has
    seen no captions.
    """
    adapters = {config.image_adapter.name, config.text_adapter.name}
    if adapters != {"mlp"} or config.dim is not None or config.lora or features.image.shape[1] != FEATURES:
        return None
    try:
        model = Aligner.fit_start(features, by_class_names(config), encoders).eval()
    except InputError:  # features of other encoders, or the weights of the classifier are not installed
        return None
    return model if 2 * count_photos(model.image_adapter, features.image) > len(features.image) else None


def by_class_names(config: TrainConfig) -> TrainConfig:
    """Return the config with start.kind=class_names."""
    return config.model_copy(update={"start": config.start.model_copy(update={"kind": "class_names"})})
