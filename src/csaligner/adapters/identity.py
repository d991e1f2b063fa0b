"""Identity adapter, for a modality whose embeddings must not change (for example an existing image index)."""

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
