"""Approximate nearest-neighbour index, tuned to a target recall."""

from __future__ import annotations

import math

import torch

from .index import Index
from .lance_table import ItemKind
from .manifest import Approximate

TARGET = 0.95  # recall@10 to reach with as few partitions as possible
K, QUERIES = 10, 32  # queries per kind of item
REFINE = 10  # candidates re-scored with uncompressed vectors, as a multiple of k


def build_approximate(index: Index, kind: str) -> Approximate:
    """Build a LanceDB index of type `kind` over the aligned vectors of each table, with about sqrt(N) partitions.

    nprobes, the number of partitions read per query, is doubled until recall reaches TARGET or all are read."""
    rows, partitions = len(index), 1
    for items in index.kinds():
        if count := index.items.count(items):
            here = max(1, min(round(math.sqrt(count)), count // 64))
            index.items.build_approximate(items, kind, here)
            partitions = max(partitions, here)
    nprobes = min(8, partitions)
    while True:
        recall = measured_recall(index, nprobes, REFINE)
        if recall >= TARGET or nprobes >= partitions:
            return Approximate(kind, nprobes, REFINE, round(recall, 4), rows)
        nprobes = min(2 * nprobes, partitions)


def measured_recall(index: Index, nprobes: int, refine: int) -> float:
    """Return recall@10 of the approximate index against exact search, averaged over kinds of queries and items."""
    space = index.space("aligned")
    generator = torch.Generator().manual_seed(0)
    shares = []
    for vectors in space.vectors.values():
        for row in torch.randperm(len(vectors), generator=generator)[:QUERIES].tolist():
            shares += [_share(index, vectors[row], item, nprobes, refine) for item in space.vectors]
    return sum(shares) / max(1, len(shares))


def _share(index: Index, query: torch.Tensor, item: ItemKind, nprobes: int, refine: int) -> float:
    exact = set(index.space("aligned").nearest(query, item, K)[0])
    found = set(index.items.nearest(query, item, K, nprobes=nprobes, refine=refine)[0])
    return len(exact & found) / len(exact) if exact else 1.0
