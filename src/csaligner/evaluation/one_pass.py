"""Retrieval and mixed search of the same features in one pass over their cosines."""

from __future__ import annotations

from torch import Tensor

from csaligner.types import PairedFeatures

from .mixed_search import MODALITIES, joined, mixed_of_chunk
from .query_chunks import query_chunks
from .ranking import ranks_of
from .retrieval import DIRECTIONS, PerQuery, values_of


def search_per_query(features: PairedFeatures) -> tuple[dict[str, PerQuery], dict[str, Tensor]]:
    """Return retrieval_per_query and mixed_search_per_query, equal to separate calls, with half the products."""
    directions: dict[str, PerQuery] = {}
    mixed: dict[str, Tensor] = {}
    for modality in MODALITIES:
        ranked, values = [], []
        for chunk in query_chunks(features, modality, mixed=True):
            ranked.append(ranks_of(chunk.other, chunk.right))
            values.append(mixed_of_chunk(chunk, modality))
        directions[DIRECTIONS[modality]] = values_of(ranked)
        mixed |= joined(values)
    return directions, mixed
