"""Joining of two feature stores of the same encoders: the pairs of an earlier run and new ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from csaligner.checks import InputError
from csaligner.paired_features import join_features
from csaligner.store.store import Store, write_store
from csaligner.types import Split


def join_stores(first: Store, second: Store, path: Path) -> Store:
    """Write the pairs of both stores, with their splits, to `path`; ids of the second that the first has as well get
    the prefix new/. Raises InputError if the encoders differ or if `path` exists."""
    if path.exists():
        raise InputError(f"out: {path} exists, where the joined pairs are written; choose another --out or delete it")
    second.require(image=first.encoders["image"], text=first.encoders["text"])
    known = set(first.features().image_ids)
    splits: dict[str, Split] = {}
    parts = []
    for store in (first, second):
        for split in store.counts:
            features = store.features(split)
            if store is second:
                ids = tuple(f"new/{name}" if name in known else name for name in features.image_ids)
                features = replace(features, image_ids=ids)
            splits |= dict.fromkeys(features.image_ids, split)
            parts.append(features)
    whole = parts[0]
    for part in parts[1:]:
        whole = join_features(whole, part)
    encoders = first.encoders["image"], first.encoders["text"]
    return write_store(path, whole, encoders, splits=splits, dataset=f"{first.dataset} and {second.dataset}")
