"""An approximate index that is as exact as asked: its effort is chosen by measured recall."""

from __future__ import annotations

import math

import torch

from csaligner.types import Modality

from .calibration import MODALITIES
from .index import Index
from .manifest import Approximate

TARGET = 0.95  # recall@10 that the smallest effort must reach
K, QUERIES = 10, 32  # queries of each modality
REFINE = 10  # candidates of a compressed index that are scored again with whole vectors, times k


def build_approximate(index: Index, kind: str) -> Approximate:
    """Build LanceDB's index of that kind over the aligned vectors of each modality, with about sqrt(N) partitions, and
    read as many of them a query as reach TARGET, or all."""
    rows, partitions = len(index), 1
    for modality, count in index.counts.items():
        if count:
            here = max(1, min(round(math.sqrt(count)), count // 64))
            index.items.build_approximate(modality, kind, here)
            partitions = max(partitions, here)
    nprobes = min(8, partitions)
    while True:
        recall = measured_recall(index, nprobes, REFINE)
        if recall >= TARGET or nprobes >= partitions:
            return Approximate(kind, nprobes, REFINE, round(recall, 4), rows)
        nprobes = min(2 * nprobes, partitions)


def measured_recall(index: Index, nprobes: int, refine: int) -> float:
    """Share of the exact 10 nearest items of each modality that the approximate index finds, for queries of both."""
    space = index.space("aligned")
    generator = torch.Generator().manual_seed(0)
    shares = []
    for modality in MODALITIES:
        vectors = space.vectors[modality]
        for row in torch.randperm(len(vectors), generator=generator)[:QUERIES].tolist():
            shares += [_share(index, vectors[row], item, nprobes, refine) for item in MODALITIES]
    return sum(shares) / max(1, len(shares))


def _share(index: Index, query: torch.Tensor, item: Modality, nprobes: int, refine: int) -> float:
    exact = set(index.space("aligned").nearest(query, item, K)[0])
    found = set(index.items.nearest(query, item, K, nprobes=nprobes, refine=refine)[0])
    return len(exact & found) / len(exact) if exact else 1.0
