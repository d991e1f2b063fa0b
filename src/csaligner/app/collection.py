"""Name, example queries and map (2-d PCA) of a collection."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from csaligner.datasets.images.source import file_of, from_uri
from csaligner.search.index import Index
from csaligner.search.lance_table import ItemKind
from csaligner.search.vector_spaces import SpaceName
from csaligner.types import Modality

MOST = 1500  # maximum number of points on the map
EXAMPLES, LONGEST_EXAMPLE, READ = 5, 40, 2000  # texts, characters of one, texts to choose from
TABLES = frozenset({".csv", ".tsv", ".jsonl", ".json", ".parquet"})
NAMED = 3  # sources in the name of a collection


@dataclass(frozen=True)
class Point:
    """An item of the map. x, y: coordinates in 0 to 1."""

    id: str
    modality: Modality
    label: str
    x: float
    y: float


def collection_name(index: Index) -> str:
    """Return a title: the names of the indexed data, else the name of the index folder."""
    paths = [Path(source) for source in index.manifest.sources]
    names = list(dict.fromkeys(path.stem if path.suffix in TABLES else path.name for path in paths))
    if not names:
        return index.path.resolve().name
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def file_within(place: str, sources: Iterable[str]) -> str:
    """Return the file of an item relative to the indexed folder or the folder of the indexed table, with /; else its
    name. "" without a file. Contains no path of this machine above that folder.

    place: the URI of the item (Row.path); sources: the indexed data.
    """
    if not place:
        return ""
    file = file_of(from_uri(place))
    within = file.name
    for source in map(Path, sources):
        folder = source.parent if source.suffix in TABLES else source
        if folder != file and file.is_relative_to(folder):
            within = file.relative_to(folder).as_posix()
    return within.encode("utf-8", "replace").decode()


def example_texts(index: Index) -> list[str]:
    """Return a few short texts of the index as example queries, spread over its first texts."""
    texts = [text.strip() for text in index.items.first_texts(READ)]
    short = list(dict.fromkeys(text for text in texts if 0 < len(text) < LONGEST_EXAMPLE and text.isprintable()))
    count = min(EXAMPLES, len(short))
    return [short[(2 * i + 1) * len(short) // (2 * count)] for i in range(count)]


def collection_map(index: Index, space: SpaceName) -> list[Point]:
    """Project a space's vectors to two dimensions (PCA, equal weight of all kinds of items), for a random sample of at
    most MOST items, the same in every space."""
    vectors = index.space(space).vectors
    sample = {kind: _sample(len(rows), MOST // len(vectors)) for kind, rows in vectors.items()}
    chosen = {kind: rows[sample[kind]] for kind, rows in vectors.items()}
    if not sum(len(v) for v in chosen.values()):
        return []
    placed = _unit_square(_plane(chosen))
    points = []
    for kind in vectors:
        rows = index.items.by_row(kind, index.space(space).rows[kind][sample[kind]].tolist())
        for row, (x, y) in zip(rows, placed[kind].tolist(), strict=True):
            label = row.caption or row.text[:80] or row.id
            points.append(Point(row.id, row.modality, label, round(x, 4), round(y, 4)))
    return points


def _plane(vectors: Mapping[ItemKind, Tensor]) -> dict[ItemKind, Tensor]:
    """Project (N, d) -> (N, 2), per kind of item."""
    there = [v for v in vectors.values() if len(v)]
    mean = torch.stack([v.mean(dim=0) for v in there]).mean(dim=0)
    cov = torch.stack([(v - mean).T @ (v - mean) / len(v) for v in there]).mean(dim=0)
    main = torch.linalg.eigh(cov.double()).eigenvectors[:, -2:].flip(1).float()
    main = main * main.sum(dim=0).sign()  # fixes the arbitrary sign of eigenvectors
    return {m: (v - mean) @ main for m, v in vectors.items()}


def _unit_square(points: Mapping[ItemKind, Tensor]) -> dict[ItemKind, Tensor]:
    every = torch.cat(list(points.values()))
    low, high = every.min(dim=0).values, every.max(dim=0).values
    return {m: (p - low) / (high - low).clamp_min(1e-9) for m, p in points.items()}


def _sample(n: int, most: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:most].sort().values
