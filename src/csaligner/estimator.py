"""CSAligner: the scikit-learn-style estimator on arrays of features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from csaligner.adapters.aligner import Aligner, align, encode
from csaligner.adapters.fusion import WEIGHT, check_image_weight, fuse
from csaligner.evaluation.evaluate import evaluate
from csaligner.selection.fit import Selecting
from csaligner.selection.selection import Selection

from .checks import CSAlignerError, InputError, as_features, check_choice, check_length, check_rows
from .config import TrainConfig, build_config
from .names import Names
from .paired_features import Ids, pair_features
from .progress import progress
from .types import PairedFeatures


class CSAligner:
    """Aligns two sets of features in one space of unit vectors, trained with InfoNCE + weight * D_CS.

        aligner = CSAligner().fit(image_features, text_features)
        index = np.concatenate([aligner.transform_image(images), aligner.transform_text(texts)])

    weight: lambda of the Cauchy-Schwarz divergence, a number or "auto" (default 1). bandwidth: sigma of its kernel,
    a number, "median", "median-cross" or "temperature", or a list of these (default 0.5; with random weights
    "median"). logit_scale: initial 1/temperature of InfoNCE (default 1/0.07). epochs: passes over the data (default
    40, with the gate fewer for many pairs); 0 gives the untrained baseline. gate: keep what training learnt only if
    held-out training pairs show a gain of more than two standard errors (selection/gate.py; default True). The
    untrained alignment is chosen by cross-validation on the training pairs unless `start` fixes it, for example
    start={"kind": "auto"}; `selection_` records both choices (docs/default.md). names: of the two spaces, for example
    names=("eeg", "image"); metrics and errors use them, and `transform` takes them. Default: image and text.
    verbose: show progress; default: on
    a terminal and in a notebook. config: a TrainConfig to start from. settings: any other key of
    csaligner.config.TrainConfig, for example seed=1 or image_adapter="identity" (adapt only the text, so that
    indexed image vectors stay valid). None stands for the default. The defaults were chosen on real data
    (docs/results.md).
    It works with scikit-learn's clone, cross_validate and GridSearchCV; csaligner does not need scikit-learn.
    Source: CS-Aligner (arXiv 2502.17028), eq. 9. Raises InputError for a setting that is unknown or out of range.
    """

    def __init__(
        self,
        config: TrainConfig | None = None,
        *,
        weight: float | str | None = None,
        bandwidth: float | str | Sequence[float | str] | None = None,
        logit_scale: float | None = None,
        epochs: int | None = None,
        gate: bool | None = None,
        verbose: bool | None = None,
        **settings: Any,
    ) -> None:
        named = {"weight": weight, "bandwidth": bandwidth, "logit_scale": logit_scale, "epochs": epochs, "gate": gate}
        self._params: dict[str, Any] = {"config": config, **named, "verbose": verbose, **settings}
        self.config = _config_of(self._params)
        self._model: Aligner | None = None
        self.selection_: Selection | None = None

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of the constructor, by name. deep: ignored, there are no nested estimators."""
        return dict(self._params)

    def set_params(self, **params: Any) -> CSAligner:
        """Set arguments of the constructor and return self. Raises InputError for an unknown one."""
        self.config = _config_of(self._params | params)
        self._params |= params
        return self

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self._params.items() if value is not None)
        if self._model is None:
            return f"CSAligner({given})"
        c, names = self._model.config, self.names
        dims = f"{names.first} {c.dim_image}, {names.second} {c.dim_text} -> {c.dim} dimensions"
        return f"CSAligner({given}) <fitted: {dims}>"

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags

        target = TargetTags(required=True, two_d_labels=True, multi_output=True)
        return Tags(estimator_type=None, target_tags=target, input_tags=InputTags())

    def fit(
        self,
        image_features: Any,
        text_features: Any,
        image_ids: Ids | None = None,
        *,
        text_image_ids: Ids | None = None,
        unpaired_images: Any = None,
        unpaired_texts: Any = None,
        groups: Sequence[str] | None = None,
    ) -> CSAligner:
        """Train on pairs and return self.

        image_features: (N, d_image), text_features: (M, d_text), raw or normalised. Without ids row i pairs with
        row i. image_ids with one entry per row: rows of one id are one image with several captions. With text_image_ids
        (M entries), image_ids are the ids of the N images and text_image_ids the image id of each text.
        unpaired_images: (K, d_image), unpaired_texts: (L, d_text), unpaired rows, used only by the divergence; the
        settings unpaired.images and unpaired.texts are their numbers per batch. groups: a name per image; images of one
        group are never in both parts of a fold when the start or the gate is chosen.
        Raises InputError for NaN, infinity, rows that are all equal, and shapes or ids that do not match.
        """
        features = pair_features(image_features, text_features, image_ids, text_image_ids, names=self.names)
        return self.fit_features(features, unpaired_images, unpaired_texts, groups)

    def refit(
        self,
        image_features: Any,
        text_features: Any,
        image_ids: Ids | None = None,
        *,
        text_image_ids: Ids | None = None,
    ) -> CSAligner:
        """Fit to other pairs, for example all earlier ones and new ones, with the choices of the last fit.

        The start is fitted again, but neither it nor the gate is chosen again, which takes a fraction of the time.
        Arguments as in fit. Raises CSAlignerError before the first fit.
        """
        _ = self.model
        features = pair_features(image_features, text_features, image_ids, text_image_ids, names=self.names)
        return self.fit_features(features, like=self.selection_)

    def fit_features(
        self,
        features: PairedFeatures,
        unpaired_images: Any = None,
        unpaired_texts: Any = None,
        groups: Sequence[str] | None = None,
        like: Selection | None = None,
    ) -> CSAligner:
        """Like fit, for features that are already paired (such as those of a store), with tokens and states if any.

        like: an earlier selection, whose choices are used again."""
        if len(features.image) < 2:
            one = self.names.first
            raise InputError(f"{one}_features: got {len(features.image)} {one} to train on, wanted at least 2")
        for name, rows in ((self.names.first, features.image), (self.names.second, features.text)):
            _check_not_constant(f"{name}_features", rows)
        c = self.config
        if not c.objective.sees_tokens:
            features = replace(features, tokens=None)
        if not c.reads_states:
            features = replace(features, states=None)
        if groups is not None:
            check_length("groups", groups, len(features.image), self.names.fill("{images}"))
        unpaired = tuple(
            _unpaired(f"unpaired_{side}s", rows, paired)
            for side, rows, paired in (
                ("image", unpaired_images, features.image),
                ("text", unpaired_texts, features.text),
            )
        )
        console = Console(stderr=True)
        verbose = self._params["verbose"]
        shown = console.is_terminal or console.is_jupyter if verbose is None else verbose
        state = torch.get_rng_state()
        try:
            with progress(console, "fit", quiet=not shown) as update:
                select = Selecting(c, (unpaired[0], unpaired[1]), groups, update, like=like)
                self._model, self.selection_ = select.fit(features)
        finally:
            torch.set_rng_state(state)
        if shown and self.selection_ is not None:
            gate = self.selection_.gate
            held_out = gate.held_out if gate is not None else None
            names = self.names
            for line in (self.selection_.line_of(names), *(held_out.lines_of(names) if held_out is not None else ())):
                console.print(line, highlight=False, soft_wrap=True)
        return self

    def fit_transform(
        self, image_features: Any, text_features: Any, image_ids: Ids | None = None, **more: Any
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Fit, then return the transformed image and text rows: (N, dim), (M, dim)."""
        self.fit(image_features, text_features, image_ids, **more)
        return self.transform_image(image_features), self.transform_text(text_features)

    def transform(self, name: str, features: Any) -> NDArray[np.float32]:
        """Transform rows of the space `name`, one of `names`: (N, d) -> (N, dim), rows of length 1."""
        names = self.names
        check_choice("name", name, (names.first, names.second))
        return self._transform("image" if name == names.first else "text", features)

    def transform_image(self, image_features: Any) -> NDArray[np.float32]:
        """(N, d_image) -> (N, dim), rows of length 1; one vector (d_image,) -> (dim,)."""
        return self._transform("image", image_features)

    def transform_text(self, text_features: Any) -> NDArray[np.float32]:
        """(M, d_text) -> (M, dim), rows of length 1; one vector (d_text,) -> (dim,)."""
        return self._transform("text", text_features)

    def transform_fused(
        self, image_features: Any, text_features: Any, image_weight: float = WEIGHT
    ) -> NDArray[np.float32]:
        """(N, d_image), (N, d_text) -> (N, dim): one vector for row i of both; two vectors -> (dim,).

        normalise(w * transform_image + (1 - w) * transform_text), w = image_weight; 1 and 0 give the single vectors to
        the bit. csaligner.adapters.choose_image_weight chooses it on validation data.
        """
        check_image_weight(image_weight)
        image, text = self.transform_image(image_features), self.transform_text(text_features)
        if image.shape != text.shape:
            raise InputError(
                f"{self.names.second}_features: got shape {text.shape} after the transform, wanted {image.shape} as "
                f"{self.names.first}_features; give one row of each per item"
            )
        return fuse(torch.from_numpy(image), torch.from_numpy(text), image_weight).numpy()

    def evaluate(
        self,
        image_features: Any,
        text_features: Any,
        image_ids: Ids | None = None,
        *,
        text_image_ids: Ids | None = None,
    ) -> dict[str, float]:
        """Return recall, mixed search and gap of the transformed features, by the names of docs/metrics.md."""
        features = pair_features(image_features, text_features, image_ids, text_image_ids, names=self.names)
        metrics = evaluate(align(self.model, features), intervals=False).metrics
        return {self.names.metric(name): value for name, value in metrics.items()}

    def score(
        self,
        image_features: Any,
        text_features: Any,
        image_ids: Ids | None = None,
        *,
        text_image_ids: Ids | None = None,
    ) -> float:
        """Return the mean of image-to-text and text-to-image recall@1, between 0 and 1."""
        metrics = self.evaluate(image_features, text_features, image_ids, text_image_ids=text_image_ids)
        return metrics["mean_recall@1"]

    def save(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors."""
        self.model.save(Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> CSAligner:
        """Load a saved aligner: its adapters, without the settings of the training run."""
        aligner = cls()
        aligner._model = Aligner.load(Path(folder))
        return aligner

    @property
    def names(self) -> Names:
        """Names of the two spaces: those given, or those of the loaded aligner."""
        return Names.of(self.config.names or (self._model.config.names if self._model is not None else None))

    @property
    def model(self) -> Aligner:
        """The trained nn.Module."""
        if self._model is None:
            raise CSAlignerError("CSAligner: not fitted yet; call fit or load first")
        return self._model

    def _transform(self, side: str, features: Any) -> NDArray[np.float32]:
        model = self.model
        name = f"{self.names.first if side == 'image' else self.names.second}_features"
        single = _is_vector(features)
        if single:
            features = features[None] if isinstance(features, Tensor) else np.asarray(features)[None]
        x = as_features(name, features).float()
        wanted = model.config.dim_image if side == "image" else model.config.dim_text
        if x.shape[1] != wanted:
            raise InputError(f"{name}: got {x.shape[1]} dimensions, wanted {wanted} as in training")
        rows = encode(model, side, x).numpy()
        return rows[0] if single else rows


def _check_not_constant(name: str, x: Tensor) -> None:
    """Raise InputError if all rows are equal: minus their mean they are zero and have no direction."""
    if torch.equal(x[0], x[-1]) and bool((x == x[0]).all()):
        raise InputError(f"{name}: all {len(x)} rows are equal, wanted different ones; check how they were computed")


def _is_vector(features: Any) -> bool:
    """Return whether this is one vector of numbers; as_features reports anything else but rows."""
    if isinstance(features, Tensor):
        return features.ndim == 1
    try:
        array = np.asarray(features)
    except ValueError:
        return False
    return array.ndim == 1 and array.dtype != object


def _config_of(params: Mapping[str, Any]) -> TrainConfig:
    """Return config updated by the other arguments; named arguments that are None keep their default."""
    config, optional = params["config"] or TrainConfig(), ("weight", "bandwidth", "logit_scale", "epochs", "gate")
    skipped = {"config", "verbose", *(name for name in optional if params[name] is None)}
    data = config.model_dump(exclude_unset=True) | {k: v for k, v in params.items() if k not in skipped}
    return build_config(TrainConfig, data)


def _unpaired(name: str, rows: Any, paired: Tensor) -> Tensor | None:
    if rows is None:
        return None
    x = check_rows(name, rows).detach().to("cpu", paired.dtype)
    if x.shape[1] != paired.shape[1]:
        raise InputError(f"{name}: got {x.shape[1]} dimensions, wanted {paired.shape[1]} as in the paired features")
    return x
