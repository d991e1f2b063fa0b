"""Standardising and centring adapters: fixed image embeddings of text-to-image training, with the inverse."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from csaligner.config import AdapterConfig

from .start import Affine


class StandardiseAdapter(nn.Module):
    """x -> (x - mean) / std per dimension, (N, d) -> (N, d); no learned parameters. The aligner normalises.

    mean, std: of the training features, std at least a tenth of its mean over dimensions. length: the median length of
    a standardised training row, used by `raw`. Raw embeddings share a large mean; removing it makes cosine similarity
    between images discriminative.
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
        """Fit mean, std and length to x: (N, d), N > 1."""
        x = x.float()
        self.mean, self.std = x.mean(dim=0), self._scale(x.std(dim=0))
        self.length = self.forward(x).norm(dim=1).median()
        return self

    def _scale(self, std: Tensor) -> Tensor:
        return std.clamp_min(max(0.1 * float(std.mean()), 1e-12))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def raw(self, directions: Tensor) -> Tensor:
        """Invert: unit rows u of the aligned space -> raw image embeddings, mean + std * length * u."""
        return self.mean + self.std * self.length * directions


class CentreAdapter(StandardiseAdapter):
    """x -> (x - mean) / s with one s for all dimensions, the root mean square of their standard deviations.

    Unlike StandardiseAdapter, it keeps the share of each dimension in angles and distances: for embeddings whose
    dimensions are principal components, where dividing by each std is whitening.
    """

    def _scale(self, std: Tensor) -> Tensor:
        return std.square().mean().sqrt().clamp_min(1e-12).expand_as(std).clone()
