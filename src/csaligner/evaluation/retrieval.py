"""Cross-modal retrieval metrics: recall and ranks in both directions, any number of captions per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from csaligner.paired_features import Ids, pair_features
from csaligner.types import Modality, PairedFeatures

from .query_chunks import query_chunks
from .ranking import Ranks, ranks_of

KS = (1, 5, 10)
DIRECTIONS: Mapping[Modality, str] = {"image": "image_to_text", "text": "text_to_image"}  # by modality of the query

PerQuery = dict[str, Tensor]

_COUNTS = {"n_images": "image_to_text", "n_captions": "text_to_image"}


def retrieval_metrics(
    image_features: Any,
    text_features: Any,
    image_ids: Ids | None = None,
    *,
    text_image_ids: Ids | None = None,
) -> dict[str, float]:
    """Compute recall@1, 5, 10 (0 to 1), mean and median rank in both directions, by cosine.

    image_to_text_recall@K: fraction of images with any of their captions among the first K texts;
    text_to_image_recall@K: fraction of captions with their image among the first K images. Ids as in
    paired_features.pair_features, ties as in evaluation.ranking. Includes n_images and n_captions. Memory: O(N d);
    scores are computed for at most 512 queries at a time. Raises InputError.
    """
    return retrieval_of(pair_features(image_features, text_features, image_ids, text_image_ids))


def retrieval_of(features: PairedFeatures) -> dict[str, float]:
    """Compute retrieval_metrics of PairedFeatures."""
    return summarise(retrieval_per_query(features))


def summarise(per_query: dict[str, PerQuery]) -> dict[str, float]:
    """Average per-query values into retrieval_metrics."""
    found: dict[str, float] = {}
    for direction, values in per_query.items():
        for name, value in values.items():
            if name == "rank":
                found[f"{direction}_mean_rank"] = float(value.mean())
                found[f"{direction}_median_rank"] = float(value.quantile(0.5))
            else:
                found[f"{direction}_{name}"] = float(value.mean())
    counts = {name: float(len(per_query[direction]["rank"])) for name, direction in _COUNTS.items()}
    return found | counts


def retrieval_per_query(features: PairedFeatures) -> dict[str, PerQuery]:
    """Compute recall@K and rank of each query: N images and M captions."""
    return {
        direction: values_of([ranks_of(c.other, c.right) for c in query_chunks(features, modality, mixed=False)])
        for modality, direction in DIRECTIONS.items()
    }


def values_of(parts: Sequence[Ranks]) -> PerQuery:
    """Return recall@K and rank of the queries of one direction."""
    values = {f"recall@{k}": torch.cat([part.hit_at(k) for part in parts]) for k in KS}
    return values | {"rank": torch.cat([part.expected() for part in parts])}
