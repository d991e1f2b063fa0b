"""Score for selecting an alignment, per image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.checks import check_same_dim
from csaligner.evaluation.held_out import K
from csaligner.evaluation.one_pass import search_per_query
from csaligner.evaluation.ranking import TIE
from csaligner.types import PairedFeatures

Prefer = Literal["both", "captions"]


def score_per_image(features: PairedFeatures, prefer: Prefer = "both") -> Tensor:
    """Return scores (N,) in points, float64: 100 times the mean of recall@1 and mixed nDCG@10 over image and text
    queries (both), or over text queries alone (captions).

    A caption has weight 1/m, m captions of its image, so the score of the pairs is the mean over images. Ties are
    handled as in evaluation.ranking: collapsed embeddings score at chance.
    """
    return score_and_recall(features, prefer)[0]


def score_and_recall(features: PairedFeatures, prefer: Prefer = "both") -> tuple[Tensor, float]:
    """Return score_per_image and recall@10 from captions to images, a mean over captions, from one search."""
    n, owner = len(features.image), features.text_to_image
    single = len(owner) == n and bool((owner == torch.arange(n)).all())
    found = _of_pairs(features) if single else _of_captions(features)
    counts = torch.bincount(owner, minlength=n).double()
    texts = torch.zeros(n, dtype=torch.float64).index_add_(0, owner, found.captions) / counts
    score = 50 * texts if prefer == "captions" else 25 * (found.images + texts)
    return score, float(found.recall.mean())


@dataclass(frozen=True)
class _Found:
    """Recall@1 + mixed nDCG@10 of each image (N,) and caption (M,), and recall@10 of each caption; float64."""

    images: Tensor
    captions: Tensor
    recall: Tensor


def _of_captions(features: PairedFeatures) -> _Found:
    recall, mixed = search_per_query(features)
    return _Found(
        recall["image_to_text"]["recall@1"].double() + mixed["mixed_ndcg@10/image_query"].double(),
        recall["text_to_image"]["recall@1"].double() + mixed["mixed_ndcg@10"].double(),
        recall["text_to_image"][f"recall@{K}"].double(),
    )


def _of_pairs(features: PairedFeatures) -> _Found:
    """Return the values of `_of_captions` where image i has caption i alone, from a few comparisons of matrices."""
    check_same_dim(("image_features", "text_features"), features.image, features.text)
    image, text = normalize(features.image, dim=1), normalize(features.text, dim=1)
    images, _ = _of_side(image, text)
    captions, recall = _of_side(text, image)
    return _Found(images, captions, recall)


def _of_side(queries: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return recall@1 + mixed nDCG@10 and recall@10 of queries (n, d); row i of `others` is right for query i."""
    cosines, own = queries @ others.T, queries @ queries.T
    own.diagonal().fill_(-torch.inf)
    right = cosines.diagonal()[:, None].clone()
    above = (cosines > right + TIE).sum(dim=1)
    tied = (cosines >= right - TIE).sum(dim=1) - above
    cosines.diagonal().fill_(-torch.inf)
    least = right - 2 * TIE  # as mixed nDCG breaks ties
    before = (cosines > least).sum(dim=1) + (own > least).sum(dim=1)
    gain = torch.where(before < K, 1 / torch.log2(before.double() + 2), 0.0)
    first, ten = (((k - above).clamp_min(0).double() / tied).clamp_max(1) for k in (1, K))
    return first + gain, ten
