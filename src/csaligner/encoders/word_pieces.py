"""A tokenizer.json, read by the package tokenizers without importing transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

INPUTS = {"input_ids": "ids", "token_type_ids": "type_ids", "attention_mask": "attention_mask"}
SPECIAL = "special_tokens_mask"


class WordPieces:
    """The calls of transformers' fast tokenizers that TextEncoder makes, with the same token ids.

    max_tokens: longer texts are cut into pieces of this length, special tokens included.
    """

    def __init__(self, path: Path, max_tokens: int) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        self.pad_token_id = self._tokenizer.token_to_id("[PAD]") or 0

    def __call__(self, texts: str | Sequence[str], *, truncation: bool = True, **_: Any) -> dict[str, Any]:
        """Return lists by input. Texts: a row per piece, and the text of each; a text: one row.

        truncation: False joins the pieces of a text. Other arguments of transformers have no effect.
        """
        if isinstance(texts, str):
            first, *rest = self._pieces(texts)
            last = len(first.ids) - first.special_tokens_mask[::-1].index(0) if rest else len(first.ids)
            content = [
                i for more in rest for i, special in zip(more.ids, more.special_tokens_mask, strict=True) if not special
            ]
            return {"input_ids": first.ids if truncation else first.ids[:last] + content + first.ids[last:]}
        pieces = [(n, piece) for n, text in enumerate(texts) for piece in self._pieces(text)]
        rows = {
            key: [getattr(piece, name) for _, piece in pieces] for key, name in (INPUTS | {SPECIAL: SPECIAL}).items()
        }
        return rows | {"overflow_to_sample_mapping": [owner for owner, _ in pieces]}

    def ids(self, text: str) -> list[int] | None:
        """Return the token ids of a text; None if it has several pieces or no token."""
        found = self._tokenizer.encode(text)
        return None if found.overflowing or not found.ids else list(found.ids)

    def pad(self, inputs: Mapping[str, Sequence[Sequence[int]]], **_: Any) -> dict[str, Tensor]:
        """Pad to the longest row. inputs: lists by input -> (B, T) int64."""
        longest = max(map(len, inputs["input_ids"]))
        filler = {"input_ids": self.pad_token_id, SPECIAL: 1}
        return {
            key: torch.tensor([[*row, *[filler.get(key, 0)] * (longest - len(row))] for row in rows])
            for key, rows in inputs.items()
        }

    def _pieces(self, text: str) -> list[Any]:
        found = self._tokenizer.encode(text)
        return [found, *found.overflowing]
