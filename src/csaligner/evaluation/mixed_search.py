"""Mixed-modal search metrics: one index of images and texts, queried with both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.checks import check_same_dim
from csaligner.paired_features import Ids, pair_features
from csaligner.types import PairedFeatures

from .ranking import TIE, ranks

K = 10
CHUNK = 512
OF_IMAGES = (f"mixed_ndcg@{K}/image_query", f"modality_bias@{K}/image_query", f"mixed_text_recall@{K}")


def mixed_search_metrics(
    image_features: Any,
    text_features: Any,
    image_ids: Ids | None = None,
    *,
    text_image_ids: Ids | None = None,
) -> dict[str, float]:
    """Measure cosine search in a mixed index. Every caption and image is a query, excluding its own row.

    mixed_ndcg@10: binary relevance; relevant to a caption are its image and the other captions of that image
    (mixed_ndcg@10/image_query: to an image, its captions).
    mixed_image_recall@10: fraction of captions with their image in the first 10, other texts of that image excluded.
    mixed_text_recall@10: fraction of images with any of their captions in the first 10.
    modality_bias@10: fraction of the query's modality in the first 10, minus its fraction of the candidates; 0 =
    balanced, above 0 = favours the query's modality (caption queries; /image_query: image queries).
    Ties as in evaluation.ranking; in the nDCG, a relevant item ranks last among its ties. Ids as in
    paired_features.pair_features.
    """
    return mixed_search_of(pair_features(image_features, text_features, image_ids, text_image_ids))


def mixed_search_of(features: PairedFeatures) -> dict[str, float]:
    """Compute mixed_search_metrics of PairedFeatures."""
    return summarise(mixed_search_per_query(features))


def summarise(per_query: dict[str, Tensor]) -> dict[str, float]:
    """Average per-query values into mixed_search_metrics."""
    return {name: float(value.mean()) for name, value in per_query.items()}


def mixed_search_per_query(features: PairedFeatures) -> dict[str, Tensor]:
    """Compute the metrics of each caption; those in OF_IMAGES, of each image."""
    check_same_dim(("image_features", "text_features"), features.image, features.text)
    n = len(features.image)
    points = normalize(torch.cat([features.image, features.text]), dim=1)
    owner = torch.cat([torch.arange(n), features.text_to_image])
    is_text = torch.arange(len(points)) >= n
    text_rows, image_rows = torch.arange(n, len(points)), torch.arange(n)
    found: dict[str, list[Tensor]] = {}
    for rows, suffix in ((text_rows, ""), (image_rows, "/image_query")):
        for chunk in torch.split(rows, CHUNK):
            scores = points[chunk] @ points.T
            scores[torch.arange(len(chunk)), chunk] = -torch.inf
            same_item = owner[chunk][:, None] == owner
            own = is_text.expand_as(scores) if not suffix else ~is_text.expand_as(scores)
            found.setdefault(f"mixed_ndcg@{K}{suffix}", []).append(_ndcg(scores, same_item))
            found.setdefault(f"modality_bias@{K}{suffix}", []).append(modality_bias(scores, own))
            if suffix:
                found.setdefault(f"mixed_text_recall@{K}", []).append(ranks(scores, same_item & is_text).hit_at(K))
            else:
                image_only = scores.masked_fill(same_item & is_text, -torch.inf)
                hit = ranks(image_only, same_item & ~is_text).hit_at(K)
                found.setdefault(f"mixed_image_recall@{K}", []).append(hit)
    return {name: torch.cat(parts) for name, parts in found.items()}


def _ndcg(scores: Tensor, relevant: Tensor) -> Tensor:
    """nDCG@10: sum over the first 10 of rel / log2(rank + 1), divided by the best possible sum."""
    relevant = relevant & (scores > -torch.inf)
    top = (scores - 2 * TIE * relevant).topk(min(K, scores.shape[1]), dim=1).indices
    discount = 1 / torch.log2(torch.arange(2, top.shape[1] + 2).double())
    gained = (relevant.gather(1, top).double() * discount).sum(dim=1)
    wanted = relevant.sum(dim=1).clamp(max=top.shape[1])
    best = torch.cat([torch.zeros(1).double(), discount.cumsum(0)])[wanted]
    return gained / best.clamp_min(1e-12)


def modality_bias(scores: Tensor, own: Tensor) -> Tensor:
    """Compute modality_bias@10 of each query. scores: (Q, G), -inf = not a candidate; own: (Q, G) bool, candidates of
    the query's modality."""
    candidate = scores > -torch.inf
    k = min(K, scores.shape[1] - 1)
    last = scores.topk(k, dim=1).values[:, -1:]
    above, tied = scores > last + TIE, ((scores - last).abs() <= TIE) & candidate
    places = k - above.sum(dim=1).double()
    share = ((above & own).sum(dim=1) + places * (tied & own).sum(dim=1) / tied.sum(dim=1)) / k
    return share - (own & candidate).sum(dim=1) / candidate.sum(dim=1).double()
