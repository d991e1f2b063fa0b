"""Paired bootstrap intervals of the differences between methods, over test images and over folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from csaligner.evaluation.bootstrap import RESAMPLES, draw_counts, percentile_interval, resampled_means, resampled_norms
from csaligner.evaluation.evaluate import pair_shifts
from csaligner.evaluation.one_pass import search_per_query
from csaligner.evaluation.score import MEAN_NDCG, MEAN_RECALL, SCORE
from csaligner.types import PairedFeatures

KEYS = (SCORE, MEAN_RECALL, MEAN_NDCG)
OF_IMAGES, OF_CAPTIONS = ("image_recall", "image_ndcg"), ("caption_recall", "caption_ndcg")
PerQuery = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class FoldQueries:
    """Values of every test query of one method on one fold, means over seeds. owner: the image of each caption;
    values: image_recall, image_ndcg (one per image), caption_recall, caption_ndcg (one per caption). gaps: see
    resampled_gaps."""

    fold: int
    owner: Sequence[int]
    values: PerQuery
    gaps: Sequence[float] = ()


@dataclass(frozen=True)
class MethodDifference:
    """One metric of `method` minus that of `other` on a dataset, as fractions.

    interval: 95 % over test images, folds as they are. fold_interval: the same if folds are resampled first, then
    images within them; None with one fold. Both are paired: every resample has the same images for both methods.
    Training sets of folds overlap, so fold_interval is somewhat too narrow.
    """

    dataset: str
    method: str
    other: str
    metric: str
    value: float
    interval: tuple[float, float]
    fold_interval: tuple[float, float] | None


def query_values(aligned: Sequence[PairedFeatures]) -> dict[str, list[float]]:
    """Return the values of FoldQueries. aligned: the test pairs of one fold, aligned with each seed."""
    sums: dict[str, Tensor] = {}
    for features in aligned:
        recall, mixed = search_per_query(features)
        for name, values in {
            "image_recall": recall["image_to_text"]["recall@1"],
            "image_ndcg": mixed["mixed_ndcg@10/image_query"],
            "caption_recall": recall["text_to_image"]["recall@1"],
            "caption_ndcg": mixed["mixed_ndcg@10"],
        }.items():
            sums[name] = sums.get(name, 0) + values.double() / len(aligned)
    return {name: values.tolist() for name, values in sums.items()}


def resampled_gaps(aligned: Sequence[PairedFeatures], fold: int) -> list[float]:
    """Return the centroid distance of the test part, then those of its bootstrap samples (fold_counts), means over
    seeds, to six digits. aligned: as in query_values."""
    counts = fold_counts(len(aligned[0].image), fold)[1:]
    rows = []
    for features in aligned:
        shifts = pair_shifts(features)
        rows.append(torch.cat([shifts.mean(dim=0).norm()[None], resampled_norms(shifts, counts)]))
    return [float(f"{gap:.6g}") for gap in torch.stack(rows).mean(dim=0).tolist()]


def fold_counts(images: int, fold: int) -> Tensor:
    """(1 + RESAMPLES, images): all test images of a fold once, then its bootstrap samples, the same for all methods."""
    return torch.cat([torch.ones(1, images, dtype=torch.float64), draw_counts(images, fold)])


def difference(
    dataset: str, method: str, other: str, ours: Sequence[FoldQueries], theirs: Sequence[FoldQueries], seed: int = 0
) -> list[MethodDifference]:
    """Return one difference per metric in KEYS. ours, theirs: one entry per fold, in the same order."""
    generator = torch.Generator().manual_seed(seed)
    per_fold = [_resampled(a, b, generator) for a, b in zip(ours, theirs, strict=True)]
    found = []
    for metric in KEYS:
        values = torch.tensor([fold[metric][0] for fold in per_fold], dtype=torch.float64)
        resamples = torch.stack([fold[metric][1] for fold in per_fold])  # (folds, RESAMPLES)
        over_images = percentile_interval(resamples.mean(dim=0))
        over_folds = None
        if len(per_fold) > 1:
            drawn = torch.randint(len(per_fold), resamples.shape, generator=generator)
            over_folds = percentile_interval(resamples.gather(0, drawn).mean(dim=0))
        found.append(MethodDifference(dataset, method, other, metric, float(values.mean()), over_images, over_folds))
    return found


def _resampled(ours: FoldQueries, theirs: FoldQueries, generator: torch.Generator) -> dict[str, tuple[float, Tensor]]:
    """Return the difference of each metric on one fold and its (RESAMPLES,) resampled values."""
    n, owner = len(ours.values["image_recall"]), torch.tensor(ours.owner)
    drawn = torch.randint(n, (RESAMPLES, n), generator=generator)
    counts = torch.zeros(RESAMPLES, n, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(counts))
    parts: dict[str, tuple[float, Tensor]] = {}
    for name in (*OF_IMAGES, *OF_CAPTIONS):
        change = torch.tensor(ours.values[name]).double() - torch.tensor(theirs.values[name]).double()
        images = torch.arange(n) if name in OF_IMAGES else owner
        parts[name] = float(change.mean()), resampled_means(change, images, counts)
    recall = _mean(parts["image_recall"], parts["caption_recall"])
    ndcg = _mean(parts["image_ndcg"], parts["caption_ndcg"])
    return {MEAN_RECALL: recall, MEAN_NDCG: ndcg, SCORE: _mean(recall, ndcg)}


def _mean(one: tuple[float, Tensor], two: tuple[float, Tensor]) -> tuple[float, Tensor]:
    return (one[0] + two[0]) / 2, (one[1] + two[1]) / 2
