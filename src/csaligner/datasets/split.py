"""Who is in train, val and test: decided by a hash of the group's name, the same on every machine for ever."""

from __future__ import annotations

import hashlib

from csaligner.types import Item, Split

VAL, TEST = 0.05, 0.15  # the rest, 0.80, is train


def split_of(group: str) -> Split:
    """u = the first 8 bytes of SHA-256(group in UTF-8), big-endian, / 2^64.

    test where u < .15, val where u < .20, else train.

    This rule must never change: a changed split would put pictures that old models were trained on into the test
    set. Adding items to a dataset moves none of the others.
    """
    u = int.from_bytes(hashlib.sha256(group.encode("utf-8")).digest()[:8], "big") / 2**64
    if u < TEST:
        return "test"
    return "val" if u < TEST + VAL else "train"


def item_split(item: Item) -> Split:
    """The split that the source fixes, else split_of(item.group)."""
    return item.split or split_of(item.group)
