"""An affine adapter: exportable as three arrays."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from csaligner.config import AdapterConfig

from .start import Affine


class LinearAdapter(nn.Module):
    """x -> (x / |x| - mean) @ map + offset, (N, d_in) -> (N, d_out); mean, map and offset are learnt."""

    def __init__(self, start: Affine, config: AdapterConfig) -> None:
        super().__init__()
        self.mean = nn.Parameter(start.mean.clone())
        self.map = nn.Parameter(torch.eye(len(start.mean)) if start.map is None else start.map.clone())
        self.offset = nn.Parameter(start.offset.clone())

    def forward(self, x: Tensor) -> Tensor:
        return (normalize(x, dim=1) - self.mean) @ self.map + self.offset
