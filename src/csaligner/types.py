"""Data types and protocols shared by all layers of the package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Modality = Literal["image", "text"]
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class TokenSets:
    """B sets of tokens, padded to one length. states: (B, T, d); mask: (B, T) bool, False for padding."""

    states: Tensor
    mask: Tensor

    @classmethod
    def of(cls, sets: Sequence[Tensor]) -> TokenSets:
        """Pad B > 0 tensors (T_b, d) with zeros."""
        counts = torch.tensor([len(tokens) for tokens in sets])
        mask = torch.arange(int(counts.max())) < counts[:, None]
        return cls(pad_sequence(list(sets), batch_first=True), mask)


class TokenSource(Protocol):
    """n sets of tokens, in memory (TokenRows) or on disk (store/tokens.py). counts: (n,) int64, each at least 1; dim:
    dimensions of a token."""

    @property
    def counts(self) -> Tensor: ...

    @property
    def dim(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor, /) -> TokenSets:
        """Return the sets of these rows, padded with zeros."""
        ...

    def subset(self, rows: Tensor) -> TokenSource:
        """Return the sets of these rows, in their order. rows: (m,) int64."""
        ...

    def loaded(self) -> TokenRows:
        """Return the sets in memory."""
        ...


@dataclass(frozen=True)
class TokenRows:
    """n concatenated sets of tokens. states: (sum of counts, d); counts: (n,) int64, each at least 1."""

    states: Tensor
    counts: Tensor

    @property
    def dim(self) -> int:
        return int(self.states.shape[1])

    def loaded(self) -> TokenRows:
        return self

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, rows: Tensor, /) -> TokenSets:
        """Return the sets of these rows, padded with zeros."""
        counts = self.counts[rows].tolist()
        first = (self.counts.cumsum(dim=0) - self.counts)[rows].tolist()
        sets = [self.states[start : start + count] for start, count in zip(first, counts, strict=True)]
        if not sets:
            return TokenSets(self.states.new_empty(0, 1, self.states.shape[1]), torch.empty(0, 1, dtype=torch.bool))
        return TokenSets.of(sets)

    def subset(self, rows: Tensor) -> TokenRows:
        """Return the sets of these rows, in their order. rows: (m,) int64."""
        counts = self.counts[rows]
        first = (self.counts.cumsum(dim=0) - self.counts)[rows]
        before = counts.cumsum(dim=0) - counts
        place = torch.arange(int(counts.sum())) + torch.repeat_interleave(first - before, counts)
        return TokenRows(self.states[place], counts)

    def concat(self, other: TokenRows) -> TokenRows:
        """Return these sets followed by the others."""
        return TokenRows(torch.cat([self.states, other.states]), torch.cat([self.counts, other.counts]))


@dataclass(frozen=True)
class PairedTokens:
    """The tokens of the N images and M captions of PairedFeatures, in the dimensions of their features."""

    image: TokenSource
    text: TokenSource


@dataclass(frozen=True)
class EncodedTokens:
    """B encoded items. features: (B, d); tokens: B tensors (T_b, d), in the space of the features; states: of texts,
    B tensors (L_b, d_hidden), the hidden states of all tokens, special ones included."""

    features: Tensor
    tokens: Sequence[Tensor]
    states: Sequence[Tensor] | None = None


@dataclass(frozen=True)
class TokenPairs:
    """The tokens of B pairs: set b of image and set b of text form a pair."""

    image: TokenSets
    text: TokenSets


@dataclass(frozen=True)
class PairedFeatures:
    """Features of N images and their M captions; every image has at least one caption.

    image: (N, d_image); text: (M, d_text); text_to_image: (M,) int64, the row in `image` that each caption
    belongs to; image_ids: N names; captions: the M texts, if known; tokens: for the token-level term; states: hidden
    states of the M captions, special tokens included, for a prior (adapters/prior.py). Rows are matched by this index,
    never by position.
    """

    image: Tensor
    text: Tensor
    text_to_image: Tensor
    image_ids: tuple[str, ...]
    captions: tuple[str, ...] | None = None
    tokens: PairedTokens | None = None
    states: TokenSource | None = None


Inputs = Tensor | Mapping[str, Tensor]  # features, or inputs of a trained encoder (token ids, pixels)
TEXT_STATES = ("pooled", "states", "mask")  # keys of the inputs of a prior: (M, d), (M, L, d_hidden), (M, L) bool


@dataclass(frozen=True)
class Batch:
    """The rows of one training step on one process.

    image: (N, d_image); text: (M, d_text), or mappings of tensors with N and M rows; image_ids: (N,) and text_ids:
    (M,) int64, equal for a caption and its image, -1 for an unpaired row. tokens: tokens of the captions with an image,
    and of their images.
    """

    image: Inputs
    text: Inputs
    image_ids: Tensor
    text_ids: Tensor
    tokens: TokenPairs | None = None


class Sampler(Protocol):
    """A stream of batches that depends only on the epoch number, so that a run resumes exactly.

    Across ranks each process yields its own rows of every global batch (training.samplers.own_part), as many batches
    as one process would.
    """

    @property
    def batches_per_epoch(self) -> int: ...

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of one epoch; epochs are numbered from 0."""
        ...


