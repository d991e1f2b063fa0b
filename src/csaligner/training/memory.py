"""Memory bank of past embeddings, which adds rows to the divergences of a batch."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import torch
from torch import Tensor

from csaligner.types import TokenPairs


@dataclass(frozen=True)
class Embeddings:
    """Rows in the aligned space. image: (N, d), text: (M, d), ids as in types.Batch. tokens: of the local pairs."""

    image: Tensor
    text: Tensor
    image_ids: Tensor
    text_ids: Tensor
    tokens: TokenPairs | None = None


@dataclass(frozen=True)
class _Side:
    """Rows, oldest first, with their ids and the step each was computed in; the steps are known to the host, so that
    dropping rows does not wait for a device."""

    rows: Tensor
    ids: Tensor
    steps: tuple[int, ...]

    def without(self, first: int) -> _Side:
        """Drop the `first` oldest rows."""
        return self if first <= 0 else _Side(self.rows[first:], self.ids[first:], self.steps[first:])


class MemoryBank:
    """The last `size` embeddings of each modality that are at most `max_age` steps old, without their gradients.

    Stored rows were computed with earlier weights; max_age bounds how stale they are. Rows keep their ids, so an image
    in both the memory and the batch is weighted as one (1/m each). Source: cross-batch memory (Wang et al. 2020).
    """

    def __init__(self, size: int, max_age: int) -> None:
        self.size, self.max_age = size, max_age
        self._sides: dict[str, _Side] = {}

    def __len__(self) -> int:
        """Total number of rows of both modalities."""
        return sum(len(side.rows) for side in self._sides.values())

    def add(self, rows: Embeddings, step: int) -> None:
        """Store the rows of a step and drop the oldest rows beyond `size`."""
        if not self.size:
            return
        for name, new, ids in (("image", rows.image, rows.image_ids), ("text", rows.text, rows.text_ids)):
            found, own, steps, old = new.detach(), ids, (step,) * len(ids), self._sides.get(name)
            if old is not None:
                found, own, steps = torch.cat([old.rows, found]), torch.cat([old.ids, own]), old.steps + steps
            self._sides[name] = _Side(found, own, steps).without(len(steps) - self.size)

    def with_memory(self, rows: Embeddings, step: int) -> Embeddings:
        """Return the rows followed by the stored rows; drops rows older than max_age at that step."""
        for name, side in self._sides.items():
            self._sides[name] = side.without(bisect_left(side.steps, step - self.max_age))
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
        """Return the state as tensors, by name."""
        return {
            f"{name}.{part}": tensor.contiguous()
            for name, side in self._sides.items()
            for part, tensor in (("rows", side.rows), ("ids", side.ids), ("steps", torch.tensor(side.steps)))
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restore the result of `tensors`."""
        names = sorted({name.partition(".")[0] for name in tensors})
        self._sides = {
            name: _Side(tensors[f"{name}.rows"], tensors[f"{name}.ids"], tuple(tensors[f"{name}.steps"].tolist()))
            for name in names
        }
