"""Paired bootstrap intervals between methods."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from csaligner.comparison.compare import Budget, compare
from csaligner.comparison.differences import FoldQueries, difference, query_values
from csaligner.comparison.folds import Fold
from csaligner.config import AdapterConfig, TrainConfig
from csaligner.evaluation.evaluate import evaluate
from csaligner.types import PairedFeatures
from tests.support.features import make_pairs

METRICS = ("alignment_score", "mean_recall@1", "mean_mixed_ndcg@10")


def noisy(features: PairedFeatures, amount: float, seed: int) -> PairedFeatures:
    noise = torch.randn(features.text.shape, generator=torch.Generator().manual_seed(seed))
    return replace(features, text=features.text + amount * noise)


def queries(features: PairedFeatures, fold: int = 0) -> FoldQueries:
    return FoldQueries(fold, features.text_to_image.tolist(), query_values([features]))


def test_value_is_the_difference_of_the_metrics_and_lies_in_its_interval() -> None:
    image = torch.randn(80, 6, generator=torch.Generator().manual_seed(0))
    owner = torch.cat([torch.arange(80), torch.arange(30)])  # some images have two captions
    same = PairedFeatures(image, image[owner], owner, tuple(map(str, range(80))))
    one, two = noisy(same, 0.3, seed=1), noisy(same, 0.9, seed=2)
    a, b = (evaluate(f, intervals=False).metrics for f in (one, two))
    found = {d.metric: d for d in difference("made", "one", "two", [queries(one)], [queries(two)])}
    assert tuple(found) == METRICS
    for metric, d in found.items():
        assert d.value == pytest.approx(a[metric] - b[metric])
        assert d.interval[0] < d.value < d.interval[1]
        assert d.fold_interval is None


def test_width_is_that_of_the_paired_difference() -> None:
    n, rng = 400, np.random.default_rng(0)
    shared = rng.random(n)
    change = 0.1 * rng.random(n)

    def values(x: np.ndarray) -> FoldQueries:
        return FoldQueries(0, list(range(n)), dict.fromkeys(NAMES, x.tolist()))

    d = difference("made", "one", "two", [values(shared + change)], [values(shared)])[0]
    half = 1.96 * change.std() / n**0.5
    assert d.value == pytest.approx(change.mean())
    assert d.interval == pytest.approx((change.mean() - half, change.mean() + half), abs=0.1 * half)


NAMES = ("image_recall", "image_ndcg", "caption_recall", "caption_ndcg")


def test_folds_that_disagree_widen_the_interval_over_folds_alone() -> None:
    def fold(number: int, level: float) -> FoldQueries:
        return FoldQueries(number, [0, 1, 2, 3], dict.fromkeys(NAMES, [level] * 4))

    levels = (0.0, 0.1, 0.2, 0.3)
    ours, zero = ([fold(i, x * scale) for i, x in enumerate(levels)] for scale in (1, 0))
    d = difference("made", "one", "two", ours, zero)[0]
    assert d.interval == pytest.approx((0.15, 0.15))  # the images of a fold agree
    assert d.fold_interval is not None
    low, high = d.fold_interval
    assert 0 <= low < 0.1
    assert 0.2 < high <= 0.3


def test_the_best_free_baseline_is_the_one_with_the_best_score() -> None:
    adapter = AdapterConfig(hidden=8)
    budget = Budget(TrainConfig(epochs=2, image_adapter=adapter, text_adapter=adapter), trials=0, seeds=1, jobs=1)
    train, val, test = (make_pairs(n, (6, 6), seed=seed) for n, seed in ((60, 1), (20, 2), (30, 3)))
    result = compare([Fold("made", 0, ((train, val),), test)], ["none", "cca", "infonce"], budget)
    scores = {m.method: m.metrics["alignment_score"] for m in result.measured}
    best = max(("none", "cca"), key=scores.__getitem__)
    assert result.best_free == {"made": best}
    (d,) = (x for x in result.differences if (x.method, x.other, x.metric) == ("infonce", best, METRICS[0]))
    assert d.value == pytest.approx(scores["infonce"] - scores[best])
