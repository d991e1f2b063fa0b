"""The scikit-learn-like door: arrays in, arrays out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csaligner.adapters.aligner import Aligner, align, encode
from csaligner.evaluation.evaluate import evaluate
from csaligner.training.samplers import PairSampler
from csaligner.training.trainer import Trainer
from csaligner.training.training_data import with_unpaired

from .checks import CSAlignerError, InputError, as_features
from .config import TrainConfig, build_config
from .paired_features import Ids, pair_features
from .types import PairedFeatures


class CSAligner:
    """Aligns two sets of features into one space of unit vectors, trained with InfoNCE + lambda * D_CS.

        aligner = CSAligner().fit(image_features, text_features)
        index = np.concatenate([aligner.transform_image(images), aligner.transform_text(texts)])

    settings: any key of csaligner.config.TrainConfig, for example seed=1, epochs=20, image_adapter="identity"
    (adapt only the text: image vectors that are already indexed stay valid). The defaults were chosen on real
    data (docs/results.md). Source: CS-Aligner (arXiv 2502.17028).
    """

    def __init__(self, config: TrainConfig | None = None, **settings: Any) -> None:
        data = (config or TrainConfig()).model_dump(exclude_unset=True) | settings
        self.config = build_config(TrainConfig, data)
        self._model: Aligner | None = None

    def fit(
        self,
        image_features: Any,
        text_features: Any,
        image_ids: Ids | None = None,
        *,
        text_image_ids: Ids | None = None,
        unpaired_images: Any = None,
        unpaired_texts: Any = None,
    ) -> CSAligner:
        """Train on pairs; returns self.

        image_features: (N, d_image), text_features: (M, d_text), raw or normalised. Without ids row i pairs with
        row i. image_ids of one entry a row: rows with one id are one image with several captions. With
        text_image_ids (M entries), image_ids names the N images and text_image_ids says whose caption a text is.
        unpaired_images: (K, d_image), unpaired_texts: (L, d_text), rows without partners, for the divergence alone;
        the settings unpaired.images and unpaired.texts say how many go into a batch.
        Raises InputError for NaN, infinity, shapes or ids that do not fit.
        """
        features = pair_features(image_features, text_features, image_ids, text_image_ids)
        return self.fit_features(features, unpaired_images, unpaired_texts)

    def fit_features(
        self, features: PairedFeatures, unpaired_images: Any = None, unpaired_texts: Any = None
    ) -> CSAligner:
        """As fit, for features that are paired already (a store's), with their tokens where they have any."""
        if len(features.image) < 2:
            raise InputError(f"image_features: got {len(features.image)} image to train on, wanted at least 2")
        c = self.config
        if not c.objective.sees_tokens:
            features = replace(features, tokens=None)
        images = _unpaired("unpaired_images", unpaired_images, features.image)
        texts = _unpaired("unpaired_texts", unpaired_texts, features.text)
        sampler = with_unpaired(
            PairSampler(features, c.batch_size, c.captions, c.seed), images, texts, c.unpaired, c.seed
        )
        state = torch.get_rng_state()
        try:
            torch.manual_seed(self.config.seed)
            self._model = Aligner.fit_start(features, self.config)
            Trainer(self._model, sampler, self.config).fit()
        finally:
            torch.set_rng_state(state)
        return self

    def transform_image(self, image_features: Any) -> NDArray[np.float32]:
        """(N, d_image) -> (N, dim), rows of length 1."""
        return self._transform("image", image_features)

    def transform_text(self, text_features: Any) -> NDArray[np.float32]:
        """(M, d_text) -> (M, dim), rows of length 1."""
        return self._transform("text", text_features)

    def evaluate(
        self,
        image_features: Any,
        text_features: Any,
        image_ids: Ids | None = None,
        *,
        text_image_ids: Ids | None = None,
    ) -> dict[str, float]:
        """Recall, mixed search and gap of the transformed features, by the names of docs/metrics.md."""
        features = pair_features(image_features, text_features, image_ids, text_image_ids)
        return evaluate(align(self.model, features), intervals=False).metrics

    def score(
        self,
        image_features: Any,
        text_features: Any,
        image_ids: Ids | None = None,
        *,
        text_image_ids: Ids | None = None,
    ) -> float:
        """Mean of image-to-text and text-to-image recall@1, between 0 and 1."""
        metrics = self.evaluate(image_features, text_features, image_ids, text_image_ids=text_image_ids)
        return (metrics["image_to_text_recall@1"] + metrics["text_to_image_recall@1"]) / 2

    def save(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors."""
        self.model.save(Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> CSAligner:
        """Read what save wrote; the settings of the training run are not kept, the adapters are."""
        aligner = cls()
        aligner._model = Aligner.load(Path(folder))
        return aligner

    @property
    def model(self) -> Aligner:
        """The trained nn.Module."""
        if self._model is None:
            raise CSAlignerError("CSAligner: not fitted yet; call fit or load first")
        return self._model

    def _transform(self, side: str, features: Any) -> NDArray[np.float32]:
        model = self.model
        name = f"{side}_features"
        x = as_features(name, features).float()
        wanted = model.config.dim_image if side == "image" else model.config.dim_text
        if x.shape[1] != wanted:
            raise InputError(f"{name}: got {x.shape[1]} dimensions, this aligner was trained on {wanted}")
        return encode(model, side, x).numpy()


def _unpaired(name: str, rows: Any, paired: Tensor) -> Tensor | None:
    if rows is None:
        return None
    x = as_features(name, rows).detach().to("cpu", paired.dtype)
    if x.shape[1] != paired.shape[1]:
        raise InputError(
            f"{name}: got {x.shape[1]} dimensions, the paired features of that side have {paired.shape[1]}"
        )
    return x
