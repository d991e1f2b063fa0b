"""Mixed-modal search metrics: one index of images and texts, queried with both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from csaligner.paired_features import Ids, pair_features
from csaligner.types import Modality, PairedFeatures

from .query_chunks import Chunk, Matches, query_chunks
from .ranking import TIE, ranks

K = 10
WIDTH = K + 6  # nearest items kept per modality
RIGHT, OTHER, SIBLING, OWN = range(4)  # of the other modality: the right ones and the rest; of the query's: the same
MODALITIES: tuple[Modality, ...] = ("text", "image")
OF_IMAGES = (f"mixed_ndcg@{K}/image_query", f"modality_bias@{K}/image_query", f"mixed_text_recall@{K}")
OF_CAPTIONS = (f"mixed_ndcg@{K}", f"modality_bias@{K}", f"mixed_image_recall@{K}")


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
    found: dict[str, Tensor] = {}
    for queries in MODALITIES:
        found |= joined([mixed_of_chunk(c, queries) for c in query_chunks(features, queries, mixed=True)])
    return found


def joined(chunks: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate the values of all chunks by name."""
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


def mixed_of_chunk(chunk: Chunk, queries: Modality) -> dict[str, Tensor]:
    """Compute the metrics of the queries of a chunk.

    They depend on the first K results and their ties, which are among the right items and the WIDTH nearest others of
    each modality. Queries with further items tied to the last of the first K are computed from all scores.
    """
    assert chunk.own is not None
    assert chunk.siblings is not None
    items = chunk.other.shape[1] + chunk.own.shape[1]
    k, share = min(K, items - 1), (chunk.own.shape[1] - 1) / (items - 1)
    right, siblings = chunk.right.scores(chunk.other), chunk.siblings.scores(chunk.own)
    others, cut_other = _nearest(chunk.other, chunk.right)
    own, cut_own = _nearest(chunk.own, chunk.siblings)
    scores = torch.cat([right, others, siblings, own], dim=1)
    kind = torch.arange(4).repeat_interleave(torch.tensor([x.shape[1] for x in (right, others, siblings, own)]))
    found = _values(scores, kind.expand_as(scores), k, share)
    without = scores.masked_fill(kind == SIBLING, -torch.inf)
    last = without.topk(min(K, scores.shape[1]), dim=1).values[:, -1]
    cut = torch.maximum(cut_other, cut_own)
    tied = ((cut >= last - 3 * TIE) & (cut > -torch.inf)).nonzero().flatten()
    if len(tied):
        full = torch.cat([chunk.other[tied], chunk.own[tied]], dim=1)
        masks = chunk.right.mask(tied, chunk.other.shape[1]), chunk.siblings.mask(tied, chunk.own.shape[1])
        kinds = torch.cat([OTHER - masks[0].to(torch.int8), OWN - masks[1].to(torch.int8)], dim=1)
        for value, exact in zip(found, _values(full, kinds, k, share), strict=True):
            value[tied] = exact
    return dict(zip(OF_IMAGES if queries == "image" else OF_CAPTIONS, found, strict=True))


def _nearest(scores: Tensor, matches: Matches) -> tuple[Tensor, Tensor]:
    """Return the WIDTH highest scores of items that are not right, and a bound of all that were left out, (Q,)."""
    kept = scores[matches.row, matches.column]
    scores[matches.row, matches.column] = -torch.inf
    values = scores.topk(min(WIDTH, scores.shape[1]), dim=1, sorted=False).values
    scores[matches.row, matches.column] = kept
    bound = values.amin(dim=1) if scores.shape[1] > WIDTH else values.new_full((len(values),), -torch.inf)
    return values, bound


def _values(scores: Tensor, kind: Tensor, k: int, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return nDCG, modality bias and recall per query. scores: (Q, G), -inf = not a candidate; kind: (Q, G), RIGHT,
    OTHER, SIBLING or OWN; share: fraction of the query's modality among the candidates."""
    right, sibling = kind == RIGHT, kind == SIBLING
    bias = _first_share(scores, kind >= SIBLING, k) - share
    found = ranks(scores.masked_fill(sibling, -torch.inf), right).hit_at(K)
    return _ndcg(scores, right | sibling), bias, found


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
    share = _first_share(scores, own, min(K, scores.shape[1] - 1))
    return share - (own & candidate).sum(dim=1) / candidate.sum(dim=1).double()


def _first_share(scores: Tensor, own: Tensor, k: int) -> Tensor:
    """Return the expected fraction of the query's modality among the first k."""
    last = scores.topk(k, dim=1).values[:, -1:]
    above, tied = scores > last + TIE, ((scores - last).abs() <= TIE) & (scores > -torch.inf)
    places = k - above.sum(dim=1).double()
    return ((above & own).sum(dim=1) + places * (tied & own).sum(dim=1) / tied.sum(dim=1)) / k
