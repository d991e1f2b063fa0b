"""From features to batches. Stateless: epoch e of seed s is always the same, so a run resumes exactly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch

from csaligner.types import Batch, PairedFeatures


class PairSampler:
    """Batches of images with one random caption each, or with all of them.

    N images make ceil(N / batch_size) batches of nearly equal size; no image is left out of an epoch.
    """

    def __init__(
        self,
        features: PairedFeatures,
        batch_size: int,
        captions: Literal["one", "all"] = "one",
        seed: int = 0,
    ) -> None:
        self._features = features
        self._captions = captions
        self._seed = seed
        n = len(features.image)
        self._counts = torch.bincount(features.text_to_image, minlength=n)
        self._by_image = torch.argsort(features.text_to_image, stable=True)
        self._first = torch.cumsum(self._counts, dim=0) - self._counts
        self.batches_per_epoch = -(-n // batch_size)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one pass over the images, numbered from 0."""
        generator = torch.Generator().manual_seed((self._seed << 32) + number)
        order = torch.randperm(len(self._counts), generator=generator)
        choice = torch.rand(len(self._counts), generator=generator)
        for rows in torch.tensor_split(order, self.batches_per_epoch):
            yield self._batch(rows, choice[rows])

    def _batch(self, rows: torch.Tensor, choice: torch.Tensor) -> Batch:
        counts, first = self._counts[rows], self._first[rows]
        if self._captions == "one":
            picked = first + (choice * counts).long()
        else:
            picked = torch.cat([torch.arange(int(f), int(f + c)) for f, c in zip(first, counts, strict=True)])
        captions = self._by_image[picked]
        f = self._features
        return Batch(f.image[rows], f.text[captions], rows, f.text_to_image[captions])
