"""Ranks of methods over datasets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch

from csaligner.comparison.compare import Budget, compare
from csaligner.comparison.folds import Fold
from csaligner.comparison.ranks import RANKED, rank_methods, resampled_values, shared_ranks
from csaligner.config import TrainConfig
from csaligner.evaluation.evaluate import evaluate
from tests.support.features import make_pairs


def test_the_highest_is_first_and_equal_values_share_their_ranks() -> None:
    column = np.array([[0.3], [0.9], [0.3], [0.1]])
    assert shared_ranks(column).ravel().tolist() == [2.5, 1, 2.5, 4]


def constant(recall: float, captions: float, images: float, gap: float) -> Mapping[str, np.ndarray]:
    score = (recall + (captions + images) / 2) / 2
    values = dict(zip((*RANKED, "alignment_score"), (recall, captions, images, gap, score), strict=True))
    return {metric: np.full(11, value) for metric, value in values.items()}


def test_a_small_gap_is_good_and_ranks_are_averaged_over_metrics_and_datasets() -> None:
    good, blind = constant(0.8, 0.7, 0.6, 0.2), constant(0.1, 0.1, 0.1, 0.1)
    first, second, third = rank_methods(
        {"a": {"blind": blind, "good": good, "local": good}, "b": {"good": blind, "blind": good}}
    )
    assert (first.method, first.ranks) == ("good", {"a": (1.5 * 3 + 2.5) / 4, "b": (2 * 3 + 1) / 4})
    assert (second.method, second.ranks) == ("blind", {"a": (3 * 3 + 1) / 4, "b": (1 * 3 + 2) / 4})
    assert first.mean_rank == pytest.approx(sum(first.ranks.values()) / 2)
    assert first.score_rank == (1.5 + 2) / 2
    assert not third.everywhere
    assert third.behind[0] == pytest.approx(third.mean_rank - first.mean_rank)
    assert first.behind == (0, 0, 0)


def pairs_and_noise() -> tuple[Fold, Fold]:
    train, val = make_pairs(60, (6, 6), seed=1), make_pairs(20, (6, 6), seed=2)
    test = make_pairs(40, (6, 6), seed=3)
    noise = torch.randn(test.text.shape, generator=torch.Generator().manual_seed(0))
    return Fold("d", 0, ((train, val),), test), Fold("d", 1, ((train, val),), replace(test, text=test.text + noise))


def test_measured_values_are_those_of_the_evaluation_and_samples_lie_around_them() -> None:
    folds = pairs_and_noise()
    result = compare(folds, ["none", "mean-centring"], Budget(TrainConfig(), trials=0, seeds=1, jobs=1))
    values = resampled_values(result.queries)["d"]
    for metric in (*RANKED, "alignment_score"):
        wanted = [evaluate(fold.test, intervals=False).metrics[metric] for fold in folds]
        assert values["none"][metric][0] == pytest.approx(np.mean(wanted), rel=1e-5)
        samples = values["none"][metric][1:]
        assert samples.min() <= values["none"][metric][0] <= samples.max()
        assert metric not in {"mean_recall@1", "gap/centroid"} or len(set(samples.tolist())) > 5
    ranks = rank_methods({"d": values})
    for rank in ranks:
        assert rank.interval[0] <= rank.mean_rank <= rank.interval[1]
