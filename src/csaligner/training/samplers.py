"""Batch samplers for paired and unpaired rows, and row access to stores.

Samplers are stateless: epoch e of seed s is always the same, so a run resumes exactly. All ranks draw the same global
batches, and each reads its local rows only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from csaligner.adapters.aligner import with_states
from csaligner.distributed.processes import rank, world_size
from csaligner.store.store import Store
from csaligner.types import Batch, Inputs, Modality, PairedTokens, Sampler, Split, TokenPairs, TokenSets, TokenSource

UNPAIRED = -1


class Rows(Protocol):
    """Features indexed by row number: a tensor, or rows on disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor, /) -> Tensor: ...


class EncoderRows(Protocol):
    """Inputs of a trained encoder, indexed by row number."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor, /) -> Inputs: ...


class Pairs(Protocol):
    """PairedFeatures, in memory or on disk. text_to_image: (M,) int64, the row in `image` of each caption. tokens:
    included in the batches if present; with states the texts of a batch are a mapping of types.TEXT_STATES."""

    @property
    def image(self) -> Rows: ...

    @property
    def text(self) -> Rows: ...

    @property
    def text_to_image(self) -> Tensor: ...

    @property
    def tokens(self) -> PairedTokens | None: ...

    @property
    def states(self) -> TokenSource | None: ...


@dataclass(frozen=True)
class StatesRows:
    """Texts with the hidden states of their encoder: rows of types.TEXT_STATES."""

    pooled: Rows
    states: TokenSource

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, rows: Tensor, /) -> Inputs:
        return with_states(self.pooled[rows], self.states[rows])


class JoinedStates:
    """Concatenated StatesRows of several stores."""

    def __init__(self, sources: Sequence[StatesRows]) -> None:
        self._sources = sources
        self._ends = torch.tensor([len(source) for source in sources]).cumsum(dim=0)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, rows: Tensor, /) -> Inputs:
        where = torch.searchsorted(self._ends, rows, right=True)
        parts: list[tuple[Tensor, Tensor]] = []
        for number, row in zip(where.tolist(), rows.tolist(), strict=True):
            source = self._sources[number]
            own = torch.tensor([row - (int(self._ends[number]) - len(source))])
            parts.append((source.pooled[own], source.states[own].states[0]))
        sets = TokenSets.of([states for _, states in parts])
        return with_states(torch.cat([pooled for pooled, _ in parts]), sets)


@dataclass(frozen=True)
class StoredRows:
    """Rows of one modality of a store, read from its files on access."""

    store: Store
    side: Modality
    numbers: Tensor

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        return self.store.rows(self.side, self.numbers[rows])


@dataclass(frozen=True)
class StoredPairs:
    """The pairs of a store, with features on disk."""

    image: StoredRows
    text: StoredRows
    text_to_image: Tensor
    tokens: PairedTokens | None = None
    states: TokenSource | None = None

    @classmethod
    def of(
        cls,
        store: Store,
        split: Split | None = None,
        tokens: PairedTokens | None = None,
        states: TokenSource | None = None,
    ) -> StoredPairs:
        """Raises InputError if the split is empty or the store contains only one modality."""
        pairing = store.pairing(split)
        image, text = (
            StoredRows(store, "image", pairing.image_rows),
            StoredRows(store, "text", pairing.text_rows),
        )
        return cls(image, text, pairing.text_to_image, tokens, states)


class JoinedRows:
    """Concatenated rows of several sources."""

    def __init__(self, sources: Sequence[Rows]) -> None:
        self._sources = sources
        self._ends = torch.tensor([len(source) for source in sources]).cumsum(dim=0)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        where = torch.searchsorted(self._ends, rows, right=True)
        found: Tensor | None = None
        for number, source in enumerate(self._sources):
            here = where == number
            if number and not bool(here.any()):
                continue
            values = source[rows[here] - (int(self._ends[number]) - len(source))]
            found = values.new_empty(len(rows), values.shape[1]) if found is None else found
            found[here] = values
        assert found is not None  # there is at least one source
        return found


def own_part(rows: Tensor) -> Tensor:
    """Return this rank's rows of a global batch; the first ranks have one more if the split is uneven."""
    return torch.tensor_split(rows, world_size())[rank()]


