"""Batches of encoder inputs for LoRA training: captions and images in place of stored features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from csaligner.adapters.lora import TunableEncoder
from csaligner.checks import InputError
from csaligner.config import LoRAConfig, TrainConfig
from csaligner.encoders import open_encoder
from csaligner.store.decode_workers import prepared
from csaligner.store.read_tokens import read_states, read_tokens
from csaligner.store.store import Store
from csaligner.store.streams import encode_with_tokens
from csaligner.store.tokens import MAX_STATES
from csaligner.types import Encoder, Inputs, Modality, PairedFeatures, PairedTokens, Sampler, Split, TokenRows

from .samplers import EncoderRows, Pairs, PairSampler, Rows
from .training_data import TrainingData, evenly, joined, with_unpaired

CHUNK = 256  # images in memory at a time


@dataclass(frozen=True)
class _EncoderRows:
    """Encoder inputs, loaded on access."""

    items: Sequence[Any]
    encoder: Encoder
    side: Modality

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, rows: Tensor, /) -> Inputs:
        items = [prepared(self.encoder, self.items[row], self.side) for row in rows.tolist()]
        return cast(TunableEncoder, self.encoder).inputs(items)


@dataclass(frozen=True)
class _Pairs:
    image: Any
    text: Any
    text_to_image: Tensor
    tokens: PairedTokens | None = None
    states: None = None


@dataclass(frozen=True)
class TrainableStore:
    """encoders: modality -> the encoder of the store; modalities without one use the stored features."""

    store: Store
    encoders: Mapping[Modality, Encoder]

    @classmethod
    def open(cls, store: Store, config: LoRAConfig) -> TrainableStore:
        """Raises InputError if an encoder cannot be opened, differs from that of the store, or cannot be trained."""
        sides: tuple[Modality, ...] = ("image", "text") if config.sides == "both" else (config.sides,)
        found: dict[Modality, Encoder] = {}
        for side in sides:
            info = store.encoders[side]
            encoder = open_encoder(info.id, side)
            if encoder.info.fingerprint != info.fingerprint:
                raise InputError(
                    f"lora: {info.id} is not the encoder of the {side} features of {store.path} "
                    f"(revision {encoder.info.revision}, then {info.revision}); embed the data again"
                )
            if not isinstance(encoder, TunableEncoder):
                raise InputError(f"lora: {info.id} does not support LoRA; use an hf: encoder for the {side}")
            found[side] = encoder
        return cls(store, found)

    @property
    def towers(self) -> dict[Modality, Any]:
        return {side: cast(TunableEncoder, encoder).tower for side, encoder in self.encoders.items()}

    def sampler(self, config: TrainConfig, data: TrainingData | None = None) -> Sampler:
        """Return batches of the train split: token ids, pixels, or features of a frozen modality. data: adds the
        rows of its unpaired stores."""
        pairs = self.store.features("train")
        sides = {
            side: _EncoderRows(self._items(pairs, side), self.encoders[side], side)
            if side in self.encoders
            else getattr(pairs, side)
            for side in ("image", "text")
        }
        tokens = read_tokens(self.store, "train") if config.objective.sees_tokens else None
        rows = _Pairs(sides["image"], sides["text"], pairs.text_to_image, tokens)
        sampler = PairSampler(cast(Pairs, rows), config.batch_size, config.captions, config.seed)
        if data is None:
            return sampler
        images, texts = self._unpaired(data.unpaired_images, "image"), self._unpaired(data.unpaired_texts, "text")
        return with_unpaired(sampler, images, texts, config.unpaired, config.seed)

    def with_store(self, store: Store) -> TrainableStore:
        """Return another store with the same encoders and towers."""
        return replace(self, store=store)

    def features(self, split: Split | None, images: int | None = None, states: bool = False) -> PairedFeatures:
        """Return the pairs of a split (None: all), encoded with the current weights; images: their maximum number;
        states: with the hidden states of the captions."""
        whole = self.store.features(split)
        if states and "text" not in self.encoders:
            whole = replace(whole, states=read_states(self.store, split))
        pairs = _thinned(whole, images)
        image = self._encode(pairs, "image") if "image" in self.encoders else pairs.image
        text, hidden = pairs.text, pairs.states
        if "text" in self.encoders:
            text, hidden = self._encode_states(pairs) if states else (self._encode(pairs, "text"), None)
        return replace(pairs, image=image, text=text, states=hidden)

    def _unpaired(self, stores: Sequence[Store], side: Modality) -> Rows | EncoderRows | None:
        if side not in self.encoders or not stores:
            return joined(stores, side)
        items: list[Any] = []
        for store in stores:
            found = store.items(side, store.rows_of(side, "train"))
            if None in found:
                what = "captions" if side == "text" else "images"
                raise InputError(
                    f"lora: {store.path} contains only features, no {what}; embed the data to train with LoRA"
                )
            items += found
        return _EncoderRows(items, self.encoders[side], side)

    def _items(self, pairs: PairedFeatures, side: Modality) -> Sequence[Any]:
        if side == "text":
            captions = pairs.captions
            if captions is None or not any(captions):
                raise InputError(
                    f"lora: {self.store.path} contains only features, no captions; embed the data to train with LoRA"
                )
            return captions
        sources = self.store.image_sources
        missing = next((image_id for image_id in pairs.image_ids if image_id not in sources), None)
        if missing is not None:
            raise InputError(
                f"lora: {self.store.path} has no image source for {missing!r}; embed the data to train with LoRA"
            )
        return [sources[image_id] for image_id in pairs.image_ids]

    def _encode(self, pairs: PairedFeatures, side: Modality) -> Tensor:
        encoder, items = self.encoders[side], self._items(pairs, side)
        chunks = (items[i : i + CHUNK] for i in range(0, len(items), CHUNK))
        return torch.cat([encoder.encode([prepared(encoder, item, side) for item in chunk]) for chunk in chunks])

    def _encode_states(self, pairs: PairedFeatures) -> tuple[Tensor, TokenRows]:
        """Return the features of the captions, and the hidden states of their text encoder."""
        encoder, items = self.encoders["text"], self._items(pairs, "text")
        parts = [
            encode_with_tokens(encoder, "text", [encoder.prepare(item) for item in items[i : i + CHUNK]])
            for i in range(0, len(items), CHUNK)
        ]
        states = [state[:MAX_STATES] for part in parts for state in part.states or ()]
        counts = torch.tensor([len(state) for state in states])
        return torch.cat([part.features for part in parts]), TokenRows(torch.cat(states), counts)


def _thinned(pairs: PairedFeatures, images: int | None) -> PairedFeatures:
    n = len(pairs.image)
    if images is None or n <= images:
        return pairs
    taken, kept, owner = evenly(n, images, pairs.text_to_image)
    captions = tuple(pairs.captions[i] for i in kept.tolist()) if pairs.captions else None
    ids = tuple(pairs.image_ids[i] for i in taken.tolist())
    states = pairs.states.subset(kept) if pairs.states is not None else None
    return PairedFeatures(pairs.image[taken], pairs.text[kept], owner, ids, captions, states=states)
