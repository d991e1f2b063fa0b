"""The stores of one training run: pairs, and images and texts without partners."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from csaligner.config import TrainConfig, UnpairedConfig
from csaligner.store.store import Store
from csaligner.store.tokens import read_tokens
from csaligner.types import Modality, PairedFeatures, Sampler, Split

from .samplers import EncoderRows, JoinedRows, PairSampler, Rows, StoredPairs, StoredRows, UnpairedRows, UnpairedSampler


@dataclass(frozen=True)
class TrainingData:
    """pairs: the train split is trained on, the val split validates. val: another store whose pairs, all of them,
    validate instead. unpaired_images, unpaired_texts: stores whose images or texts, those of their train split, go into
    the divergences without partners; any store will do, one of pairs for either or both.
    """

    pairs: Store
    val: Store | None = None
    unpaired_images: tuple[Store, ...] = ()
    unpaired_texts: tuple[Store, ...] = ()

    def check(self) -> None:
        """InputError unless all stores were made by the encoders of the pairs."""
        image, text = self.pairs.image_fingerprint, self.pairs.text_fingerprint
        for store in self.unpaired_images:
            store.require(image=image)
        for store in self.unpaired_texts:
            store.require(text=text)
        if self.val is not None:
            self.val.require(image=image, text=text)

    def sampler(self, config: TrainConfig) -> Sampler:
        """Batches that are read from the stores as they are needed."""
        tokens = read_tokens(self.pairs, "train") if config.objective.sees_tokens else None
        stored = StoredPairs.of(self.pairs, "train", tokens)
        pairs = PairSampler(stored, config.batch_size, config.captions, config.seed)
        images, texts = joined(self.unpaired_images, "image"), joined(self.unpaired_texts, "text")
        return with_unpaired(pairs, images, texts, config.unpaired, config.seed)

    def validation(self, config: TrainConfig) -> PairedFeatures:
        """At most config.val_images images with their captions."""
        if self.val is not None:
            return some_pairs(self.val, None, config.val_images)
        return some_pairs(self.pairs, "val", config.val_images)

    def record(self) -> dict[str, Any]:
        """What a run folder records of the stores: where they were and what was in them."""
        more = {
            "val": _entries([self.val] if self.val else []),
            "unpaired_images": _entries(self.unpaired_images),
            "unpaired_texts": _entries(self.unpaired_texts),
        }
        pairs = {"store": str(self.pairs.path.resolve()), "store_sha256": self.pairs.sha256}
        return pairs | {name: entries for name, entries in more.items() if entries}


def with_unpaired(
    pairs: Sampler,
    images: Rows | EncoderRows | None,
    texts: Rows | EncoderRows | None,
    config: UnpairedConfig,
    seed: int,
) -> Sampler:
    """The pairs alone where there is nothing unpaired."""
    if images is None and texts is None:
        return pairs
    return UnpairedSampler(
        pairs,
        UnpairedRows(images, config.images) if images is not None else None,
        UnpairedRows(texts, config.texts) if texts is not None else None,
        seed,
    )


def some_pairs(store: Store, split: Split | None, images: int | None) -> PairedFeatures:
    """Pairs of a split with at most that many images, taken at even steps, with all their captions."""
    pairing = store.pairing(split)
    n = len(pairing.image_rows)
    if images is None or n <= images:
        return store.features(split)
    taken, kept, owner = evenly(n, images, pairing.text_to_image)
    rows = pairing.image_rows[taken]
    names = tuple(map(str, rows.tolist()))
    return PairedFeatures(store.rows("image", rows), store.rows("text", pairing.text_rows[kept]), owner, names)


def evenly(n: int, count: int, text_to_image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`count` of n images at even steps: their positions (count,), those of their captions, and the place of each
    caption's image among the `count`; all int64."""
    taken = torch.linspace(0, n - 1, count, dtype=torch.float64).round().long()
    place = torch.full((n,), -1)
    place[taken] = torch.arange(count)
    owner = place[text_to_image]
    kept = (owner >= 0).nonzero().flatten()
    return taken, kept, owner[kept]


def joined(stores: Iterable[Store], side: Modality) -> Rows | None:
    """One side of the train splits, one after the other; None where there is no store."""
    parts = [StoredRows(store, side, store.rows_of(side, "train")) for store in stores]
    return JoinedRows(parts) if parts else None


def _entries(stores: Iterable[Store]) -> list[dict[str, str]]:
    return [{"store": str(store.path.resolve()), "sha256": store.sha256} for store in stores]
