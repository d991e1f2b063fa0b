"""Token features of a store: one file per shard in the folder tokens, read row by row.

A file holds, for the images of its shard in the order of their first row and for every caption row, the concatenated
tokens (float16) and their number per item, and the hidden states of the captions. checksums.json is written last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import safe_open
from torch import Tensor

from csaligner.checks import InputError
from csaligner.files import CHECKSUMS, write_atomically
from csaligner.integrity import ErrorContext, check_checksums, read_checksums, save_tensors, write_checksums
from csaligner.types import EncodedTokens, Encoder, EncoderInfo, Modality, TokenRows, TokenSets

from .decode_workers import prepared

FOLDER = "tokens"
MAX_STATES = 77  # hidden states kept of a caption: the context of CLIP's text encoders
CHUNK = 64  # items in memory at a time
OPEN_FILES = 256
OWNER = ErrorContext("tokens", "delete the folder tokens and embed with --tokens again")


@runtime_checkable
class TokenEncoder(Protocol):
    """An encoder with token features: B prepared items -> features and tokens of one forward pass."""

    def encode_with_tokens(self, prepared: Sequence[Any]) -> EncodedTokens: ...


@dataclass
class ShardTokens:
    """Tokens of a shard by the names of its file ("image", "text", "states"), at most `per_item` of an item."""

    per_item: int
    sets: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, side: Modality, found: EncodedTokens, items: Sequence[Any], info: EncoderInfo) -> None:
        """Append the tokens of these items. Raises InputError for none, or for another dimension than the features'."""
        for tokens, item in zip(found.tokens, items, strict=True):
            if tokens.shape[1] != info.dim:
                raise InputError(
                    f"tokens: {info.id} has tokens of {tokens.shape[1]} dimensions and features of {info.dim}, wanted "
                    "equal dimensions; choose an encoder that pools or projects its tokens"
                )
            if not len(tokens):
                raise InputError(f"tokens: {info.id} returns none for {str(item)[:60]!r}; remove that item")
        self.sets.setdefault(side, []).extend(_some(tokens, self.per_item).half() for tokens in found.tokens)
        if side == "text" and found.states is not None:
            self.sets.setdefault("states", []).extend(states[:MAX_STATES].half() for states in found.states)

    def write(self, folder: Path, number: int) -> None:
        tensors: dict[str, Tensor] = {}
        for name, sets in self.sets.items():
            tensors |= {name: torch.cat(sets), f"{name}_counts": torch.tensor([len(tokens) for tokens in sets])}
        (folder / FOLDER).mkdir(exist_ok=True)
        write_atomically(token_file(folder, number), lambda temporary: save_tensors(tensors, temporary))


@dataclass(frozen=True)
class StoredTokens:
    """Sets of tokens on disk: a types.TokenSource that reads its rows on access. name: of the tensor in the files;
    shard, first, counts: (n,) int64, the file of each set, its first token there and its number of tokens."""

    files: tuple[Path, ...]
    name: str
    dim: int
    shard: Tensor
    first: Tensor
    counts: Tensor

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, rows: Tensor, /) -> TokenSets:
        if not len(rows):
            return TokenSets(torch.empty(0, 1, self.dim), torch.empty(0, 1, dtype=torch.bool))
        return TokenSets.of(self._read(rows))

    def subset(self, rows: Tensor) -> StoredTokens:
        return StoredTokens(self.files, self.name, self.dim, self.shard[rows], self.first[rows], self.counts[rows])

    def loaded(self) -> TokenRows:
        return TokenRows(torch.cat(self._read(torch.arange(len(self)))), self.counts)

    def _read(self, rows: Tensor) -> list[Tensor]:
        found = []
        for shard, first, count in zip(*(t[rows].tolist() for t in (self.shard, self.first, self.counts)), strict=True):
            path = self.files[shard]
            found.append(_opened(path, path.stat().st_mtime_ns).get_slice(self.name)[first : first + count])
        return found


def token_encoder(encoder: Encoder | None, side: Modality) -> TokenEncoder:
    """Return the encoder, checked. Raises InputError if it has no tokens."""
    if not isinstance(encoder, TokenEncoder):
        name = encoder.info.id if encoder else f"the {side} encoder"
        raise InputError(f"tokens: {name} has no tokens; choose an hf: or bundled: encoder")
    return encoder


