"""Score for selecting an alignment, per image."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from csaligner.evaluation.held_out import K
from csaligner.evaluation.one_pass import search_per_query
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
    recall, mixed = search_per_query(features)
    captions = recall["text_to_image"]["recall@1"].double() + mixed["mixed_ndcg@10"].double()
    images = recall["image_to_text"]["recall@1"].double() + mixed["mixed_ndcg@10/image_query"].double()
    counts = torch.bincount(owner, minlength=n).double()
    texts = torch.zeros(n, dtype=torch.float64).index_add_(0, owner, captions) / counts
    score = 50 * texts if prefer == "captions" else 25 * (images + texts)
    return score, float(recall["text_to_image"][f"recall@{K}"].double().mean())
