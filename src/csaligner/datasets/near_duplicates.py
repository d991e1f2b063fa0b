"""Groups of near-identical images, so that a test image has no near-duplicate in the training set.

assets/near_duplicates/groups.json lists the image ids of OpenMoji, Tux Paint and Open Clip Art whose EfficientNet-Lite0
features have a cosine above 0.95, as connected components (benchmarks/near_duplicates.py). The list is fixed, so the
splits do not depend on the encoder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files

from csaligner.types import Item

from .split import split_of

PRIORITY = ("train", "val", "test")


def merge_near_duplicates(items: Sequence[Item]) -> list[Item]:
    """Merge the groups of near-duplicates. A merged group has the name of its first group in train, else val, else
    test: images leave the test set, none enters it, so models trained on earlier splits can be tested on it."""
    return merge_groups(items, near_duplicates())


@cache
def near_duplicates() -> tuple[tuple[str, ...], ...]:
    """Return the image ids of each set of near-duplicates."""
    text = (files("csaligner") / "assets" / "near_duplicates" / "groups.json").read_text(encoding="utf-8")
    return tuple(map(tuple, json.loads(text)["groups"]))


def merge_groups(items: Sequence[Item], sets: Sequence[Sequence[str]]) -> list[Item]:
    """Return the items with the groups of each set of image ids merged; unknown ids are ignored."""
    group_of = {item.image_id: item.group for item in items}
    clusters = connected([[group_of[i] for i in ids if i in group_of] for ids in sets])
    order = {group: place for place, group in enumerate(dict.fromkeys(item.group for item in items))}
    renamed: dict[str, str] = {}
    for cluster in clusters:
        name = min(cluster, key=lambda group: (PRIORITY.index(split_of(group)), order[group]))
        renamed |= dict.fromkeys(cluster, name)
    return [replace(item, group=renamed.get(item.group, item.group)) for item in items]


def connected(sets: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the connected components of names, two names being connected if they are in one set (union-find)."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for names in sets:
        for name in names:
            parent[root(name)] = root(names[0])
    found: dict[str, list[str]] = {}
    for name in parent:
        found.setdefault(root(name), []).append(name)
    return list(found.values())
