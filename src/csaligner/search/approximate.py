"""Approximate nearest-neighbour index, tuned to a target recall."""

from __future__ import annotations

import math

import torch

from .index import Index
from .lance_table import ItemKind
from .manifest import Approximate
from .memory_ivf import KIND, MemoryIVF, require_faiss, write_lists

TARGET, TARGET_IN_MEMORY = 0.95, 0.99  # recall@10 to reach with as few partitions as possible
K, QUERIES = 10, 32  # queries per kind of item
REFINE, REFINE_IN_MEMORY = 10, 4  # candidates re-scored with uncompressed vectors, as a multiple of k


def build_approximate(index: Index, kind: str) -> Approximate:
    """Build a LanceDB index of type `kind` over the aligned vectors of each table, with about sqrt(N) partitions.

    nprobes, the number of partitions read per query, is doubled until recall reaches TARGET or all are read."""
    rows, partitions = len(index), 1
    if kind == KIND:
        partitions = _build_lists(index)
    for items in index.kinds():
        if (count := index.items.count(items)) and kind != KIND:
            here = max(1, min(round(math.sqrt(count)), count // 64))
            index.items.build_approximate(items, kind, here)
            partitions = max(partitions, here)
    nprobes = min(8, partitions)
    target, refine = (TARGET_IN_MEMORY, REFINE_IN_MEMORY) if kind == KIND else (TARGET, REFINE)
    while True:
        recall = measured_recall(index, nprobes, refine)
        if recall >= target or nprobes >= partitions:
            return Approximate(kind, nprobes, refine, round(recall, 4), rows)
        nprobes = min(2 * nprobes, partitions)


def _build_lists(index: Index) -> int:
    """Build and save the lists of faiss; returns the largest number of partitions."""
    require_faiss()
    vectors = index.space("aligned").vectors
    lists: dict[str, MemoryIVF] = {kind: MemoryIVF.build(rows) for kind, rows in vectors.items() if len(rows)}
    write_lists(index.path, lists, index.items.version)
    return max((one.partitions for one in lists.values()), default=1)


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
    found = set(index.nearest(query[None], item, K, nprobes=nprobes, refine=refine)[0][0])
    return len(exact & found) / len(exact) if exact else 1.0
