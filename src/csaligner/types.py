"""The nouns that every floor shares. Knows nothing of the rest of the package."""

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
    """B sets of tokens, filled up to one length. states: (B, T, d); mask: (B, T) bool, True where a token counts."""

    states: Tensor
    mask: Tensor

    @classmethod
    def of(cls, sets: Sequence[Tensor]) -> TokenSets:
        """B tensors (T_b, d), B > 0, with zeros behind each."""
        counts = torch.tensor([len(tokens) for tokens in sets])
        mask = torch.arange(int(counts.max())) < counts[:, None]
        return cls(pad_sequence(list(sets), batch_first=True), mask)


@dataclass(frozen=True)
class TokenRows:
    """n sets of tokens end to end. states: (sum of counts, d); counts: (n,) int64, each at least 1."""

    states: Tensor
    counts: Tensor

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, rows: Tensor, /) -> TokenSets:
        """The sets of these rows, filled up with zeros."""
        counts = self.counts[rows].tolist()
        first = (self.counts.cumsum(dim=0) - self.counts)[rows].tolist()
        sets = [self.states[start : start + count] for start, count in zip(first, counts, strict=True)]
        if not sets:
            return TokenSets(self.states.new_empty(0, 1, self.states.shape[1]), torch.empty(0, 1, dtype=torch.bool))
        return TokenSets.of(sets)

    def concat(self, other: TokenRows) -> TokenRows:
        """These sets, then the others."""
        return TokenRows(torch.cat([self.states, other.states]), torch.cat([self.counts, other.counts]))


@dataclass(frozen=True)
class PairedTokens:
    """The tokens behind PairedFeatures: of its N images and its M captions, in the dimensions of their features."""

    image: TokenRows
    text: TokenRows


@dataclass(frozen=True)
class TokenPairs:
    """Of B pairs: set b of the one belongs to set b of the other."""

    image: TokenSets
    text: TokenSets


@dataclass(frozen=True)
class PairedFeatures:
    """Features of N images and their M captions; every image has at least one caption.

    image: (N, d_image); text: (M, d_text); text_to_image: (M,) int64, the row in `image` that each caption
    belongs to; image_ids: N names; captions: the M texts where they are known; tokens: where the token-level term is
    to see them. Rows are matched by this index, never by position.
    """

    image: Tensor
    text: Tensor
    text_to_image: Tensor
    image_ids: tuple[str, ...]
    captions: tuple[str, ...] | None = None
    tokens: PairedTokens | None = None


Inputs = Tensor | Mapping[str, Tensor]  # features, or what an encoder that is trained takes (token ids, pixels)


@dataclass(frozen=True)
class Batch:
    """What one training step sees of one process.

    image: (N, d_image); text: (M, d_text), or mappings of tensors with N and M rows; image_ids: (N,) and text_ids:
    (M,) int64, equal where a caption belongs to an image, -1 for a row without a partner. tokens: of this process's
    captions that have an image, and of their images.
    """

    image: Inputs
    text: Inputs
    image_ids: Tensor
    text_ids: Tensor
    tokens: TokenPairs | None = None


class Sampler(Protocol):
    """A stream of batches that depends on nothing but the epoch's number, so that a run resumes exactly.

    Across ranks each process yields its own rows of every global batch (training.samplers.own_part), as many batches
    as one process would.
    """

    @property
    def batches_per_epoch(self) -> int: ...

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one pass over the data, numbered from 0."""
        ...


@dataclass(frozen=True)
class LossTerms:
    """The value of an objective, by name.

    total: the scalar to call backward on, sum over names of weights[name] * terms[name].
    terms: unweighted values, detached: for reading and logging.
    weights: the weight lambda of each term.
    parts: weights[name] * terms[name] with their gradients, for trainers that want losses by name.
    """

    total: Tensor
    terms: Mapping[str, Tensor]
    weights: Mapping[str, float]
    parts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class EncoderInfo:
    """Who made a set of features; two encoders whose fingerprints differ must not share a store."""

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
    """A frozen model that turns items of one modality into features.

    `prepare` runs in worker processes, one item at a time (image: PIL image -> (3, H, W) uint8 or float32
    tensor; text: str -> str); `encode` takes a sequence of prepared items and returns (B, dim) float32 on the
    CPU, in inference mode, un-normalised. What else an encoder may offer has a protocol of its own below; an encoder
    without it gets the default that is named there.
    """

    @property
    def info(self) -> EncoderInfo: ...

    def prepare(self, item: Any) -> Any: ...

    def encode(self, prepared: Sequence[Any]) -> Tensor: ...


@runtime_checkable
class ConcurrentEncoder(Protocol):
    """An encoder that says whether several threads may call `encode` at once. Default: they may not."""

    concurrent: bool


@runtime_checkable
class TruncatingEncoder(Protocol):
    """A text encoder that counts the texts it has truncated since it was opened. Default: none that is known."""

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
    """A picture inside something larger: a tar file, a table. Small and picklable; read in worker processes.

    name: a file name, its suffix tells the kind; stamp: another text where the picture is another one. str() is
    what messages and the store call it. read raises OSError or ImageError.
    """

    @property
    def name(self) -> str: ...

    @property
    def stamp(self) -> str: ...

    def read(self) -> bytes: ...


ImageSource = Path | StoredImage


@dataclass(frozen=True)
class Item:
    """One image and its captions, as a reader finds them.

    group: what must not straddle a split (usually the image id itself); split: set where the source fixes it.
    """

    image_id: str
    image: ImageSource
    captions: tuple[str, ...]
    group: str
    split: Split | None = None


class Dataset(Protocol):
    """A reader: it lists items cheaply; pixels are read later, in worker processes.

    attribution: a line to show to people beside the pictures, or "".
    """

    @property
    def name(self) -> str: ...

    @property
    def attribution(self) -> str: ...

    def items(self) -> Sequence[Item]: ...


@runtime_checkable
class Notes(Protocol):
    """A dataset that reports what it skipped or guessed, one line each, once items() has run. Default: nothing."""

    @property
    def notes(self) -> Sequence[str]: ...


@runtime_checkable
class TextHolder(Protocol):
    """A dataset with texts that belong to no image. Default: items() is all that there is."""

    def documents(self) -> Sequence[Item]:
        """As items(), with texts without an image, each as an item whose image is a TextOnly."""
        ...


def notes_of(dataset: Dataset) -> tuple[str, ...]:
    """The notes of a dataset, () where it makes none."""
    return tuple(dataset.notes) if isinstance(dataset, Notes) else ()


class Divergence(Protocol):
    """A distance between two samples in one space: (N, d), (M, d) -> scalar, differentiable, 0 where they coincide.

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
