"""Methods of a comparison: untrained baselines and trained objectives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from csaligner.adapters.aligner import align
from csaligner.checks import InputError, check_choice
from csaligner.config import TOKEN_TERM, TrainConfig, build_config
from csaligner.estimator import CSAligner
from csaligner.evaluation.baselines import (
    GRCLIP,
    I0T,
    CanonicalCorrelation,
    ClassNames,
    Coral,
    MeanCentring,
    Procrustes,
    Standardising,
)
from csaligner.registry import Registry
from csaligner.types import PairedFeatures

from .mini_vec2vec import MiniVec2Vec

Transform = Callable[[PairedFeatures], PairedFeatures]
Settings = Mapping[str, float]

SCALE = (8.0, 80.0)  # search range of fixed logit scales
FRACTION = (0.05, 0.5)  # search range of the fraction of the automatic weight
AUTO = "auto"
START = "auto"  # start.kind of all trained methods that are not `whole`


@dataclass(frozen=True)
class Trained:
    """A training objective; all other settings are shared by all methods.

    terms: fixed weights. weight: (term, low, high) of a tuned weight. tunes_scale: fix the logit scale at a tuned value
    (otherwise it is learned from 1/0.07, as in CLIP). tunes_fraction: tune the fraction of the automatic weight.
    objective: further keys of ObjectiveConfig. about: one-line description for the page. whole: the default start and
    gate as well; without it, a method trains from START (or random weights, if the base does) without the gate, so that
    rows differ in the objective alone.
    """

    terms: Mapping[str, float | str]
    about: str
    weight: tuple[str, float, float] | None = None
    tunes_scale: bool = True
    tunes_fraction: bool = False
    objective: Mapping[str, Any] | None = None
    whole: bool = False

    def check(self, train: PairedFeatures) -> None:
        """Raise NotApplicable if the objective cannot be computed from these features."""
        if train.tokens is None and TOKEN_TERM in (*self.terms, *(self.weight or ())[:1]):
            raise NotApplicable("needs tokens; embed with --tokens")

    def space(self) -> dict[str, tuple[float, float]]:
        """Return names and ranges of tuned settings, on a logarithmic scale."""
        space = {"logit_scale": SCALE} if self.tunes_scale else {}
        space |= {"fraction": FRACTION} if self.tunes_fraction else {}
        return space | ({"weight": self.weight[1:]} if self.weight else {})

    def config(self, base: TrainConfig, settings: Settings, seed: int) -> TrainConfig:
        objective = base.objective.model_dump() | {"terms": dict(self.terms)} | dict(self.objective or {})
        if self.weight and "weight" in settings:
            objective["terms"][self.weight[0]] = settings["weight"]
        if self.tunes_scale and "logit_scale" in settings:
            objective |= {"logit_scale": settings["logit_scale"], "learn_logit_scale": False}
        if self.tunes_fraction and "fraction" in settings:
            objective["balance"] = objective["balance"] | {"fraction": settings["fraction"]}
        kind = "random" if base.start.kind == "random" else START
        start = base.start.model_dump() | {"kind": "chosen" if self.whole else kind}
        return build_config(TrainConfig, base.model_dump() | {"objective": objective, "start": start, "seed": seed})


@dataclass(frozen=True)
class Free:
    """An untrained baseline; it is tuned on the same validation parts with as many trials as a Trained method.

    run: (training features, base configuration, settings) -> map of features; a setting that is missing has the
    baseline's own default; it raises NotApplicable. about: one-line description for the page. ranges: names and ranges
    of tuned settings.
    """

    run: Callable[[PairedFeatures, TrainConfig, Settings], Transform]
    about: str
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def space(self) -> dict[str, tuple[float, float]]:
        """Return names and ranges of tuned settings, on a logarithmic scale; {}: nothing is tuned."""
        return dict(self.ranges)

    def fit(self, train: PairedFeatures, config: TrainConfig, settings: Settings) -> Transform:
        """Return the map that is fitted to `train`. settings: values of some or all names of `space`.

        Raises NotApplicable if the baseline does not apply to these features.
        """
        return self.run(train, config, settings)


def _with(term: str, low: float, high: float, about: str, **objective: Any) -> Trained:
    return Trained({"info_nce": 1.0}, about, (term, low, high), objective=objective)


def _same_dims(fit: Callable[..., Any], about: str, **ranges: tuple[float, float]) -> Free:
    """fit: (training features, **settings) -> an object with the method `transform`; for equal dimensions."""

    def run(train: PairedFeatures, config: TrainConfig, settings: Settings) -> Transform:
        if train.image.shape[1] != train.text.shape[1]:
            raise NotApplicable("needs image and text features of equal dimensions")
        transform: Transform = fit(train, **settings).transform
        return transform

    return Free(run, about, ranges)


class NotApplicable(InputError):
    """A method that does not apply to these features; the comparison skips and reports it."""


class _Raw:
    def transform(self, features: PairedFeatures) -> PairedFeatures:
        return features


def _start(train: PairedFeatures, kind: str, **more: float) -> Transform:
    model = CSAligner(start={"kind": kind, **more}, epochs=0, verbose=False).fit_features(train).model
    return lambda features: align(model, features)


def _class_names(train: PairedFeatures) -> Transform:
    try:
        return ClassNames.fit(train).transform
    except InputError:
        raise NotApplicable("needs features of the bundled encoders") from None


def _without_pairs(train: PairedFeatures) -> Transform:
    try:
        return MiniVec2Vec.fit(train).transform
    except InputError as reason:
        raise NotApplicable(str(reason)) from None


def _matched_covariances(train: PairedFeatures, config: TrainConfig, settings: Settings) -> Transform:
    """Half-matched covariances (adapters/start.py); without a setting with shrinkage 3, the default of version 0.1."""
    if train.image.shape[1] != train.text.shape[1]:
        raise NotApplicable("needs image and text features of equal dimensions")
    return _start(train, "moments", **settings)


def then_centred(method: str) -> str:
    """Return the name of the row of a trained method whose aligned features are mean-centred afterwards."""
    return f"{method}, then centred"


FREE: Mapping[str, Free] = {
    "none": _same_dims(lambda train: _Raw(), "features as they are"),
    "mean-centring": _same_dims(MeanCentring.fit, "each modality minus its training mean"),
    "standardising": _same_dims(Standardising.fit, "mean-centring, each coordinate divided by its standard deviation"),
    "procrustes": _same_dims(Procrustes.fit, "mean-centring, texts rotated onto images"),
    "gr-clip": _same_dims(
        GRCLIP.fit, "each modality minus its mean on a calibration set, here the training pairs; differs on fused items"
    ),
    "i0t": _same_dims(I0T.fit, "I0T_post: as mean-centring, but every caption counts once"),
    "coral": _same_dims(
        Coral.fit, "texts whitened and coloured as images; no pairs; shrinkage tuned", shrinkage=(0.03, 100.0)
    ),
    "cca": Free(
        lambda train, config, settings: CanonicalCorrelation.fit(train, **settings).transform,
        "canonical correlations, shrinkage and power of the correlations tuned",
        {"shrinkage": (1.0, 300.0), "power": (0.25, 4.0)},
    ),
    "moments": Free(_matched_covariances, "half-matched covariances, shrinkage tuned", {"shrinkage": (0.03, 30.0)}),
    "class names": Free(
        lambda train, config, settings: _class_names(train), "names of ImageNet's classes as the bridge"
    ),
    "mini-vec2vec": Free(
        lambda train, config, settings: _without_pairs(train), "no pairs: the structure of both sets is matched"
    ),
    "closed-form start": Free(lambda train, config, settings: _start(train, START), "the start of version 0.1"),
    "chosen start": Free(
        lambda train, config, settings: _start(train, "chosen"), "the start that cross-validation selects (default)"
    ),
}

BASELINES = ("none", "mean-centring", "standardising", "procrustes", "cca", "moments")  # fixed untrained methods
REFERENCE = "infonce"

_DEFAULT: Mapping[str, float | str] = {"info_nce": 1.0, "cauchy_schwarz": 1.0}
_AUTO: Mapping[str, float | str] = {"info_nce": 1.0, "cauchy_schwarz": "auto"}

# Built-in methods and entry points of the group csaligner.methods; `load` returns a Trained.
TRAINED = Registry(
    "csaligner.methods",
    {
        "infonce": Trained({"info_nce": 1.0}, "InfoNCE, temperature learned from 0.07", tunes_scale=False),
        "infonce-scale": Trained({"info_nce": 1.0}, "InfoNCE, fixed temperature, tuned"),
        "siglip": Trained({"siglip": 1.0}, "sigmoid loss, fixed scale, tuned; bias at its optimum"),
        "l2": _with(
            "paired_l2", 0.03, 10, "InfoNCE + L2 of pairs: ECLIPSE's objective, and the bottleneck regulariser"
        ),
        "rafa": _with(
            "random_alignment", 0.1, 100, "InfoNCE + random feature alignment, as CLIP-Refine without distillation"
        ),
        "mmd": _with("mmd", 0.3, 100, "InfoNCE + MMD, same kernel"),
        "energy": _with("energy", 0.1, 30, "InfoNCE + energy distance"),
        "sinkhorn": _with("sinkhorn", 0.1, 30, "InfoNCE + Sinkhorn divergence"),
        "gaussian-kl": _with("gaussian_kl", 0.003, 3, "InfoNCE + symmetric KL of Gaussians"),
        "bures-wasserstein": _with("bures_wasserstein", 0.1, 30, "InfoNCE + Bures-Wasserstein distance of Gaussians"),
        "cs-alone": Trained({"cauchy_schwarz": 1.0}, "D_CS without pairs", tunes_scale=False),
        "cs-tied": _with("cauchy_schwarz", 0.03, 3, "InfoNCE + D_CS, sigma^2 = temperature", bandwidth="temperature"),
        "cs-auto": Trained(_AUTO, "InfoNCE + D_CS, weight by gradient norms, nothing tuned", tunes_scale=False),
        "cs-auto-tuned": Trained(
            _AUTO, "InfoNCE + D_CS, weight by gradient norms, fraction and fixed temperature tuned", tunes_fraction=True
        ),
        "cs-aligner": _with("cauchy_schwarz", 0.1, 10, "InfoNCE + lambda D_CS, tuned"),
        "cs-aligner-weight": Trained(
            _DEFAULT,
            "InfoNCE + lambda D_CS, temperature learned from 0.07, lambda tuned",
            ("cauchy_schwarz", 0.03, 3.0),
            tunes_scale=False,
        ),
        "cs-aligner-default": Trained(_DEFAULT, "the default objective, nothing tuned", tunes_scale=False),
        "defaults": Trained(
            _DEFAULT, "all defaults: chosen start, gated training, nothing tuned", tunes_scale=False, whole=True
        ),
        "cs-aligner-token": Trained(
            _DEFAULT,
            "the default objective + token-level D_CS, its weight tuned",
            (TOKEN_TERM, 0.003, 0.3),
            tunes_scale=False,
        ),
    },
)

QUICK = ("none", "mean-centring", "cca", "closed-form start", "infonce", "l2", "mmd", "cs-aligner")


def check_methods(names: list[str]) -> list[str]:
    for name in names:
        check_choice("methods", name, (*FREE, *TRAINED))
    return names
