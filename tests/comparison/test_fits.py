"""Fitting one method: shared starts, brief trials, the rows that are used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from csaligner.comparison import fits
from csaligner.comparison.compare import Budget, compare
from csaligner.comparison.fits import at_most, find_method, score
from csaligner.comparison.folds import Fold
from csaligner.config import AdapterConfig, TrainConfig, load_config
from csaligner.estimator import CSAligner
from csaligner.evaluation.evaluate import evaluate
from csaligner.selection.fit import Selecting
from csaligner.types import PairedFeatures
from tests.support.features import make_pairs

ADAPTER = AdapterConfig(hidden=8)
BASE = TrainConfig(epochs=6, batch_size=32, image_adapter=ADAPTER, text_adapter=ADAPTER)


@pytest.mark.parametrize("dims", [(6, 6), (6, 5)])
@pytest.mark.parametrize("brief", [False, True])
def test_a_shared_start_and_a_brief_training_give_the_same_weights(
    dims: tuple[int, int], brief: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = make_pairs(60, dims, seed=1), make_pairs(60, dims, seed=2)
    fitted: list[int] = []
    closed_form = Selecting.closed_form

    def noted(self: Any, pairs: PairedFeatures) -> Any:
        fitted.append(len(pairs.image))
        return closed_form(self, pairs)

    monkeypatch.setattr(Selecting, "closed_form", noted)
    monkeypatch.setattr(fits, "_starts", fits.StartCache())
    for pairs in (one, two, one):
        for name, seed in (("infonce", 0), ("cs-aligner-default", 3)):
            config = find_method(name).config(BASE, {}, seed)  # type: ignore[union-attr]
            wanted = CSAligner(config, gate=False, verbose=False).fit_features(pairs).model.state_dict()
            found = fits.train(config, pairs, brief=brief).state_dict()
            assert all(torch.equal(found[key], value) for key, value in wanted.items())
    assert len(fitted) == 2


@pytest.mark.parametrize("kind", ["random", "chosen", "moments", "identity"])
def test_a_start_of_any_kind_is_that_of_the_config(kind: str) -> None:
    pairs = make_pairs(60, (6, 6), seed=1)
    config = load_config(TrainConfig, None, [f"start.kind={kind}", "gate=false", "epochs=3", "batch_size=32"])
    wanted = CSAligner(config, verbose=False).fit_features(pairs).model.state_dict()
    found = fits.train(config, pairs).state_dict()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())


def test_the_score_of_a_trial_is_that_of_the_evaluation() -> None:
    features = make_pairs(30, (6, 6), seed=4)
    assert score(features) == evaluate(features, intervals=False).metrics["alignment_score"]


@pytest.mark.parametrize("name", ["cca", "infonce", "defaults"])
def test_validation_rows_are_part_of_the_final_training_data(name: str) -> None:
    train, test = make_pairs(60, (6, 6), seed=1), make_pairs(20, (6, 6), seed=3)
    budget, found = Budget(BASE, trials=0, seeds=1, jobs=1), []
    for val_seed in (2, 5):
        fold = Fold("made", 0, ((train, make_pairs(20, (6, 6), seed=val_seed)),), test)
        found.append(compare([fold], [name], budget).measured[0].metrics["gap/paired_cosine"])
    assert found[0] != found[1]


@pytest.mark.parametrize("name", ["moments", "l2"])
def test_untrained_baselines_and_objectives_are_tuned_with_as_many_trials_on_as_many_images(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, fit = [], fits.fit

    def noted(method: Any, pairs: PairedFeatures, *more: Any, **options: Any) -> Any:
        seen.append(len(pairs.image))
        return fit(method, pairs, *more, **options)

    monkeypatch.setattr(fits, "fit", noted)
    train, val, test = (make_pairs(n, (6, 6), seed=seed) for n, seed in ((60, 1), (20, 2), (20, 3)))
    budget = Budget(BASE, trials=3, seeds=1, jobs=1, trial_images=30)
    result = compare([Fold("made", 0, ((train, val),), test)], [name], budget)
    assert seen == [30] * 3
    assert len(result.trials) == 3
    best = max(result.trials, key=lambda trial: float(trial["score"]))
    assert dict(result.measured[0].settings) == {key: best[key] for key in find_method(name).space()}
    assert len({trial[key] for trial in result.trials for key in find_method(name).space()}) > 1


def test_a_part_is_evenly_spaced_and_keeps_captions() -> None:
    pairs = make_pairs(60, (6, 6), seed=1)
    assert at_most(pairs, None) is at_most(pairs, 60) is pairs
    few = at_most(pairs, 20)
    places = [pairs.image_ids.index(name) for name in few.image_ids]
    assert len(places) == 20
    assert set(np.diff(places)) <= {2, 3, 4}
    assert len(few.text) == sum(int(owner) in places for owner in pairs.text_to_image)
