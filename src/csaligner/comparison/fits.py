"""Fitting and tuning of one method on one fold of a comparison."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from csaligner.adapters.aligner import Aligner, align, fixed_modality
from csaligner.adapters.untrained import Starts
from csaligner.config import EPOCHS, TrainConfig
from csaligner.estimator import CSAligner
from csaligner.evaluation import mixed_search, retrieval
from csaligner.evaluation.one_pass import search_per_query
from csaligner.evaluation.score import SCORE, derived_metrics
from csaligner.paired_features import rows_of, spaced
from csaligner.registry import load
from csaligner.selection.fit import Selecting
from csaligner.types import PairedFeatures

from .methods import FREE, TRAINED, Free, Settings, Trained, Transform

Method = Free | Trained
Split = tuple[PairedFeatures, PairedFeatures]
Trial = dict[str, float]  # settings, and the score under SCORE_KEY
SCORE_KEY = "score"
STARTS = 4  # closed-form starts kept by a process: the parts of a fold that are in use


@dataclass
class StartCache:
    """The last closed-form starts by training features and configuration; they do not depend on the seed or the
    objective, so methods, trials and seeds share them."""

    kept: OrderedDict[str, Starts | None] = field(default_factory=OrderedDict)

    def of(self, config: TrainConfig, train: PairedFeatures) -> Starts | None:
        digest = hashlib.sha256(f"{config.start.model_dump_json()} {config.dim} {fixed_modality(config)}".encode())
        adapters = (config.image_adapter.name, config.text_adapter.name)
        digest.update(repr((adapters, *(tuple(x.shape) for x in (train.image, train.text)))).encode())
        for x in (train.image, train.text, train.text_to_image):
            digest.update(_bytes(x))
        key = digest.hexdigest()
        if key not in self.kept:
            self.kept[key] = Selecting(config).closed_form(train)
        self.kept.move_to_end(key)
        while len(self.kept) > STARTS:
            self.kept.popitem(last=False)
        return self.kept[key]


_starts = StartCache()


def _bytes(x: Tensor) -> bytes:
    return x.detach().cpu().contiguous().numpy().tobytes()


def find_method(name: str) -> Method:
    """Return a method by name. Raises InputError."""
    if name in FREE:
        return FREE[name]
    method: Trained = load("methods", TRAINED, name)
    return method


def train(config: TrainConfig, pairs: PairedFeatures, *, brief: bool = False) -> Aligner:
    """Train without a gate, from the closed-form start of the config; equal to CSAligner(config, gate=False), but the
    start is fitted once for all calls with these pairs. brief: compute no gap of batches in between."""
    config = config.model_copy(update={"gate": False})
    if brief:
        config = config.model_copy(update={"evaluate_every": config.epochs or EPOCHS})
    tokens = pairs.tokens if config.objective.sees_tokens else None
    seen = replace(pairs, tokens=tokens, states=pairs.states if config.reads_states else None)
    state = torch.get_rng_state()
    try:
        return Selecting(config, starts=_starts.of(config, pairs)).fit(seen)[0]
    finally:
        torch.set_rng_state(state)


def fit(
    method: Method,
    pairs: PairedFeatures,
    base: TrainConfig,
    settings: Settings,
    seed: int,
    *,
    brief: bool = False,
) -> Transform:
    """Fit a method with these settings; an untrained baseline does not depend on the seed. Raises NotApplicable."""
    if isinstance(method, Free):
        return method.fit(pairs, base, settings)
    config = method.config(base, settings, seed)
    if method.whole:
        model = CSAligner(config, gate=True, verbose=False).fit_features(pairs).model
    else:
        model = train(config, pairs, brief=brief)
    return lambda features: align(model, features)


def score(features: PairedFeatures) -> float:
    """Return the score of evaluation.evaluate, without its other metrics."""
    directions, mixed = search_per_query(features)
    return derived_metrics(retrieval.summarise(directions) | mixed_search.summarise(mixed))[SCORE]


def at_most(pairs: PairedFeatures, images: int | None) -> PairedFeatures:
    """Return the pairs of evenly spaced images, at most `images`; None: all."""
    if images is None or len(pairs.image) <= images:
        return pairs
    return rows_of(pairs, spaced(len(pairs.image), images))


def tune(
    method: Method, splits: Sequence[Split], base: TrainConfig, trials: int, done: Callable[[Trial], None]
) -> dict[str, float]:
    """Return the settings with the best score on validation data of `trials` settings (optuna's seeded TPE); {} if
    nothing is tuned. splits: (training, validation) parts; a trial's score is the mean over them."""
    space = method.space()
    if not space or trials == 0:
        return {}
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial: Any) -> float:
        settings: Mapping[str, float] = {key: trial.suggest_float(key, *ends, log=True) for key, ends in space.items()}
        fitted = [(fit(method, pairs, base, settings, 0, brief=True), held_out) for pairs, held_out in splits]
        value = mean(score(transform(held_out)) for transform, held_out in fitted)
        done({SCORE_KEY: value, **settings})
        return value

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=trials)
    return dict(study.best_params)