class PairSampler:
    """Batches of images with one random caption each, or with all of them.

    N images give ceil(N / batch_size) batches of nearly equal size; an epoch includes every image. batch_size
    is the number of images over all ranks.
    """

    def __init__(
        self,
        pairs: Pairs,
        batch_size: int,
        captions: Literal["one", "all"] = "one",
        seed: int = 0,
    ) -> None:
        self._pairs = pairs
        self._captions = captions
        self._seed = seed
        n = len(pairs.image)
        self._counts = torch.bincount(pairs.text_to_image, minlength=n)
        self._by_image = torch.argsort(pairs.text_to_image, stable=True)
        self._first = torch.cumsum(self._counts, dim=0) - self._counts
        self.batches_per_epoch = -(-n // batch_size)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of epoch `number` (from 0)."""
        generator = torch.Generator().manual_seed((self._seed << 32) + number)
        order = torch.randperm(len(self._counts), generator=generator)
        choice = torch.rand(len(self._counts), generator=generator)
        for rows in torch.tensor_split(order, self.batches_per_epoch):
            own = own_part(rows)
            yield self._batch(own, choice[own])

    def _batch(self, rows: Tensor, choice: Tensor) -> Batch:
        counts, first = self._counts[rows], self._first[rows]
        if self._captions == "one":
            picked = first + (choice * counts).long()
        else:  # first, first + 1, ... of each image
            start = torch.repeat_interleave(first - (torch.cumsum(counts, dim=0) - counts), counts)
            picked = start + torch.arange(len(start))
        captions = self._by_image[picked]
        p, owners = self._pairs, self._pairs.text_to_image[captions]
        tokens = TokenPairs(p.tokens.image[owners], p.tokens.text[captions]) if p.tokens is not None else None
        text = p.text[captions] if p.states is None else with_states(p.text[captions], p.states[captions])
        return Batch(p.image[rows], text, rows, owners, tokens)


@dataclass(frozen=True)
class UnpairedRows:
    """Unpaired rows of one modality, and their number in each global batch."""

    rows: Rows | EncoderRows
    per_batch: int


class UnpairedSampler:
    """Adds unpaired rows, with id -1, to the batches of another sampler.

    Each modality is reshuffled for every pass over its unpaired rows, independently of epochs, so that no row occurs
    twice before all have occurred once.
    """

    def __init__(
        self, paired: Sampler, image: UnpairedRows | None = None, text: UnpairedRows | None = None, seed: int = 0
    ) -> None:
        self._paired = paired
        self._image = _Shuffled(image, 2 * seed) if image else None
        self._text = _Shuffled(text, 2 * seed + 1) if text else None
        self.batches_per_epoch = paired.batches_per_epoch

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of epoch `number` (from 0)."""
        for position, batch in enumerate(self._paired.epoch(number), number * self.batches_per_epoch):
            image, image_ids, text, text_ids = batch.image, batch.image_ids, batch.text, batch.text_ids
            if self._image and len(own := self._image.own(position)):
                image, image_ids = _append_unpaired(image, image_ids, self._image[own], len(own))
            if self._text and len(own := self._text.own(position)):
                text, text_ids = _append_unpaired(text, text_ids, self._text[own], len(own))
            yield Batch(image, text, image_ids, text_ids, batch.tokens)


def _append_unpaired(paired: Inputs, ids: Tensor, unpaired: Inputs, count: int) -> tuple[Inputs, Tensor]:
    all_ids = torch.cat([ids, ids.new_full((count,), UNPAIRED)])
    if isinstance(paired, Tensor):
        assert isinstance(unpaired, Tensor)  # a modality is either features or encoder inputs
        return torch.cat([paired, unpaired.to(paired.dtype)]), all_ids
    assert not isinstance(unpaired, Tensor)
    return {key: _stacked(value, unpaired[key]) for key, value in paired.items()}, all_ids


def _stacked(x: Tensor, y: Tensor) -> Tensor:
    """Concatenate rows. Texts of unequal lengths are padded with zeros, which their masks exclude."""
    if x.ndim in (2, 3) and x.shape[1] != y.shape[1]:
        longest, before = max(x.shape[1], y.shape[1]), (0, 0) * (x.ndim - 2)
        x, y = (pad(each, (*before, 0, longest - each.shape[1])) for each in (x, y))
    return torch.cat([x, y])


class _Shuffled:
    """An infinite stream of rows; pass k is shuffled by seed and k."""

    def __init__(self, unpaired: UnpairedRows, seed: int) -> None:
        self._rows = unpaired.rows
        self._size = min(unpaired.per_batch, len(unpaired.rows))
        self._seed = seed
        self._order: tuple[int, Tensor] | None = None

    def own(self, position: int) -> Tensor:
        """Return the stream positions of this rank's part of the global batch `position`."""
        return own_part(torch.arange(position * self._size, (position + 1) * self._size))

    def __getitem__(self, own: Tensor) -> Inputs:
        """Return the rows at these stream positions."""
        passes, places = own // len(self._rows), own % len(self._rows)
        rows = [self._pass(int(k))[places[passes == k]] for k in torch.unique(passes)]
        return self._rows[torch.cat(rows)]

    def _pass(self, number: int) -> Tensor:
        if self._order is None or self._order[0] != number:
            generator = torch.Generator().manual_seed((self._seed << 32) + number)
            self._order = number, torch.randperm(len(self._rows), generator=generator)
        return self._order[1]
