"""TextEncoder: tokenization, long texts and batching, shared by all transformers text encoders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor

from csaligner.checks import InputError
from csaligner.types import EncodedTokens, EncoderInfo, TokenSets

LongText = Literal["error", "truncate", "split"]
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class States:
    """Output of a tower: pooled (B, d); tokens (B, T, d_token), None if not available."""

    pooled: Tensor
    tokens: Tensor | None


class Tower(Protocol):
    """The trainable module inside an encoder; adapters/lora.py adds LoRA layers to `backbone`."""

    @property
    def backbone(self) -> torch.nn.Module: ...

    def __call__(self, inputs: Mapping[str, Tensor]) -> States: ...


@dataclass(frozen=True)
class Tokenization:
    """tokenizer: a fast tokenizer of transformers; max_tokens: special tokens included; pad_to_max: pad texts to
    max_tokens, as in the training of SigLIP; prompt: prefix of every text."""

    tokenizer: Any
    max_tokens: int
    long_text: LongText = "truncate"
    pad_to_max: bool = False
    prompt: str = ""
    batch_size: int = 64


@dataclass(frozen=True)
class _Piece:
    """A text, or a piece of a long text. owner: index of the text; inputs: for tokenizer.pad."""

    owner: int
    inputs: Mapping[str, list[int]]

    @property
    def content(self) -> int:
        return self.inputs["special_tokens_mask"].count(0)


class TextEncoder:
    """A frozen tower with its tokenizer: texts -> features, without normalisation.

    Texts are sorted by length and encoded in batches; a text's features depend on its batch by rounding only.
    `truncated` counts the texts truncated since the encoder was opened.
    """

    def __init__(self, tower: Tower, how: Tokenization, info: EncoderInfo) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # avoids a warning when workers are forked later
        self._tower, self.how, self._info = tower, how, info
        self.truncated = 0

    @property
    def tower(self) -> Tower:
        """The module that maps tokenized texts to states."""
        return self._tower

    @property
    def info(self) -> EncoderInfo:
        return self._info

    @property
    def max_tokens(self) -> int:
        """Maximum length of a text encoded in one piece, in tokens, special tokens included."""
        return self.how.max_tokens

    def token_count(self, text: str) -> int:
        """Return the number of tokens of the whole text, with prompt and special tokens."""
        return len(self.how.tokenizer(self.how.prompt + text, truncation=False, verbose=False)["input_ids"])

    def prepare(self, item: str) -> str:
        return item

    @torch.inference_mode()
    def encode(self, prepared: Sequence[str]) -> Tensor:
        """B texts -> (B, dim) float32 on the CPU."""
        pieces = self._pieces(prepared)
        pooled = torch.zeros(len(pieces), self._info.dim)
        for rows, inputs, _ in self._batches(pieces):
            pooled[rows] = self._pooled(inputs).to("cpu", torch.float32)
        return self._joined(pieces, pooled, len(prepared))

    @torch.inference_mode()
    def encode_tokens(self, prepared: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B texts -> tokens (B, T, d_token) float32, and a mask (B, T), True for real tokens.

        Special tokens and padding are excluded; T is the number of tokens of the longest text. Pieces of a split text
        are concatenated. Towers with a projection of their own (CLIP) project tokens into the space of the features.
        """
        sets = TokenSets.of(self.encode_with_tokens(prepared).tokens)
        return sets.states, sets.mask

    @torch.inference_mode()
    def encode_with_tokens(self, prepared: Sequence[str]) -> EncodedTokens:
        """Return features, tokens as encode_tokens, and the hidden states of all tokens, special ones included."""
        pieces = self._pieces(prepared)
        pooled = torch.zeros(len(pieces), self._info.dim)
        content: list[Tensor | None] = [None] * len(pieces)
        hidden: list[Tensor | None] = [None] * len(pieces)
        for rows, inputs, own in self._batches(pieces):
            found = self._states(inputs)
            if found.tokens is None:
                raise InputError(f"encoder: {self._info.id} returns no token states")
            pooled[rows] = found.pooled.to("cpu", torch.float32)
            tokens, states = (t.to("cpu", torch.float32) for t in (self._projected(found.tokens), found.tokens))
            attended = inputs["attention_mask"].bool().cpu()
            for place, row in enumerate(rows):
                content[row], hidden[row] = tokens[place][own[place]], states[place][attended[place]]
        by_text = tuple(_by_owner(pieces, sets, len(prepared)) for sets in (content, hidden))
        return EncodedTokens(self._joined(pieces, pooled, len(prepared)), *by_text)

    def _states(self, inputs: Mapping[str, Tensor]) -> States:
        return self.tower(inputs)

    def _pooled(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self._states(inputs).pooled

    def _projected(self, tokens: Tensor) -> Tensor:
        return project_tokens(self.tower, tokens)

    @property
    def _device(self) -> torch.device:
        return next(self.tower.backbone.parameters()).device

    def _joined(self, pieces: Sequence[_Piece], pooled: Tensor, texts: int) -> Tensor:
        """Return one row per text: the mean of its pieces, weighted by their numbers of tokens."""
        owners = torch.tensor([piece.owner for piece in pieces])
        weights = torch.tensor([float(max(1, piece.content)) for piece in pieces])
        if len(pieces) == texts:
            return pooled[torch.argsort(owners)]
        total = torch.zeros(texts).index_add_(0, owners, weights)
        mean = torch.zeros(texts, self._info.dim)
        return mean.index_add_(0, owners, pooled * (weights / total[owners])[:, None])

    def inputs(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return the padded inputs of the tower, one row per text, for fine-tuning.

        Raises InputError if long_text is split: fine-tuning needs one row per text.
        """
        if self.how.long_text == "split":
            raise InputError("encoder: long_text=split does not support fine-tuning; use truncate or error")
        return self._pad(self._pieces(texts))[0]

    def _pieces(self, texts: Sequence[str]) -> list[_Piece]:
        how = self.how
        if not texts:
            return []
        found = how.tokenizer(
            [how.prompt + text for text in texts],
            truncation=True,
            max_length=how.max_tokens,
            return_overflowing_tokens=True,
            return_special_tokens_mask=True,
            return_attention_mask=True,
        )
        owners = list(found.pop("overflow_to_sample_mapping"))
        pieces = [
            _Piece(owner, self._never_empty({key: values[row] for key, values in found.items()}))
            for row, owner in enumerate(owners)
        ]
        if len(pieces) == len(texts) or how.long_text == "split":
            return pieces
        first = [p for n, p in enumerate(pieces) if n == 0 or owners[n - 1] != p.owner]
        long = sorted({owner for n, owner in enumerate(owners) if n and owners[n - 1] == owner})
        if how.long_text == "error":
            raise InputError(
                f"encoder: {len(long)} of {len(texts)} texts have more than {how.max_tokens} tokens (first: "
                f"{texts[long[0]][:60]!r}...); shorten them, or set long_text=truncate or long_text=split"
            )
        self.truncated += len(long)
        return first

    def _never_empty(self, inputs: dict[str, list[int]]) -> dict[str, list[int]]:
        """Replace empty inputs (an empty text, no special tokens) by one padding token."""
        if inputs["input_ids"]:
            return inputs
        filler = {"input_ids": self.how.tokenizer.pad_token_id, "attention_mask": 1, "special_tokens_mask": 1}
        return {key: [filler.get(key, 0)] for key in inputs}

    def _batches(self, pieces: Sequence[_Piece]) -> Iterator[tuple[list[int], dict[str, Tensor], Tensor]]:
        device = self._device
        order = sorted(range(len(pieces)), key=lambda row: -len(pieces[row].inputs["input_ids"]))
        for start in range(0, len(order), self.how.batch_size):
            rows = order[start : start + self.how.batch_size]
            inputs, content = self._pad([pieces[row] for row in rows])
            yield rows, {key: value.to(device) for key, value in inputs.items()}, content

    def _pad(self, pieces: Sequence[_Piece]) -> tuple[dict[str, Tensor], Tensor]:
        padded = self.how.tokenizer.pad(
            {key: [piece.inputs[key] for piece in pieces] for key in pieces[0].inputs},
            padding="max_length" if self.how.pad_to_max else True,
            max_length=self.how.max_tokens if self.how.pad_to_max else None,
            return_attention_mask=True,
            return_tensors="pt",
        )
        content = padded["attention_mask"].bool() & (padded["special_tokens_mask"] == 0)
        inputs = {key: padded[key] for key in MODEL_INPUTS if key in padded}
        return inputs | {"content_mask": content}, content


def _by_owner(pieces: Sequence[_Piece], sets: Sequence[Tensor | None], texts: int) -> list[Tensor]:
    """Return the concatenated tokens of each text."""
    found: list[list[Tensor]] = [[] for _ in range(texts)]
    for piece, tokens in zip(pieces, sets, strict=True):
        found[piece.owner].append(cast(Tensor, tokens))
    return [torch.cat(tokens) for tokens in found]


def project_tokens(tower: Any, tokens: Tensor) -> Tensor:
    """Return the tokens in the space of the tower's features: projected by towers that have a projection (CLIP)."""
    project = getattr(tower, "project_tokens", None)
    return tokens if project is None else cast(Tensor, project(tokens))


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """(B, T, d), (B, T) -> (B, d): mean of the states where the mask is True."""
    weights = mask.to(states.dtype)[..., None]
    return (states * weights).sum(1) / weights.sum(1).clamp_min(1)


def last_state(states: Tensor, mask: Tensor) -> Tensor:
    """(B, T, d), (B, T) -> (B, d): state at the last position where the mask is True."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask.bool(), positions, 0).amax(1)
    return states[torch.arange(len(states), device=states.device), last]
