"""Cross-modal retrieval: recall and ranks in both directions, with any number of captions an image."""

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
    """Recall at 1, 5, 10 (fractions of 1), mean and median rank, both ways, by cosine.

    image_to_text_recall@K: share of images with any of their captions among the first K texts (any hit);
    text_to_image_recall@K: share of captions with their image among the first K images. Ids as in
    pairing.pair_features, ties as in evaluation.ranking. n_images and n_captions stand beside. Memory: O(N d),
    scores exist for 1,024 queries at a time. Raises InputError.
    """
    return retrieval_of(pair_features(image_features, text_features, image_ids, text_image_ids))


def retrieval_of(features: PairedFeatures) -> dict[str, float]:
    """retrieval_metrics of features that are paired already."""
    return summarise(retrieval_per_query(features))


def summarise(per_query: dict[str, PerQuery]) -> dict[str, float]:
    """retrieval_metrics from the values of each query."""
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
    """recall@K and rank of each query: of the N images, and of the M captions."""
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
