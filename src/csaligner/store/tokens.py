"""Token features of a store, tokens.safetensors, for the token-level term.

The file holds, for the images in the order of their first row and for every caption row, the concatenated tokens
(float16) and the number of tokens per item, and the plan of the store.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from csaligner.checks import InputError
from csaligner.files import write_atomically
from csaligner.integrity import ErrorContext, load_tensors, save_tensors
from csaligner.types import Encoder, Modality, PairedTokens, Split, TokenRows

from .decode_workers import prepared
from .shard_maker import Encoders, ProgressCallback
from .store import SIDES, Store

TOKENS = "tokens.safetensors"
CHUNK = 64  # items in memory at a time
OWNER = ErrorContext("tokens", "delete it and embed with --tokens again")


@runtime_checkable
class TokenEncoder(Protocol):
    """An encoder with token features: B prepared items -> (B, T, d) float32, and a mask (B, T) of bool."""

    def encode_tokens(self, prepared: Sequence[Any]) -> tuple[Tensor, Tensor]: ...


def embed_tokens(store: Store, encoders: Encoders, per_item: int, progress: ProgressCallback | None = None) -> None:
    """Add the tokens to a finished store of pairs: at most `per_item` per image and per caption, evenly spaced.

    Images are read again. An existing file for this store and `per_item` is kept. All tokens are in memory, 2 bytes per
    number. Raises InputError, without writing, for other encoders than the store's, for encoders without tokens or with
    tokens of another dimension than their features, and for a store without image paths or captions.
    """
    store.require(
        image=encoders.image.info if encoders.image else None, text=encoders.text.info if encoders.text else None
    )
    if _is_there(store, per_item):
        return
    pairing = store.pairing()
    rows = {"image": pairing.image_rows, "text": pairing.text_rows}
    items = {side: store.items(side, rows[side]) for side in SIDES}
    total, done = sum(map(len, items.values())), 0
    tensors = {"plan": _as_bytes(store.manifest.plan), "per_item": torch.tensor(per_item)}
    for side in SIDES:
        encoder = encoders.image if side == "image" else encoders.text
        if not isinstance(encoder, TokenEncoder):
            raise InputError(f"tokens: {store.encoders[side].id} has no tokens; choose an hf: or bundled: encoder")
        if None in items[side]:
            what = "captions" if side == "text" else "images"
            raise InputError(f"tokens: {store.path} has no {what}, only features; embed the data with csaligner")
        kept: list[Tensor] = []
        for sets in _encoded(encoder, side, items[side]):
            kept += [_some(tokens, per_item).half() for tokens in sets]
            done += len(sets)
            if progress is not None:
                progress(done, total)
        tensors |= {side: torch.cat(kept), f"{side}_counts": torch.tensor([len(tokens) for tokens in kept])}
    write_atomically(store.path / TOKENS, lambda temporary: save_tensors(tensors, temporary))


def has_tokens(store: Store) -> bool:
    return (store.path / TOKENS).is_file()


def read_tokens(store: Store, split: Split | None = None) -> PairedTokens:
    """Return the tokens of store.features(split), row by row. Raises InputError if missing or of another store."""
    if not has_tokens(store):
        raise InputError(f"tokens: {store.path} holds no {TOKENS}; embed with --tokens")
    tensors = _load(store)
    if not torch.equal(tensors["plan"], _as_bytes(store.manifest.plan)):
        raise InputError(f"tokens: {store.path / TOKENS} belongs to another store; {OWNER.advice}")
    whole, part = store.pairing(), store.pairing(split)
    images = torch.searchsorted(whole.image_rows, part.image_rows)
    texts = torch.searchsorted(whole.text_rows, part.text_rows)
    image = _sets(store, tensors, "image", len(whole.image_rows))
    text = _sets(store, tensors, "text", len(whole.text_rows))
    return PairedTokens(_chosen(image, images), _chosen(text, texts))


def _is_there(store: Store, per_item: int) -> bool:
    if not has_tokens(store):
        return False
    tensors = _load(store)
    return torch.equal(tensors["plan"], _as_bytes(store.manifest.plan)) and int(tensors["per_item"]) == per_item


def _load(store: Store) -> dict[str, Tensor]:
    tensors = load_tensors(store.path / TOKENS, OWNER)
    wanted = {"plan", "per_item", *SIDES, *(f"{side}_counts" for side in SIDES)}
    if not wanted <= set(tensors):
        raise InputError(f"tokens: {store.path / TOKENS} lacks {min(wanted - set(tensors))}; {OWNER.advice}")
    return tensors


def _sets(store: Store, tensors: Mapping[str, Tensor], side: Modality, rows: int) -> TokenRows:
    """Return one modality of the file. Raises InputError if it does not match the store."""
    states, counts = tensors[side], tensors[f"{side}_counts"]
    wanted = (int(counts.sum()), store.encoders[side].dim)
    if counts.dtype != torch.int64 or counts.shape != (rows,) or int(counts.min()) < 1 or states.shape != wanted:
        raise InputError(f"tokens: the {side} side of {store.path / TOKENS} does not match its store; {OWNER.advice}")
    return TokenRows(states, counts)


def _encoded(encoder: TokenEncoder, side: Modality, items: Sequence[Any]) -> Iterator[list[Tensor]]:
    """Yield the unmasked tokens (T, d) of each item, one chunk of items at a time."""
    assert isinstance(encoder, Encoder)
    for start in range(0, len(items), CHUNK):
        chunk = [prepared(encoder, item, side) for item in items[start : start + CHUNK]]
        states, mask = encoder.encode_tokens(chunk)
        if states.shape[2] != encoder.info.dim:
            raise InputError(
                f"tokens: {encoder.info.id} has tokens of {states.shape[2]} dimensions and features of "
                f"{encoder.info.dim}, wanted equal dimensions; choose an encoder that pools its tokens"
            )
        if not bool(mask.any(dim=1).all()):
            odd = items[start + int((~mask.any(dim=1)).nonzero()[0])]
            raise InputError(f"tokens: {encoder.info.id} returns none for {str(odd)[:60]!r}; remove that item")
        yield [row[own] for row, own in zip(states, mask, strict=True)]


def _some(tokens: Tensor, count: int) -> Tensor:
    if len(tokens) <= count:
        return tokens
    return tokens[torch.linspace(0, len(tokens) - 1, count, dtype=torch.float64).round().long()]


def _chosen(sets: TokenRows, rows: Tensor) -> TokenRows:
    owner = torch.repeat_interleave(torch.arange(len(sets)), sets.counts)
    place = torch.full((len(sets),), -1)
    place[rows] = torch.arange(len(rows))  # rows are ascending, which keeps the order of the tokens
    return TokenRows(sets.states[place[owner] >= 0], sets.counts[rows])


def _as_bytes(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)