def token_file(folder: Path, number: int) -> Path:
    return folder / FOLDER / f"tokens_{number}.safetensors"


def finish_tokens(folder: Path, plan: str, shards: int, per_item: int) -> None:
    """Write the checksums of the token files of a store, which completes them."""
    files = [token_file(folder, number) for number in range(shards)]
    write_checksums(folder / FOLDER, files, plan=plan, per_item=per_item)


def are_there(folder: Path, plan: str, per_item: int | None = None) -> bool:
    """Whether a folder has the tokens of the store with this plan (and with this number per item)."""
    try:
        found = read_checksums(folder / FOLDER, OWNER)
    except InputError:
        return False
    return found is not None and found["plan"] == plan and per_item in (None, found["per_item"])


def read_sets(folder: Path, plan: str, shards: int, names: Sequence[str]) -> dict[str, StoredTokens]:
    """Return the sets of a finished store's folder, by name; names that no file has are left out.

    Raises InputError for missing or damaged files, or files of another store."""
    found = read_checksums(folder / FOLDER, OWNER)
    if found is None:
        raise InputError(f"tokens: {folder} holds no {FOLDER}; embed with --tokens")
    if found["plan"] != plan:
        raise InputError(f"tokens: {folder / FOLDER} belongs to another store; {OWNER.advice}")
    _verified(folder / FOLDER, (folder / FOLDER / CHECKSUMS).stat().st_mtime_ns)
    files = tuple(token_file(folder, number) for number in range(shards))
    sets = {}
    for name in names:
        parts = [_counts(path, name) for path in files]
        if any(part is None for part in parts):
            continue
        kept = [part for part in parts if part is not None]
        counts = torch.cat([part[0] for part in kept])
        first = torch.cat([part[0].cumsum(dim=0) - part[0] for part in kept])
        shard = torch.repeat_interleave(torch.arange(len(kept)), torch.tensor([len(part[0]) for part in kept]))
        sets[name] = StoredTokens(files, name, max(part[1] for part in kept), shard, first, counts)
    return sets


def encoded_items(encoder: Encoder, side: Modality, items: Sequence[Any], out: ShardTokens) -> None:
    """Encode images or captions again for their tokens alone, one chunk at a time."""
    for start in range(0, len(items), CHUNK):
        chunk = items[start : start + CHUNK]
        found = token_encoder(encoder, side).encode_with_tokens([prepared(encoder, item, side) for item in chunk])
        out.add(side, found, chunk, encoder.info)


def _counts(path: Path, name: str) -> tuple[Tensor, int] | None:
    """Return the numbers of tokens per item of one file, and their dimensions; None if the file lacks them."""
    try:
        with safe_open(path, framework="pt") as file:
            if name not in file.keys():  # noqa: SIM118  (not a mapping)
                return None
            counts, shape = file.get_tensor(f"{name}_counts"), file.get_slice(name).get_shape()
    except Exception as error:  # safetensors raises a class of its own for each kind of damage
        raise InputError(f"tokens: {path} cannot be read ({error}); {OWNER.advice}") from None
    if counts.dtype != torch.int64 or counts.ndim != 1 or int(counts.min()) < 1 or int(counts.sum()) != shape[0]:
        raise InputError(f"tokens: the {name} side of {path} does not match its counts; {OWNER.advice}")
    return counts, int(shape[1])


@lru_cache
def _verified(folder: Path, written: int) -> None:
    """Compare the SHA-256 of every file, once per process. written: time of checksums.json."""
    check_checksums(folder, OWNER)


@lru_cache(OPEN_FILES)
def _opened(path: Path, changed: int) -> Any:
    """Return an open, memory-mapped file. changed: its time, so that a rewritten file is opened again."""
    return safe_open(path, framework="pt")  # closed with the process, as the maps of the features


def _some(tokens: Tensor, count: int) -> Tensor:
    if len(tokens) <= count:
        return tokens
    return tokens[torch.linspace(0, len(tokens) - 1, count, dtype=torch.float64).round().long()]
