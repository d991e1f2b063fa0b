"""Hash rule for train, val and test splits: a fixed function of the group's name, the same on every machine."""

from __future__ import annotations

import hashlib

from csaligner.types import Item, Split

VAL, TEST = 0.05, 0.15  # the rest, 0.80, is train


def split_of(group: str) -> Split:
    """Return the split of a group: test if u < .15, val if u < .20, else train.

    u = the first 8 bytes of SHA-256(group in UTF-8), big-endian, / 2^64.

    This rule must never change: another split would move training images of existing models into the test set.
    Adding items to a dataset does not change the splits of the others.
    """
    u = int.from_bytes(hashlib.sha256(group.encode("utf-8")).digest()[:8], "big") / 2**64
    if u < TEST:
        return "test"
    return "val" if u < TEST + VAL else "train"


def item_split(item: Item) -> Split:
    """Return the split given by the dataset, else split_of(item.group)."""
    return item.split or split_of(item.group)