@dataclass(frozen=True)
class LossTerms:
    """The value of an objective and of its terms, by name.

    total: the scalar to call backward on, sum over names of weights[name] * terms[name].
    terms: unweighted values, detached, for logging.
    weights: the weight lambda of each term.
    parts: weights[name] * terms[name] with gradients, for trainers that take losses by name.
    """

    total: Tensor
    terms: Mapping[str, Tensor]
    weights: Mapping[str, float]
    parts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class EncoderInfo:
    """Identity of an encoder; features of encoders with different fingerprints must not share a store."""

    id: str
    revision: str
    modality: Modality
    dim: int
    preprocessing: Mapping[str, Any]
    normalized: bool = False

    @property
    def fingerprint(self) -> str:
        """SHA-256 over every field, 16 hexadecimal digits."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


@runtime_checkable
class Encoder(Protocol):
    """A frozen model that encodes items of one modality into features.

    `prepare` runs in worker processes, one item at a time (image: PIL image -> (3, H, W) uint8 or float32
    tensor; text: str -> str); `encode` takes a sequence of prepared items and returns (B, dim) float32 on the
    CPU, in inference mode, un-normalised. Optional features are separate protocols below, each with the default for an
    encoder without it.
    """

    @property
    def info(self) -> EncoderInfo: ...

    def prepare(self, item: Any) -> Any: ...

    def encode(self, prepared: Sequence[Any]) -> Tensor: ...


@runtime_checkable
class ConcurrentEncoder(Protocol):
    """An encoder that declares whether several threads may call `encode` at once. Default: False."""

    concurrent: bool


@runtime_checkable
class TruncatingEncoder(Protocol):
    """A text encoder that counts the texts it has truncated since it was opened. Default: 0."""

    @property
    def truncated(self) -> int: ...


@runtime_checkable
class TokenCounter(Protocol):
    """A text encoder that counts tokens, special ones included; max_tokens: those that it reads.

    Default: tokens are not known.
    """

    @property
    def max_tokens(self) -> int: ...

    def token_count(self, text: str) -> int: ...


@runtime_checkable
class StoredImage(Protocol):
    """An image inside a larger file, such as a tar or a table. Small and picklable; read in worker processes.

    name: a file name, whose suffix gives the format; stamp: a text that changes with the image. str() is its name in
    messages and in the store. read raises OSError or ImageError.
    """

    @property
    def name(self) -> str: ...

    @property
    def stamp(self) -> str: ...

    def read(self) -> bytes: ...


ImageSource = Path | StoredImage


@dataclass(frozen=True)
class Item:
    """One image and its captions, as returned by a reader.

    group: items of one group are in the same split (usually the image id); split: the split, if the dataset fixes it.
    """

    image_id: str
    image: ImageSource
    captions: tuple[str, ...]
    group: str
    split: Split | None = None


class Dataset(Protocol):
    """A reader: it lists items without reading pixels, which worker processes do later.

    attribution: a line to display with the images, or "".
    """

    @property
    def name(self) -> str: ...

    @property
    def attribution(self) -> str: ...

    def items(self) -> Sequence[Item]: ...


@runtime_checkable
class Notes(Protocol):
    """A dataset with notes on what items() skipped or guessed, one per line. Default: no notes."""

    @property
    def notes(self) -> Sequence[str]: ...


@runtime_checkable
class TextHolder(Protocol):
    """A dataset with texts without an image. Default: only items()."""

    def documents(self) -> Sequence[Item]:
        """Return items(), and the texts without an image as items whose image is a TextOnly."""
        ...


def notes_of(dataset: Dataset) -> tuple[str, ...]:
    """Return the notes of a dataset, () if it has none."""
    return tuple(dataset.notes) if isinstance(dataset, Notes) else ()


class Divergence(Protocol):
    """A divergence of two samples in one space: (N, d), (M, d) -> scalar, differentiable, 0 if they coincide.

    Called as divergence(x, y, **keywords), with those of these keywords that its signature names (or **kwargs):
    weights_x (N,), weights_y (M,): float64, positive, or None where all rows count the same; impl: a name of
    ops.dispatch.IMPLEMENTATIONS; bandwidth: the sigma of the objective, a number, or several for a mixture. A
    divergence without weights works as long as all rows count the same; else InputError.
    """

    def __call__(self, x: Tensor, y: Tensor) -> Tensor: ...


class PairedLoss(Protocol):
    """A loss of pairs: (N, d), (M, d) -> scalar, differentiable.

    Called as loss(x, y, **keywords), with those of these keywords that its signature names (or **kwargs): logit_scale:
    scalar; ids_x (N,), ids_y (M,): int64, equal where rows belong together, -1: no partner. A loss without ids is
    given matched rows: x[k] and y[k] are pair k, so N = M.
    """

    def __call__(self, x: Tensor, y: Tensor) -> Tensor: ...
