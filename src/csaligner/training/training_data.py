"""The stores of a training run: paired, validation and unpaired data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from csaligner.checks import InputError
from csaligner.config import TrainConfig, UnpairedConfig
from csaligner.paired_features import spaced
from csaligner.store.read_tokens import read_states, read_tokens
from csaligner.store.store import SIDES, Store
from csaligner.types import Modality, PairedFeatures, Sampler, Split

from .samplers import (
    EncoderRows,
    JoinedRows,
    JoinedStates,
    PairSampler,
    Rows,
    StatesRows,
    StoredPairs,
    StoredRows,
    UnpairedRows,
    UnpairedSampler,
)


@dataclass(frozen=True)
class TrainingData:
    """Stores for training and validation.

    pairs: its train split is used for training, its val split for validation. val: a store whose pairs, of all splits,
    are used for validation instead. unpaired_images, unpaired_texts: stores whose train split adds unpaired images or
    texts to the divergences; stores of pairs may be used for either or both.
    """

    pairs: Store
    val: Store | None = None
    unpaired_images: tuple[Store, ...] = ()
    unpaired_texts: tuple[Store, ...] = ()

    def check(self) -> None:
        """Raise InputError unless all stores were created with the encoders of the pairs."""
        image, text = (self.pairs.encoders.get(side) for side in SIDES)
        for store in self.unpaired_images:
            store.require(image=image)
        for store in self.unpaired_texts:
            store.require(text=text)
        if self.val is not None:
            self.val.require(image=image, text=text)

    def sampler(self, config: TrainConfig) -> Sampler:
        """Return a sampler that reads batches from the stores on demand."""
        tokens = read_tokens(self.pairs, "train") if config.objective.sees_tokens else None
        states = read_states(self.pairs, "train") if config.reads_states else None
        stored = StoredPairs.of(self.pairs, "train", tokens, states)
        pairs = PairSampler(stored, config.batch_size, config.captions, config.seed)
        images = joined(self.unpaired_images, "image")
        texts = joined(self.unpaired_texts, "text") if states is None else joined_states(self.unpaired_texts)
        return with_unpaired(pairs, images, texts, config.unpaired, config.seed)

    def validation(self, config: TrainConfig) -> PairedFeatures:
        """Return at most config.val_images images with their captions."""
        if self.val is not None:
            return some_pairs(self.val, None, config.val_images, config.reads_states)
        return some_pairs(self.pairs, "val", config.val_images, config.reads_states)

    def record(self) -> dict[str, Any]:
        """Return the provenance of the stores for the run folder: their paths or URLs, and checksums."""
        more = {
            "val": _entries([self.val] if self.val else []),
            "unpaired_images": _entries(self.unpaired_images),
            "unpaired_texts": _entries(self.unpaired_texts),
        }
        pairs = {"store": self.pairs.address, "store_sha256": self.pairs.sha256}
        return pairs | {name: entries for name, entries in more.items() if entries}


def with_unpaired(
    pairs: Sampler,
    images: Rows | EncoderRows | None,
    texts: Rows | EncoderRows | None,
    config: UnpairedConfig,
    seed: int,
) -> Sampler:
    """Return the sampler with unpaired rows added, or unchanged if there are none."""
    if images is None and texts is None:
        return pairs
    return UnpairedSampler(
        pairs,
        UnpairedRows(images, config.images) if images is not None else None,
        UnpairedRows(texts, config.texts) if texts is not None else None,
        seed,
    )


def some_pairs(store: Store, split: Split | None, images: int | None, states: bool = False) -> PairedFeatures:
    """Return the pairs of a split, with at most `images` evenly spaced images and all their captions. states: with the
    hidden states of the captions, if the store has them."""
    pairing = store.pairing(split)
    n = len(pairing.image_rows)
    hidden = read_states(store, split) if states else None
    if images is None or n <= images:
        return replace(store.features(split), states=hidden)
    taken, kept, owner = evenly(n, images, pairing.text_to_image)
    rows = pairing.image_rows[taken]
    names = tuple(map(str, rows.tolist()))
    text = store.rows("text", pairing.text_rows[kept])
    hidden = hidden.subset(kept) if hidden is not None else None
    return PairedFeatures(store.rows("image", rows), text, owner, names, states=hidden)


def groups_of(store: Store, split: Split, images: int | None) -> list[str] | None:
    """Return the group of each image of some_pairs(store, split, images); None if every image is its own group."""
    rows = store.pairing(split).image_rows
    if images is not None and len(rows) > images:
        rows = rows[spaced(len(rows), images)]
    groups = store.groups(rows)
    return groups if len(set(groups)) < len(groups) else None


def evenly_read(rows: Rows | None, count: int) -> Tensor | None:
    """Return the rows, at most `count`, evenly spaced; None without rows."""
    if rows is None or len(rows) == 0:
        return None
    return rows[spaced(len(rows), count)]


def evenly(n: int, count: int, text_to_image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Select `count` of n images, evenly spaced: their positions (count,), those of their captions, and the index of
    each caption's image in the selection; all int64."""
    taken = spaced(n, count)
    place = torch.full((n,), -1)
    place[taken] = torch.arange(count)
    owner = place[text_to_image]
    kept = (owner >= 0).nonzero().flatten()
    return taken, kept, owner[kept]


def joined(stores: Iterable[Store], side: Modality) -> Rows | None:
    """Concatenate one modality of the train splits; None without stores."""
    parts = [StoredRows(store, side, store.rows_of(side, "train")) for store in stores]
    return JoinedRows(parts) if parts else None


def joined_states(stores: Iterable[Store]) -> JoinedStates | None:
    """Concatenate the texts of the train splits with their hidden states; None without stores. Raises InputError for a
    store without states."""
    parts = []
    for store in stores:
        states = read_states(store, "train")
        if states is None:
            raise InputError(f"tokens: {store.path} has no hidden states for the prior; embed it with --tokens")
        parts.append(StatesRows(StoredRows(store, "text", store.rows_of("text", "train")), states))
    return JoinedStates(parts) if parts else None


def _entries(stores: Iterable[Store]) -> list[dict[str, str]]:
    return [{"store": store.address, "sha256": store.sha256} for store in stores]
