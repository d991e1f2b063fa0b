"""The fixed side of text to image: real image embeddings, standardised, and the way back to raw ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from csaligner.config import AdapterConfig

from .start import Affine


class StandardiseAdapter(nn.Module):
    """x -> (x - mean) / std by dimension, (N, d) -> (N, d); nothing is learnt. The aligner normalises.

    mean and std: of the training features, std at least a tenth of its mean over dimensions. length: the median
    length of a standardised training row, which `raw` gives back to a direction. Raw embeddings share a large mean;
    without it angles tell pictures apart.
    """

    mean: Tensor
    std: Tensor
    length: Tensor

    def __init__(self, start: Affine, config: AdapterConfig) -> None:
        super().__init__()
        dim = len(start.mean)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.register_buffer("length", torch.tensor(1.0))

    def fit(self, x: Tensor) -> StandardiseAdapter:
        """Take mean, std and length from x: (N, d), N > 1."""
        x = x.float()
        std = x.std(dim=0)
        self.mean, self.std = x.mean(dim=0), std.clamp_min(max(0.1 * float(std.mean()), 1e-12))
        self.length = self.forward(x).norm(dim=1).median()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def raw(self, directions: Tensor) -> Tensor:
        """Unit rows of the aligned space -> embeddings as the image encoder gives them: mean + std * length * u."""
        return self.mean + self.std * self.length * directions
