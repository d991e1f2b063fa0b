"""Tokens of a finished store: reading by split, and adding them to a store that was embedded without."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from csaligner.checks import InputError
from csaligner.types import Encoder, Modality, PairedTokens, Split

from .shard_maker import Encoders, ProgressCallback
from .store import SIDES, Store
from .tokens import (
    FOLDER,
    OWNER,
    ShardTokens,
    StoredTokens,
    are_there,
    encoded_items,
    finish_tokens,
    read_sets,
    token_encoder,
)


def add_tokens(store: Store, encoders: Encoders, per_item: int, progress: ProgressCallback | None = None) -> None:
    """Add the tokens to a finished store: at most `per_item` of an image and of a caption, evenly spaced.

    Images are read again, one shard in memory at a time. Tokens that are there for this `per_item` are kept. Raises
    InputError, without writing, for other encoders than the store's, for encoders without tokens or with tokens of
    another dimension than their features, and for a store without image paths or captions.
    """
    given: Mapping[Modality, Encoder | None] = {"image": encoders.image, "text": encoders.text}
    opened = {side: encoder for side, encoder in given.items() if encoder is not None and side in store.sides}
    store.require(**{side: encoder.info for side, encoder in opened.items()})
    if are_there(store.path, store.manifest.plan, per_item):
        return
    for side, encoder in opened.items():
        token_encoder(encoder, side)
    images, captions = store.rows_of("image") if "image" in store.sides else torch.empty(0), torch.arange(store.n_rows)
    rows = {"image": images.long(), "text": captions}
    ends = torch.tensor([shard.rows for shard in store.manifest.shards]).cumsum(dim=0)
    total, done = sum(len(rows[side]) for side in opened), 0
    for number, end in enumerate(ends.tolist()):
        start = end - store.manifest.shards[number].rows
        made = ShardTokens(per_item)
        for side, encoder in opened.items():
            items = store.items(side, rows[side][(rows[side] >= start) & (rows[side] < end)])
            if None in items:
                what = "captions" if side == "text" else "images"
                raise InputError(f"tokens: {store.path} has no {what}, only features; embed the data with csaligner")
            encoded_items(encoder, side, items, made)
            done += len(items)
            if progress is not None:
                progress(done, total)
        made.write(store.path, number)
    finish_tokens(store.path, store.manifest.plan, len(store.manifest.shards), per_item)


def has_tokens(store: Store) -> bool:
    return are_there(store.path, store.manifest.plan)


def read_tokens(store: Store, split: Split | None = None) -> PairedTokens:
    """Return the tokens of store.features(split), row by row, on disk. Raises InputError if missing or of another
    store."""
    whole, part = store.pairing(), store.pairing(split)
    sets = _sets(store, SIDES)
    for side, rows in (("image", whole.image_rows), ("text", whole.text_rows)):
        wanted = (len(rows), store.encoders["image" if side == "image" else "text"].dim)
        if side not in sets or (len(sets[side]), sets[side].dim) != wanted:
            raise InputError(
                f"tokens: the {side} side of {store.path / FOLDER} does not match its store; {OWNER.advice}"
            )
    images = torch.searchsorted(whole.image_rows, part.image_rows)
    texts = torch.searchsorted(whole.text_rows, part.text_rows)
    return PairedTokens(sets["image"].subset(images), sets["text"].subset(texts))


def read_states(store: Store, split: Split | None = None) -> StoredTokens | None:
    """Return the hidden states of the captions of a split, on disk; None if the store has none."""
    if not has_tokens(store) or "text" not in store.sides:
        return None
    sets = _sets(store, ("states",))
    if "states" not in sets:
        return None
    if len(sets["states"]) != store.n_rows:
        raise InputError(f"tokens: the text side of {store.path / FOLDER} does not match its store; {OWNER.advice}")
    return sets["states"].subset(store.rows_of("text", split))


def _sets(store: Store, names: tuple[str, ...]) -> dict[str, StoredTokens]:
    return read_sets(store.path, store.manifest.plan, len(store.manifest.shards), names)
