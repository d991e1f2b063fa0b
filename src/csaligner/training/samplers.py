"""From features to batches. Stateless: epoch e of seed s is always the same, so a run resumes exactly.

Across ranks every process draws the same global batches and reads its own rows of them alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from csaligner.distributed.processes import rank, world_size
from csaligner.store.store import Store
from csaligner.types import Batch, Inputs, Modality, PairedTokens, Sampler, Split, TokenPairs

UNPAIRED = -1


class Rows(Protocol):
    """Features that are read by row number: a tensor, or rows that stay on disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor, /) -> Tensor: ...


class EncoderRows(Protocol):
    """The same for an encoder that is trained: what it takes, read by row number."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor, /) -> Inputs: ...


class Pairs(Protocol):
    """PairedFeatures, or the same on disk. text_to_image: (M,) int64, the row in `image` of each caption. tokens: they
    go into the batches where they are there."""

    @property
    def image(self) -> Rows: ...

    @property
    def text(self) -> Rows: ...

    @property
    def text_to_image(self) -> Tensor: ...

    @property
    def tokens(self) -> PairedTokens | None: ...


@dataclass(frozen=True)
class StoredRows:
    """Rows of one side of a store, read from its files when they are asked for."""

    store: Store
    side: Modality
    numbers: Tensor

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        return self.store.rows(self.side, self.numbers[rows])


@dataclass(frozen=True)
class StoredPairs:
    """The pairs of a store, their features left on disk."""

    image: StoredRows
    text: StoredRows
    text_to_image: Tensor
    tokens: PairedTokens | None = None

    @classmethod
    def of(cls, store: Store, split: Split | None = None, tokens: PairedTokens | None = None) -> StoredPairs:
        """Raises InputError where the split is empty or the store holds one modality."""
        pairing = store.pairing(split)
        image, text = (
            StoredRows(store, "image", pairing.image_rows),
            StoredRows(store, "text", pairing.text_rows),
        )
        return cls(image, text, pairing.text_to_image, tokens)


class JoinedRows:
    """Rows of several sources, one after the other."""

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
        assert found is not None  # there is a first source
        return found


def own_part(rows: Tensor) -> Tensor:
    """This rank's rows of a global batch; the first ranks have one more where they do not divide it."""
    return torch.tensor_split(rows, world_size())[rank()]


class PairSampler:
    """Batches of images with one random caption each, or with all of them.

    N images make ceil(N / batch_size) batches of nearly equal size; no image is left out of an epoch. batch_size
    counts the images of all ranks together.
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
        """The batches of one pass over the images, numbered from 0."""
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
        return Batch(p.image[rows], p.text[captions], rows, owners, tokens)


@dataclass(frozen=True)
class UnpairedRows:
    """Rows of one modality without partners, and how many of them go into each global batch."""

    rows: Rows | EncoderRows
    per_batch: int


class UnpairedSampler:
    """The batches of another sampler with unpaired rows beside them, which have the id -1.

    Each side goes through its rows in an order that is drawn anew for every pass, over the borders of epochs, so that
    no row is seen twice before all were seen once.
    """

    def __init__(
        self, paired: Sampler, image: UnpairedRows | None = None, text: UnpairedRows | None = None, seed: int = 0
    ) -> None:
        self._paired = paired
        self._image = _Shuffled(image, 2 * seed) if image else None
        self._text = _Shuffled(text, 2 * seed + 1) if text else None
        self.batches_per_epoch = paired.batches_per_epoch

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one pass over the pairs, numbered from 0."""
        for position, batch in enumerate(self._paired.epoch(number), number * self.batches_per_epoch):
            image, image_ids, text, text_ids = batch.image, batch.image_ids, batch.text, batch.text_ids
            if self._image and len(own := self._image.own(position)):
                image, image_ids = _beside(image, image_ids, self._image[own], len(own))
            if self._text and len(own := self._text.own(position)):
                text, text_ids = _beside(text, text_ids, self._text[own], len(own))
            yield Batch(image, text, image_ids, text_ids, batch.tokens)


def _beside(paired: Inputs, ids: Tensor, unpaired: Inputs, count: int) -> tuple[Inputs, Tensor]:
    all_ids = torch.cat([ids, ids.new_full((count,), UNPAIRED)])
    if isinstance(paired, Tensor):
        assert isinstance(unpaired, Tensor)  # a side is features or an encoder's inputs throughout
        return torch.cat([paired, unpaired.to(paired.dtype)]), all_ids
    assert not isinstance(unpaired, Tensor)
    return {key: _stacked(value, unpaired[key]) for key, value in paired.items()}, all_ids


def _stacked(x: Tensor, y: Tensor) -> Tensor:
    """Rows of y under those of x. Texts of other lengths are filled up with zeros, which their masks leave out."""
    longest = x if x.ndim < 2 or x.shape[1] >= y.shape[1] else y
    if x.ndim == 2 and x.shape != y.shape:
        x, y = (pad(each, (0, longest.shape[1] - each.shape[1])) for each in (x, y))
    return torch.cat([x, y])


class _Shuffled:
    """An endless stream of rows: pass k over them in the order that seed and k give."""

    def __init__(self, unpaired: UnpairedRows, seed: int) -> None:
        self._rows = unpaired.rows
        self._size = min(unpaired.per_batch, len(unpaired.rows))
        self._seed = seed
        self._order: tuple[int, Tensor] | None = None

    def own(self, position: int) -> Tensor:
        """This rank's part of the global batch at that position: numbers in the stream."""
        return own_part(torch.arange(position * self._size, (position + 1) * self._size))

    def __getitem__(self, own: Tensor) -> Inputs:
        """The rows that stand at these numbers of the stream."""
        passes, places = own // len(self._rows), own % len(self._rows)
        rows = [self._pass(int(k))[places[passes == k]] for k in torch.unique(passes)]
        return self._rows[torch.cat(rows)]

    def _pass(self, number: int) -> Tensor:
        if self._order is None or self._order[0] != number:
            generator = torch.Generator().manual_seed((self._seed << 32) + number)
            self._order = number, torch.randperm(len(self._rows), generator=generator)
        return self._order[1]
