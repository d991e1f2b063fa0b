"""The data of a comparison: train, validation and test parts that never mix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from csaligner.checks import InputError
from csaligner.data.store import Store
from csaligner.pairing import join_features, pair_features
from csaligner.types import PairedFeatures

FOLDS = 5
INNER = 5  # one in so many of a fold's training rows validates


@dataclass(frozen=True)
class Fold:
    dataset: str
    number: int
    train: PairedFeatures
    val: PairedFeatures
    test: PairedFeatures

    @cached_property
    def train_and_val(self) -> PairedFeatures:
        """What is trained on once the settings are chosen."""
        return join_features(self.train, self.val)


def open_folds(path: Path) -> list[Fold]:
    """One fold for a store, by its own split; five for an array of paired features.

    path: a store's folder, or a file with an array (2, N, d): images first, row i pairs with row i. Its folds are
    RandomState(0).permutation(N)[fold::5] as test rows; every fifth of the others, in that order, validates.
    Raises InputError.
    """
    if path.is_dir():
        store = Store.open(path)
        parts = [store.features(split) for split in ("train", "val", "test")]
        for name, part in zip(("train", "val", "test"), parts, strict=True):
            if len(part.image) < 2:
                raise InputError(f"data: {path} has {len(part.image)} images in its {name} split, wanted at least 2")
        return [Fold(store.dataset, 0, *parts)]
    try:
        array = torch.as_tensor(np.load(path, allow_pickle=False)).float()
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"data: {path} is neither a store nor an .npy file of numbers ({error})") from None
    if array.ndim != 3 or len(array) != 2 or array.shape[1] < 4 * FOLDS:
        raise InputError(
            f"data: {path} holds an array of shape {tuple(array.shape)}, wanted (2, N, d) with N >= {4 * FOLDS}: "
            "image features, then text features"
        )
    order = np.random.RandomState(0).permutation(array.shape[1])
    folds = []
    for number in range(FOLDS):
        test = order[number::FOLDS]
        rest = np.setdiff1d(order, test)
        shuffled = order[np.isin(order, rest)]
        val = shuffled[::INNER]
        train = np.setdiff1d(rest, val)
        parts = [
            pair_features(array[0][rows], array[1][rows], [str(row) for row in rows]) for rows in (train, val, test)
        ]
        folds.append(Fold(path.stem, number, *parts))
    return folds
