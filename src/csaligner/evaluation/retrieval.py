"""Cross-modal retrieval metrics: recall and ranks in both directions, any number of captions per image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.checks import check_same_dim
from csaligner.paired_features import Ids, pair_features
from csaligner.types import PairedFeatures

from .ranking import ranks

KS = (1, 5, 10)
CHUNK = 1024

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
    scores are computed for 1,024 queries at a time. Raises InputError.
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
    check_same_dim(("image_features", "text_features"), features.image, features.text)
    image, text = normalize(features.image, dim=1), normalize(features.text, dim=1)
    images = torch.arange(len(image))
    return {
        "image_to_text": _search(image, text, images, features.text_to_image),
        "text_to_image": _search(text, image, features.text_to_image, images),
    }


def _search(queries: Tensor, gallery: Tensor, query_ids: Tensor, gallery_ids: Tensor) -> PerQuery:
    parts = [
        ranks(q @ gallery.T, ids[:, None] == gallery_ids)
        for q, ids in zip(torch.split(queries, CHUNK), torch.split(query_ids, CHUNK), strict=True)
    ]
    values = {f"recall@{k}": torch.cat([part.hit_at(k) for part in parts]) for k in KS}
    return values | {"rank": torch.cat([part.expected() for part in parts])}
