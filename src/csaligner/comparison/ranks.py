"""Ranks of methods over datasets, with bootstrap intervals over test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from csaligner.evaluation.bootstrap import resampled_means
from csaligner.evaluation.score import MEAN_RECALL, SCORE
from csaligner.reporting.comparison import MethodRank

from .differences import OF_IMAGES, FoldQueries, fold_counts

CAPTION_NDCG, IMAGE_NDCG, GAP = "mixed_ndcg@10", "mixed_ndcg@10/image_query", "gap/centroid"
RANKED = (MEAN_RECALL, CAPTION_NDCG, IMAGE_NDCG, GAP)
EQUAL = 1e-9  # differences up to this are ties
Array = NDArray[np.float64]
# dataset -> method -> metric -> (1 + resamples,): the measured value, then those of the bootstrap samples
Values = Mapping[str, Mapping[str, Mapping[str, Array]]]


def resampled_values(queries: Mapping[str, Mapping[str, Sequence[FoldQueries]]]) -> Values:
    """Return the values of every metric, means over folds. queries: dataset -> method -> one entry per fold."""
    return {
        dataset: {method: _of_folds(folds) for method, folds in methods.items()} for dataset, methods in queries.items()
    }


def _of_folds(folds: Sequence[FoldQueries]) -> dict[str, Array]:
    found = [_of_fold(fold) for fold in folds]
    return {metric: np.mean([values[metric] for values in found], axis=0) for metric in found[0]}


def _of_fold(fold: FoldQueries) -> dict[str, Array]:
    n = len(fold.values["image_recall"])
    counts = fold_counts(n, fold.fold)
    parts = {}
    for name, values in fold.values.items():
        image_of = torch.arange(n) if name in OF_IMAGES else torch.tensor(fold.owner)
        parts[name] = resampled_means(torch.tensor(values), image_of, counts).numpy()
    recall = (parts["image_recall"] + parts["caption_recall"]) / 2
    ndcg = (parts["image_ndcg"] + parts["caption_ndcg"]) / 2
    return {
        MEAN_RECALL: recall,
        CAPTION_NDCG: parts["caption_ndcg"],
        IMAGE_NDCG: parts["image_ndcg"],
        GAP: np.array(fold.gaps),
        SCORE: (recall + ndcg) / 2,
    }


def shared_ranks(goodness: Array) -> Array:
    """Return the ranks of the rows in every column: 1 is the highest; equal values share the mean of their ranks."""
    better = (goodness[None] > goodness[:, None] + EQUAL).sum(axis=1)
    equal = (np.abs(goodness[None] - goodness[:, None]) <= EQUAL).sum(axis=1)
    ranks: Array = 1 + better + (equal - 1) / 2
    return ranks


def rank_methods(values: Values) -> list[MethodRank]:
    """Rank the methods on every dataset by each metric of RANKED (a smaller gap is better), and average; the best
    first, methods that do not apply to every dataset last."""
    joint = {dataset: _ranks_on(methods, RANKED) for dataset, methods in values.items()}
    by_score = {dataset: _ranks_on(methods, (SCORE,)) for dataset, methods in values.items()}
    means = {}
    for method in dict.fromkeys(method for methods in values.values() for method in methods):
        here = [dataset for dataset in values if method in values[dataset]]
        means[method] = here, np.mean([joint[dataset][method] for dataset in here], axis=0)
    everywhere = {method for method, (here, _) in means.items() if len(here) == len(values)}
    best = min(everywhere or means, key=lambda method: means[method][1][0])
    found = []
    for method, (here, ranks) in means.items():
        behind = ranks - means[best][1]
        found.append(
            MethodRank(
                method,
                {dataset: float(joint[dataset][method][0]) for dataset in here},
                {dataset: float(values[dataset][method][SCORE][0]) for dataset in here},
                float(ranks[0]),
                _interval(ranks),
                (float(behind[0]), *_interval(behind)),
                float(np.mean([by_score[dataset][method][0] for dataset in here])),
                method in everywhere,
            )
        )
    return sorted(found, key=lambda r: (not r.everywhere, r.mean_rank))


def _ranks_on(methods: Mapping[str, Mapping[str, Array]], metrics: Sequence[str]) -> dict[str, Array]:
    """Return the mean over metrics of every method's ranks on one dataset, (1 + resamples,)."""
    by_metric = [
        shared_ranks(np.stack([(-1 if metric == GAP else 1) * values[metric] for values in methods.values()]))
        for metric in metrics
    ]
    return dict(zip(methods, np.mean(by_metric, axis=0), strict=True))


def _interval(values: Array) -> tuple[float, float]:
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return float(low), float(high)
