"""The adapter of a side that must not move: an image index that is already served, say."""

from __future__ import annotations

from torch import Tensor, nn

from csaligner.config import AdapterConfig

from .start import Affine


class IdentityAdapter(nn.Module):
    """x -> x, (N, d) -> (N, d); no parameters. The aligner normalises."""

    def __init__(self, start: Affine, config: AdapterConfig) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x
