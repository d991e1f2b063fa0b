"""Cross-validation folds: disjoint training, validation and test parts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from csaligner.checks import InputError
from csaligner.paired_features import join_features, pair_features
from csaligner.store.read_tokens import has_tokens, read_tokens
from csaligner.store.store import Store
from csaligner.types import PairedFeatures

FOLDS = 5
INNER = 5  # inner splits into training and validation rows per fold


@dataclass(frozen=True)
class Fold:
    """splits: pairs of (training, validation) parts used to choose settings; the union of a pair is the final training
    data."""

    dataset: str
    number: int
    splits: tuple[tuple[PairedFeatures, PairedFeatures], ...]
    test: PairedFeatures

    @cached_property
    def train_and_val(self) -> PairedFeatures:
        return join_features(*self.splits[0])


def open_folds(path: Path, test_images: int | None = None) -> list[Fold]:
    """Open one fold of a store (its own split), or five folds of an array of paired features.

    test_images: of an array, the first folds that have together this many test images; None: all five.

    path: a store's folder, or a file with an array (2, N, d): images first, row i pairs with row i. Its folds are
    RandomState(0).permutation(N)[fold::5] as test rows; the others, in that order, are divided into five
    validation parts (every fifth row, five offsets).
    Raises InputError.
    """
    if path.is_dir():
        store = Store.open(path)
        stored = [store.features(split) for split in ("train", "val", "test")]
        for name, part in zip(("train", "val", "test"), stored, strict=True):
            if len(part.image) < 2:
                raise InputError(f"data: {path} has {len(part.image)} images in its {name} split, wanted at least 2")
        if has_tokens(store):  # metrics use pooled features only
            stored[0] = replace(stored[0], tokens=read_tokens(store, "train"))
            stored[1] = replace(stored[1], tokens=read_tokens(store, "val"))
        train, val, test = stored
        return [Fold(store.dataset, 0, ((train, val),), test)]
    try:
        array = torch.as_tensor(np.load(path, allow_pickle=False)).float()
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"data: {path} is neither a store nor a numeric .npy file ({error})") from None
    if array.ndim != 3 or len(array) != 2 or array.shape[1] < 4 * FOLDS:
        raise InputError(
            f"data: {path} contains an array of shape {tuple(array.shape)}, wanted (2, N, d) with N >= {4 * FOLDS}: "
            "image features, then text features"
        )
    order = np.random.RandomState(0).permutation(array.shape[1])
    folds: list[Fold] = []
    for number in range(FOLDS):
        if test_images is not None and sum(len(fold.test.image) for fold in folds) >= test_images:
            break
        others = order[~np.isin(order, order[number::FOLDS])]
        splits = []
        for start in range(INNER):
            held_out = others[start::INNER]
            splits.append((_rows(array, np.setdiff1d(others, held_out)), _rows(array, held_out)))
        folds.append(Fold(path.stem, number, tuple(splits), _rows(array, order[number::FOLDS])))
    return folds


def _rows(array: torch.Tensor, rows: NDArray[np.int64]) -> PairedFeatures:
    return pair_features(array[0][rows], array[1][rows], [str(row) for row in rows])
