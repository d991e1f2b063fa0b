"""A memory of past embeddings, so that the divergences see more rows than a batch holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from csaligner.types import TokenPairs


@dataclass(frozen=True)
class Embeddings:
    """Rows in the aligned space. image: (N, d), text: (M, d), ids as in types.Batch. tokens: of the own pairs."""

    image: Tensor
    text: Tensor
    image_ids: Tensor
    text_ids: Tensor
    tokens: TokenPairs | None = None


@dataclass(frozen=True)
class _Side:
    """Rows, oldest first, their ids, and the step that made each."""

    rows: Tensor
    ids: Tensor
    steps: Tensor


class MemoryBank:
    """The last `size` embeddings of each modality that are at most `max_age` steps old, without their gradients.

    The rows of another step come from other weights; the age limit bounds how stale they are. A row keeps its id, so an
    image that stands in the memory and in the batch weighs as much as one (rows count 1/m). Source of the idea:
    cross-batch memory (Wang et al. 2020).
    """

    def __init__(self, size: int, max_age: int) -> None:
        self.size, self.max_age = size, max_age
        self._sides: dict[str, _Side] = {}

    def __len__(self) -> int:
        """Rows of both modalities together."""
        return sum(len(side.rows) for side in self._sides.values())

    def add(self, rows: Embeddings, step: int) -> None:
        """Remember the rows of that step; the oldest make room."""
        if not self.size:
            return
        for name, new, ids in (("image", rows.image, rows.image_ids), ("text", rows.text, rows.text_ids)):
            fresh = _Side(new.detach(), ids, torch.full_like(ids, step))
            old = self._sides.get(name)
            parts = fresh if old is None else _Side(*map(torch.cat, zip(_tensors(old), _tensors(fresh), strict=True)))
            self._sides[name] = _Side(*(t[-self.size :] for t in _tensors(parts)))

    def with_memory(self, rows: Embeddings, step: int) -> Embeddings:
        """The rows with what is remembered at that step behind them; rows that are too old are dropped."""
        for name, side in self._sides.items():
            young = step - side.steps <= self.max_age
            self._sides[name] = _Side(*(t[young] for t in _tensors(side)))
        if not len(self):
            return rows
        image, text = self._sides["image"], self._sides["text"]
        return Embeddings(
            torch.cat([rows.image, image.rows.to(rows.image.dtype)]),
            torch.cat([rows.text, text.rows.to(rows.text.dtype)]),
            torch.cat([rows.image_ids, image.ids]),
            torch.cat([rows.text_ids, text.ids]),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Everything it holds, by name."""
        return {
            f"{name}.{part}": tensor.contiguous()
            for name, side in self._sides.items()
            for part, tensor in zip(("rows", "ids", "steps"), _tensors(side), strict=True)
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """What `tensors` gave."""
        names = sorted({name.partition(".")[0] for name in tensors})
        self._sides = {name: _Side(*(tensors[f"{name}.{part}"] for part in ("rows", "ids", "steps"))) for name in names}


def _tensors(side: _Side) -> tuple[Tensor, Tensor, Tensor]:
    return side.rows, side.ids, side.steps
